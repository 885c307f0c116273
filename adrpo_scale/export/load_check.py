"""Loads an export as a user of diffusers and peft does, and writes down what came of it.

    python -P load_check.py JOB.json

Stands alone: it imports nothing of the package that wrote the export, so it proves that the export
needs none of it. Reads no network. JOB.json:

    mode        outputs: run the loaded model on the inputs; tensors: compare every tensor's name,
                shape and type with the model's class, and every file's hash with the one written
    kind        adapter, merged or full
    export      the export's folder; base: that of the base's pipeline
    pipeline, model, component, stem   two classes of diffusers, the model's folder, its files' name
    inputs      safetensors file of keyword arguments of the model's forward
    dtype       of an adapter's tensors
    dtypes      of the other kinds' tensors, by name
    files       weight files: path inside the export → SHA-256
    outputs     where the outputs go (safetensors); answer: where this script's findings go (JSON)
"""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import diffusers
import peft
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

LIGHT = ("scheduler", "tokenizer")  # components that are loaded too, to see that they can be


def main(job: dict[str, Any]) -> None:
    torch.set_grad_enabled(False)
    if job["mode"] == "outputs":
        outputs = adapter_outputs(job) if job["kind"] == "adapter" else model_outputs(job)
        save_file(outputs, job["outputs"])
        tensors = 0
    else:
        check_hashes(job)
        tensors = check_adapter(job) if job["kind"] == "adapter" else check_model(job)
    versions = {library.__name__: library.__version__ for library in (torch, diffusers, peft)}
    modules = sorted({name.split(".")[0] for name in sys.modules})
    Path(job["answer"]).write_text(
        json.dumps({"tensors": tensors, "versions": versions, "modules": modules})
    )


def load_model(job: dict[str, Any], folder: str) -> Any:
    """The model in float32: with the export's own type, rounding would hide what is compared."""
    model_class = getattr(diffusers, job["model"])
    return model_class.from_pretrained(
        folder, subfolder=job["component"], dtype=torch.float32, local_files_only=True
    ).eval()


def load_pipeline(job: dict[str, Any], folder: str, model: Any) -> Any:
    """The pipeline around the model, without the encoders, which no export changes."""
    index = json.loads(Path(folder, "model_index.json").read_text())
    parts = [name for name, value in index.items() if isinstance(value, list) and value[0]]
    heavy = [name for name in parts if not name.startswith(LIGHT)]
    absent = [name for name in parts if not Path(folder, name).is_dir()]
    without = dict.fromkeys([*heavy, *absent]) | {job["component"]: model}
    pipeline_class = getattr(diffusers, job["pipeline"])
    return pipeline_class.from_pretrained(folder, local_files_only=True, **without)


def run(model: Any, job: dict[str, Any]) -> torch.Tensor:
    return model(**load_file(job["inputs"]), return_dict=False)[0].float().contiguous()


def adapter_outputs(job: dict[str, Any]) -> dict[str, torch.Tensor]:
    """Through the pipeline's loader, then through peft."""
    model = load_model(job, job["base"])
    pipeline = load_pipeline(job, job["base"], model)
    pipeline.load_lora_weights(job["export"], local_files_only=True)
    # Adapters in a lower type would be multiplied in it; their values are what is compared.
    outputs = {"load_lora_weights": run(model.float(), job)}
    pipeline.unload_lora_weights()
    outputs["peft"] = run(peft.PeftModel.from_pretrained(model, job["export"]).float(), job)
    return outputs


def model_outputs(job: dict[str, Any]) -> dict[str, torch.Tensor]:
    model = load_model(job, job["export"])
    return {"from_pretrained": run(load_pipeline(job, job["export"], model).transformer, job)}


def check_hashes(job: dict[str, Any]) -> None:
    for name, expected in job["files"].items():
        with Path(job["export"], name).open("rb") as file:
            found = hashlib.file_digest(file, "sha256").hexdigest()
        assert found == expected, f"{name} has SHA-256 {found}, {expected} was written"


def check_model(job: dict[str, Any]) -> int:
    """Every tensor against the class that the exported config builds; how many there are."""
    folder = Path(job["export"], job["component"])
    model_class = getattr(diffusers, job["model"])
    with torch.device("meta"):
        model = model_class.from_config(model_class.load_config(folder, local_files_only=True))
    shapes = {name: tuple(value.shape) for name, value in model.state_dict().items()}
    index, single = folder / f"{job['stem']}.safetensors.index.json", f"{job['stem']}.safetensors"
    files = [single]
    if index.is_file():
        content = json.loads(index.read_text())
        files = sorted(set(content["weight_map"].values()))
        assert content["weight_map"] == where(folder, files), f"{index.name} is wrong"
    return compare(folder, files, shapes, job["dtypes"])


def check_adapter(job: dict[str, Any]) -> int:
    """Both files against the adapters that peft builds from adapter_config.json."""
    folder = Path(job["export"])
    config = peft.LoraConfig.from_pretrained(folder)
    model_class = getattr(diffusers, job["model"])
    config_dict = model_class.load_config(Path(job["base"], job["component"]))
    with torch.device("meta"):
        model = peft.get_peft_model(model_class.from_config(config_dict), config)
    state = {n: v for n, v in model.state_dict().items() if ".lora_" in n}
    shapes = {n.replace(".default.", "."): tuple(v.shape) for n, v in state.items()}
    count = compare(folder, ["adapter_model.safetensors"], shapes, job["dtype"])
    prefix = f"{job['component']}."
    other = {prefix + n.removeprefix("base_model.model."): s for n, s in shapes.items()}
    return count + compare(folder, ["pytorch_lora_weights.safetensors"], other, job["dtype"])


def where(folder: Path, files: list[str]) -> dict[str, str]:
    found: dict[str, str] = {}
    for name in files:
        with safe_open(folder / name, "pt") as file:
            found |= dict.fromkeys(file.keys(), name)
    return found


def compare(
    folder: Path, files: list[str], shapes: dict[str, tuple[int, ...]], dtypes: str | dict[str, str]
) -> int:
    """Asserts that the files hold exactly these tensors, finite; how many they are."""
    there = where(folder, files)
    missing, extra = sorted(shapes.keys() - there), sorted(there.keys() - shapes)
    assert not missing and not extra, f"missing {missing[:3]}, not of the model {extra[:3]}"
    for name, tensor in tensors(folder, files):
        wanted = dtypes if isinstance(dtypes, str) else dtypes[name]
        found = (tuple(tensor.shape), str(tensor.dtype))
        assert found == (shapes[name], wanted), f"{name} is {found}, not {(shapes[name], wanted)}"
        assert bool(torch.isfinite(tensor).all()), f"{name} holds values that are not finite"
    return len(there)


def tensors(folder: Path, files: list[str]) -> Iterator[tuple[str, torch.Tensor]]:
    """One at a time, the file opened again for each: mapped pages count as memory."""
    for name, file_name in where(folder, files).items():
        with safe_open(folder / file_name, "pt") as file:
            yield name, file.get_tensor(name)


if __name__ == "__main__":
    main(json.loads(Path(sys.argv[1]).read_text()))
