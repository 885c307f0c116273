"""Loads an export as a user of its libraries does, and writes the results to a file.

    python -P load_check.py JOB.json

The script imports nothing of the package that wrote the export: this proves that the export does
not need it. It uses no network. JOB.json:

    mode        outputs: run the loaded model on the inputs; tensors: compare every tensor's name,
                shape and type with the model's class, and every file's hash with the one written
    form        adapter, merged, full or whole
    library     diffusers or transformers; loader: key of `loaders` below; default: the library
    export      the export's folder; base: the folder of the base's pipeline or model
    model, component, stem   the model's class, subfolder, and stem of its weight files
    inputs      safetensors file of keyword arguments of the model's forward
    dtype       of an adapter's tensors
    dtypes      of the other forms' tensors, by stored name; names: stored name → name in the class
    copied      stored names of tensors copied from the base; the class may not know some of them
    files       weight files: path inside the export → SHA-256
    outputs     file for the outputs (safetensors); answer: file for the findings (JSON)

    pipeline    diffusers: the pipeline's class
    prompt      transformers: a text; is_chat: it passes through the chat template, with
                template_arguments; silent: tokens that are not generated, null: as the export says
    processor   hearing: the class that turns a prompt and the clip in `inputs` into the model's
                inputs; attribute: the thinker's name in a whole model
"""

from __future__ import annotations

import importlib
import importlib.util
import json
import sys
from pathlib import Path
from typing import Any

import peft
import torch
from safetensors.torch import load_file, save_file

LIGHT = ("scheduler", "tokenizer")  # further components that are loaded, as a test of their files
DOWN, UP = ".lora_A.weight", ".lora_B.weight"
SAFELY: dict[str, Any] = {"local_files_only": True, "use_safetensors": True}
UNASKED: dict[str, Any] = {"local_files_only": True, "trust_remote_code": False}
GREEDY = 8  # tokens that a language model generates after the inputs


def _beside(name: str) -> Any:
    """A module of this folder, without the package around it."""
    spec = importlib.util.spec_from_file_location(name, Path(__file__).with_name(f"{name}.py"))
    if spec is None or spec.loader is None:
        raise ImportError(f"{name}.py is not beside {__file__}")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


TENSORS = _beside("tensor_check")


def main(job: dict[str, Any]) -> None:
    torch.set_grad_enabled(False)
    loaders = {"diffusers": Diffusers, "transformers": Transformers, "hearing": Hearing}
    library = loaders[job.get("loader", job["library"])](job)
    answer: dict[str, Any] = {"tensors": 0, **library.further(), "silent": library.silent()}
    if job["mode"] == "outputs":
        made = library.adapter_outputs if job["form"] == "adapter" else library.model_outputs
        save_file(made(), job["outputs"])
        answer |= library.tried
    else:
        TENSORS.check_hashes(job)
        check = TENSORS.check_adapter if job["form"] == "adapter" else TENSORS.check_model
        answer["tensors"] = check(job, library)
    versions = {each.__name__: each.__version__ for each in (torch, library.module, peft)}
    modules = sorted({name.split(".")[0] for name in sys.modules})
    answer |= {"versions": versions, "modules": modules}
    Path(job["answer"]).write_text(json.dumps(answer))


