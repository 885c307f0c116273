"""Exports of the image demo: loaded with nothing of this package, equal to the policy, complete."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys

import numpy as np
import peft
import pytest
import torch
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from adrpo_scale.checkpoint.locate import open_checkpoint
from adrpo_scale.core.errors import ExportError
from adrpo_scale.core.seeding import Purpose, normal
from adrpo_scale.core.tensor_files import file_sha256
from adrpo_scale.core.types import DrawKey
from adrpo_scale.evaluation.sample import Source, find_source, sample_to
from adrpo_scale.export import adapter
from adrpo_scale.export.base import Request
from adrpo_scale.export.diffusers_layout import LORA_FILE
from adrpo_scale.export.exporter import export
from tests.support.exported_pictures import TRAINED, quick, tensors_of, trained
from tests.support.ranks import FORKSERVER_ENV

STEPS, SEED, PER_PROMPT = 4, 3, 2
PROMPTS = ["a red ring", "two blue squares", "a green triangle left of a red ring"]


# ---- what is exported ----------------------------------------------------------------------------


def test_every_export_is_what_the_policy_computes(exports):
    for form, exported in exports.items():
        figures = exported.verdict.figures
        off = [value for name, value in figures.items() if name.endswith("off by")]
        assert len(off) == (4 if form == "adapter" else 1)
        assert max(off) <= 1e-5, figures
        assert figures["training moved outputs by"] > 1e-2
        assert exported.written.changed > 0
        assert exported.folder.is_dir() and not exported.folder.with_suffix(".tmp").exists()


# ---- loaded as a user loads it -------------------------------------------------------------------


PLAIN = """
import json, sys
from pathlib import Path

import numpy as np
import torch
from diffusers import SD3Transformer2DModel, StableDiffusion3Pipeline
from peft import PeftModel
from safetensors.torch import load_file

job = json.loads(sys.argv[1])
latents = load_file(job["latents"])["x0"]
without = {"text_encoder_3": None, "tokenizer_3": None}


def pictures(pipeline):
    pipeline.set_progress_bar_config(disable=True)
    rows = [text for text in job["prompts"] for _ in range(job["per_prompt"])]
    return pipeline(
        rows, latents=latents, sigmas=[1 - i / job["steps"] for i in range(job["steps"])],
        guidance_scale=1.0, height=20, width=20, max_sequence_length=12, output_type="np",
    ).images


def load(folder, **parts):
    return StableDiffusion3Pipeline.from_pretrained(
        folder, dtype=torch.float32, local_files_only=True, **without, **parts
    )


found = {"base": pictures(load(job["base"]))}
pipeline = load(job["base"])
pipeline.load_lora_weights(job["adapter"])
found["load_lora_weights"] = pictures(pipeline)
pipeline.unload_lora_weights()
# Older versions of diffusers, and tools that pass tensors on, read no metadata.
tensors = load_file(Path(job["adapter"], "pytorch_lora_weights.safetensors"))
pipeline.load_lora_weights(tensors)
found["state_dict"] = pictures(pipeline)
pipeline.unload_lora_weights()
# ComfyUI and kohya's scripts: a layer without `.alpha` has alpha = rank.
for name in [name for name in tensors if ".lora_A." in name]:
    up = tensors[name.replace(".lora_A.", ".lora_B.")]
    rank = len(tensors[name])
    strength = tensors.get(name.replace(".lora_A.weight", ".alpha"), rank) / rank
    layer = name.removeprefix("transformer.").removesuffix(".lora_A.weight")
    pipeline.transformer.get_submodule(layer).weight.data += strength * up @ tensors[name]
found["comfyui"] = pictures(pipeline)
transformer = SD3Transformer2DModel.from_pretrained(
    job["base"], subfolder="transformer", dtype=torch.float32
)
PeftModel.from_pretrained(transformer, job["adapter"])  # adds the adapters in place
found["peft"] = pictures(load(job["base"], transformer=transformer))
for form in ("merged", "full"):
    found[form] = pictures(load(job[form]))
assert not [name for name in sys.modules if name.split(".")[0] == "adrpo_scale"]
for name, images in found.items():
    np.save(Path(job["to"], name + ".npy"), np.round(images * 255).astype(np.uint8))