class Library:
    """How one library loads an export. tried: further results of running the model."""

    def __init__(self, job: dict[str, Any]) -> None:
        self.job, self.tried = job, dict[str, Any]()
        self.module = importlib.import_module(job["library"])

    def _load_model(self, folder: str) -> Any:
        """In float32: with the export's own type, rounding would hide what is compared."""
        model_class, part = getattr(self.module, self.job["model"]), self.job["component"]
        more: dict[str, Any] = {"dtype": torch.float32, **SAFELY}
        return model_class.from_pretrained(folder, subfolder=part, **more).eval()

    def further(self) -> dict[str, Any]:
        """Tries the files beside the weights; returns findings by name."""
        return {}

    def silent(self) -> list[int]:
        """The tokens that are not generated."""
        if self.job.get("silent", []) is not None:
            return list(self.job.get("silent", []))
        config = self.module.GenerationConfig.from_pretrained(self.job["export"])
        return list(config.suppress_tokens or [])

    def inputs(self) -> dict[str, torch.Tensor]:
        """Keyword arguments of the model's forward."""
        return load_file(self.job["inputs"])

    def run(self, model: Any) -> torch.Tensor:
        outputs = model(**self.inputs(), return_dict=False)
        return outputs[0].float().contiguous()

    def adapter_outputs(self) -> dict[str, torch.Tensor]:
        """Outputs by the way in which the adapters were loaded."""
        raise NotImplementedError

    def from_tensors_alone(self, model: Any, file: str, prefix: str) -> torch.Tensor:
        """Outputs with B @ A added to the weights: the rule of ComfyUI and kohya's scripts, which
        count a file without `.alpha` tensors as alpha = rank, and read no metadata."""
        found = load_file(Path(self.job["export"], file))
        for layer in {name.removesuffix(DOWN) for name in found if name.endswith(DOWN)}:
            added = found[layer + UP].float() @ found[layer + DOWN].float()
            model.get_submodule(layer.removeprefix(prefix)).weight += added
        return self.run(model)

    def model_outputs(self) -> dict[str, torch.Tensor]:
        raise NotImplementedError

    def empty(self, folder: Path) -> Any:
        """The model of the folder's config; to be called under the meta device."""
        raise NotImplementedError

    def other_adapters(self) -> dict[str, str]:
        """Further files of adapters → prefix of their tensors' names."""
        return {}


class Diffusers(Library):
    def _load_pipeline(self, folder: str, model: Any) -> Any:
        """The pipeline around the model, without the encoders, which no export changes."""
        index = json.loads(Path(folder, "model_index.json").read_text())
        parts = [name for name, value in index.items() if isinstance(value, list)]
        heavy = [name for name in parts if not name.startswith(LIGHT)]
        # Also those that the pipeline was saved without: diffusers demands that each is passed.
        absent = [n for n in parts if not (all(index[n]) and Path(folder, n).is_dir())]
        without = dict.fromkeys([*heavy, *absent]) | {self.job["component"]: model}
        pipeline_class = getattr(self.module, self.job["pipeline"])
        return pipeline_class.from_pretrained(folder, **SAFELY, **without)

    def adapter_outputs(self) -> dict[str, torch.Tensor]:
        """Outputs after loading by the pipeline with and without the file's metadata, by peft, and
        from the tensors alone."""
        export, model = self.job["export"], self._load_model(self.job["base"])
        pipeline = self._load_pipeline(self.job["base"], model)
        ((file, prefix),) = self.other_adapters().items()
        ways = {"load_lora_weights": export}
        ways["load_lora_weights without metadata"] = load_file(Path(export, file))
        outputs = {}
        for way, given in ways.items():
            pipeline.load_lora_weights(given, **SAFELY)
            # Adapters in a lower type would be multiplied in it; their values are what is compared.
            outputs[way] = self.run(model.float())
            pipeline.unload_lora_weights()
        adapted = peft.PeftModel.from_pretrained(model, export)
        outputs["peft"] = self.run(adapted.float())
        outputs["tensors alone"] = self.from_tensors_alone(adapted.unload(), file, prefix)
        return outputs

    def model_outputs(self) -> dict[str, torch.Tensor]:
        model = self._load_model(self.job["export"])
        pipeline = self._load_pipeline(self.job["export"], model)
        return {"from_pretrained": self.run(getattr(pipeline, self.job["component"]))}

    def empty(self, folder: Path) -> Any:
        model_class = getattr(self.module, self.job["model"])
        return model_class.from_config(model_class.load_config(folder, local_files_only=True))

    def other_adapters(self) -> dict[str, str]:
        return {"pytorch_lora_weights.safetensors": f"{self.job['component']}."}