"""


@pytest.fixture(scope="module")
def plain_pictures(root, exports, tmp_path_factory):
    """What diffusers and peft paint from the exports, by how they were loaded."""
    place = tmp_path_factory.mktemp("plain")
    samples, latents = list(range(len(PROMPTS) * PER_PROMPT)), place / "latents.safetensors"
    save_file({"x0": normal(DrawKey(SEED, 0), samples, Purpose.EVALUATION, (3, 20, 20))}, latents)
    job = {form: str(exported.folder) for form, exported in exports.items()}
    job |= {"base": str(root / "base-model"), "latents": str(latents), "to": str(place)}
    job |= {"prompts": PROMPTS, "per_prompt": PER_PROMPT, "steps": STEPS}
    done = subprocess.run(
        [sys.executable, "-P", "-c", PLAIN, json.dumps(job)],
        env=os.environ | FORKSERVER_ENV,
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert done.returncode == 0, done.stderr
    return {path.stem: np.load(path) for path in place.glob("*.npy")}


def our_pictures(root, name, to):
    prompts = to / "prompts.txt"
    prompts.write_text("\n".join(PROMPTS) + "\n")
    newest = open_checkpoint(str(root / "runs" / name)).folder
    source: Source = find_source(str(newest))
    paths = sample_to(source, prompts, to / name, per_prompt=PER_PROMPT, seed=SEED, weights="raw")
    return np.stack([np.asarray(Image.open(path)) for path in paths])


@pytest.mark.parametrize(
    ("run", "ways"),
    [
        ("lora", ["load_lora_weights", "state_dict", "comfyui", "peft", "merged"]),
        ("full", ["full"]),
    ],
)
def test_plain_libraries_paint_our_pictures(root, plain_pictures, tmp_path, run, ways):
    ours = our_pictures(root, run, tmp_path).astype(int)
    for way in ways:
        levels = np.abs(plain_pictures[way].astype(int) - ours)
        # The base of the demo is stored in float16, and so is a merge into it.
        assert levels.max() <= (3 if way == "merged" else 1), way
        assert (levels == 0).mean() > (0.9 if way == "merged" else 0.999), way
    assert np.abs(plain_pictures["base"].astype(int) - ours).max() > 20


# ---- the adapter ---------------------------------------------------------------------------------


def test_the_adapters_strength_is_in_its_tensors(root, exports):
    """The run has alpha = 40 and rank 16: a factor of 2.5."""
    place, expected = exports["adapter"].folder, trained(root)
    ours = load_file(place / adapter.PEFT_FILE)
    theirs = load_file(place / LORA_FILE)
    assert len(ours) == len(theirs) == len(expected)
    for name, tensor in expected.items():
        bare = name.replace(".default.", ".")
        strong = tensor * (2.5 if ".lora_B." in name else 1)
        assert torch.equal(ours[f"base_model.model.{bare}"], strong)
        assert torch.equal(theirs[f"transformer.{bare}"], strong)
    config = peft.LoraConfig.from_pretrained(place)
    assert (config.r, config.lora_alpha) == (16, 16)
    assert config.base_model_name_or_path == "base-model"
    with safe_open(place / LORA_FILE, "pt") as file:
        settings = json.loads(file.metadata()["lora_adapter_metadata"])
    assert settings["transformer.lora_alpha"] == 16
    assert {p.name for p in place.iterdir()} == {
        "README.md",
        "LICENSE.md",
        "adapter_config.json",
        adapter.PEFT_FILE,
        LORA_FILE,
    }


def test_adapter_of_the_moving_average_in_bfloat16(root, tmp_path):
    exported = quick(root, "lora", tmp_path / "a", "adapter", weights="ema", dtype=torch.bfloat16)
    found = load_file(exported.folder / adapter.PEFT_FILE)
    for name, tensor in trained(root, part="ema").items():
        written = found["base_model.model." + name.replace(".default.", ".")]
        strong = tensor * (2.5 if ".lora_B." in name else 1)
        assert torch.equal(written, strong.to(torch.bfloat16))
    assert "moving average" in (exported.folder / "README.md").read_text()


def test_the_same_export_twice_has_the_same_bytes(root, exports, tmp_path):
    again = quick(root, "lora", tmp_path / "a", "adapter").folder
    # Not of diffusers' file: safetensors writes two entries of metadata in either order.
    for name in (adapter.PEFT_FILE, "adapter_config.json"):
        assert file_sha256(again / name) == file_sha256(exports["adapter"].folder / name)


# ---- complete folders ----------------------------------------------------------------------------


def test_merged_is_the_base_with_scaled_products_added(root, exports):
    weights, adapters = tensors_of(root / "base-model"), trained(root)
    found = tensors_of(exports["merged"].folder)
    assert found.keys() == weights.keys()
    for name, weight in weights.items():
        assert found[name].dtype == weight.dtype == torch.float16
        down, up = (
            adapters.get(f"{name.removesuffix('.weight')}.lora_{x}.default.weight") for x in "AB"
        )
        expected = weight.double()
        if down is not None:
            expected = expected + 40 / 16 * (up.double() @ down.double())
        bound = 2**-11 * expected.abs() + 2**-24
        assert bool(((found[name].double() - expected).abs() <= bound).all()), name


def test_full_of_two_sharded_ranks_in_several_files(root, exports):
    place = exports["full"].folder / "transformer"
    index = json.loads((place / "diffusion_pytorch_model.safetensors.index.json").read_text())
    names = sorted(path.name for path in place.glob("*.safetensors"))
    assert names[0] == f"diffusion_pytorch_model-00001-of-{len(names):05d}.safetensors"
    assert len(names) >= 3 and set(index["weight_map"].values()) == set(names)
    for name in names:
        with safe_open(place / name, "pt") as file:
            assert {index["weight_map"][key] for key in file.keys()} == {name}  # noqa: SIM118
            assert file.metadata() == {"format": "pt"}
        assert (place / name).stat().st_size <= 10**6 + 20_000
    found, weights = tensors_of(exports["full"].folder), trained(root, "full")
    for name, tensor in weights.items():
        assert torch.equal(found[name], tensor)
    assert index["metadata"]["total_size"] == sum(t.numel() * 4 for t in found.values())
    assert found.keys() - weights.keys() == {"pos_embed.pos_embed"}  # a buffer: the base's


def test_a_complete_folder_holds_the_pipeline_and_nothing_else(root, exports):
    place, source = exports["merged"].folder, root / "base-model"
    found = {path.relative_to(place).as_posix() for path in place.rglob("*") if path.is_file()}
    expected = {
        path.relative_to(source).as_posix()
        for path in source.rglob("*")
        if path.is_file() and path.parts[-2] not in ("prompts", "reward_clip")
    }
    left_out = {
        ".gitattributes",
        "text_encoder/pytorch_model.bin",
        "vae/diffusion_pytorch_model.fp16.safetensors",
        "vae/model.safetensors.index.fp16.json",
    }
    assert found == expected - left_out
    for name in found - {TRAINED, "README.md", "text_encoder_2/config.json"}:
        assert file_sha256(place / name) == file_sha256(source / name), name
    told = json.loads((place / "text_encoder_2/config.json").read_text())
    assert told["_name_or_path"] == "clip"


def test_link_shares_what_the_base_has(root, tmp_path):
    place = quick(root, "lora", tmp_path / "a", "merged", link=True).folder
    linked = "text_encoder/model.safetensors"
    assert (place / linked).samefile(root / "base-model" / linked)
    assert not (place / TRAINED).samefile(root / "base-model" / TRAINED)


def test_a_component_that_has_pickles_alone_is_refused(root, tmp_path):
    shutil.copytree(root / "base-model", tmp_path / "base")
    weights = tmp_path / "base/text_encoder/model.safetensors"
    weights.rename(weights.with_suffix(".bin"))
    with pytest.raises(ExportError, match="pickles alone"):
        export(
            str(root / "runs/lora"),
            Request(tmp_path / "a", "merged", verify="none"),
            str(tmp_path / "base"),
        )


def test_tensors_are_verified_without_running_the_model(root, tmp_path):
    run = str(root / "runs/lora")
    shards = {"dtype": torch.bfloat16, "max_shard_bytes": 10**6, "weights": "ema"}
    exported = export(run, Request(tmp_path / "a", "merged", verify="tensors", **shards))
    figures = exported.verdict.figures
    assert figures["tensors compared"] == len(tensors_of(exported.folder))
    assert 0 < figures["largest error / rounding"] <= 1
    assert tensors_of(exported.folder)["proj_out.weight"].dtype == torch.bfloat16