class Transformers(Library):
    def further(self) -> dict[str, Any]:
        """The tokens of the prompt."""
        tokenizer = self.module.AutoTokenizer.from_pretrained(self.job["export"], **UNASKED)
        if not self.job["is_chat"]:
            return {"prompt_ids": list(tokenizer(self.job["prompt"])["input_ids"])}
        messages = [{"role": "user", "content": self.job["prompt"]}]
        encoded = tokenizer.apply_chat_template(
            messages,
            add_generation_prompt=True,
            return_dict=True,
            **self.job["template_arguments"],
        )
        return {"prompt_ids": list(encoded["input_ids"])}

    def adapter_outputs(self) -> dict[str, torch.Tensor]:
        model = self._load_model(self.job["base"])
        model = peft.PeftModel.from_pretrained(model, self.job["export"])
        # Adapters in a lower type would be multiplied in it; their values are what is compared.
        outputs = {"peft": self._run_and_go_on(model.float().eval())}
        file, prefix = "adapter_model.safetensors", "base_model.model."
        outputs["tensors alone"] = self.from_tensors_alone(model.unload(), file, prefix)
        return outputs

    def model_outputs(self) -> dict[str, torch.Tensor]:
        model = self._load_model(self.job["export"])
        return {"from_pretrained": self._run_and_go_on(model.eval())}

    def _run_and_go_on(self, model: Any) -> torch.Tensor:
        """Outputs on the inputs, after generating GREEDY tokens from them; end tokens do not stop
        it."""
        inputs = self.inputs()
        ids = inputs["input_ids"]
        # Otherwise end tokens and penalties of generation_config.json would apply.
        model.generation_config = self.module.GenerationConfig(
            suppress_tokens=self.silent() or None
        )
        given = {"attention_mask": torch.ones_like(ids)} | inputs
        tokens = model.generate(**given, do_sample=False, max_new_tokens=GREEDY)
        is_whole = tokens.shape[1] == ids.shape[1] + GREEDY
        TENSORS.require(is_whole, f"generate returned {tuple(tokens.shape)}")
        self.tried = {"greedy": tokens.tolist(), "prompt_length": ids.shape[1]}
        return self.run(model)

    def empty(self, folder: Path) -> Any:
        config = self.module.AutoConfig.from_pretrained(folder, **UNASKED)
        return getattr(self.module, self.job["model"]).from_config(config, trust_remote_code=False)


class Hearing(Transformers):
    """A model that hears clips through its processor; alone, or as a part of a whole model."""

    def further(self) -> dict[str, Any]:
        """The tokens of the prompt with its clip."""
        return {"prompt_ids": self.inputs()["input_ids"][0].tolist()}

    def inputs(self) -> dict[str, torch.Tensor]:
        processor_class = getattr(self.module, self.job["processor"])
        processor = processor_class.from_pretrained(self.job["export"], **UNASKED)
        text, clips = self.job["prompt"], load_file(self.job["inputs"])
        if not clips:
            return dict(processor(text=text, return_tensors="pt"))
        content = [{"type": "audio", "audio": "clip"}, {"type": "text", "text": text}]
        spoken = processor.apply_chat_template(
            [{"role": "user", "content": content}],
            add_generation_prompt=True,
            tokenize=False,
            **self.job["template_arguments"],
        )
        return dict(processor(text=spoken, audio=[clips["clip"].numpy()], return_tensors="pt"))

    def model_outputs(self) -> dict[str, torch.Tensor]:
        model = self._load_model(self.job["export"]).eval()
        # transformers initialises tensors that it does not find at random, with only a warning.
        check_loaded(model, Path(self.job["export"]), self.job)
        model = getattr(model, self.job["attribute"]) if "attribute" in self.job else model
        return {"from_pretrained": self._run_and_go_on(model)}

    def empty(self, folder: Path) -> Any:
        model_class = getattr(self.module, self.job["model"])
        config = model_class.config_class.from_pretrained(folder, local_files_only=True)
        return model_class._from_config(config)


def check_loaded(model: Any, folder: Path, job: dict[str, Any]) -> None:
    """Raises CheckError unless every tensor of the model has the values in the files."""
    own = dict(model.named_parameters()) | dict(model.named_buffers())
    wanted = {name for name in model.state_dict() if name in own}
    for name, tensor in TENSORS.tensors(folder, TENSORS.weight_files(folder, job["stem"])):
        called = job["names"][name]
        if called in wanted:
            wanted.remove(called)
            found = own[called]
            is_same = torch.equal(found, tensor.to(found.dtype))
            TENSORS.require(is_same, f"{name} was not loaded")
    TENSORS.require(not wanted, f"missing {sorted(wanted)[:3]}")


if __name__ == "__main__":
    main(json.loads(Path(sys.argv[1]).read_text()))
