"""Exports for diffusers: a whole pipeline folder, or the adapters as a LoRA file beside peft's.

The LoRA file carries rank and alpha in its metadata. Loaders that do not read it assume
alpha = rank, which the exported tensors have.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from adrpo_scale.core.errors import ExportError
from adrpo_scale.domains.export_target import ExportTarget
from adrpo_scale.export.base import (
    Copy,
    Form,
    Layout,
    Material,
    Use,
    base_arguments,
    base_lines,
    code_block,
)
from adrpo_scale.export.copies import copy_of, licence_files
from adrpo_scale.hub.foreign import read_json

LORA_FILE = "pytorch_lora_weights.safetensors"
INDEX = "model_index.json"
PROMPT = "a red ring"
_KEPT = {".json", ".txt", ".model", ".jinja", ".safetensors", ".md"}


class DiffusersLayout(Layout):
    def copies(self, material: Material, form: Form) -> list[Copy]:
        return licence_files(material.folder) if form == "adapter" else other_files(material)

    def write_adapters(
        self,
        material: Material,
        tensors: Mapping[str, Tensor],
        settings: Mapping[str, Any],
        folder: Path,
    ) -> list[str]:
        import diffusers

        target = material.target
        layers = {f"{target.component}_lora_layers": dict(tensors)}
        metadata = {f"{target.component}_lora_adapter_metadata": dict(settings)}
        pipeline = getattr(diffusers, target.pipeline)
        pipeline.save_lora_weights(folder, weight_name=LORA_FILE, **layers, **metadata)
        # safetensors creates the file readable by its owner alone.
        shutil.copymode(folder / "adapter_config.json", folder / LORA_FILE)
        return [LORA_FILE]

    def job(self, target: ExportTarget, form: Form) -> dict[str, Any]:
        return {"pipeline": target.pipeline}

    def summary(self, form: Form, target: ExportTarget) -> str:
        part = target.component
        return {
            "adapter": f"LoRA adapters of the {part}",
            "merged": f"The base pipeline with trained LoRA adapters merged into its {part}",
            "full": f"The base pipeline with a {part} all of whose parameters were trained",
        }[form]

    def usage(self, use: Use) -> list[str]:
        blocks = [code_block(_pipeline_lines(use))]
        if use.form == "adapter":
            blocks += ["The same adapters through peft:", code_block(_peft_lines(use))]
        return blocks


def other_files(material: Material) -> list[Copy]:
    """The files of the base's pipeline that a complete folder needs beside the trained weights.

    These are the components that model_index.json names, and licences; no pickles, and no other
    variants of weights. Raises ExportError where a component has its weights as pickles alone.
    """
    base, target = material.folder, material.target
    found = [copy_of(base / INDEX, base), *licence_files(base)]
    for part in _components(base / INDEX):
        if not (base / part).is_dir():
            continue
        files = sorted(path for path in (base / part).rglob("*") if path.is_file())
        kept = [path for path in files if _is_kept(path)]
        if part == target.component:
            kept = [path for path in kept if ".safetensors" not in path.name]
        elif _has_pickles(files) and not any(path.suffix == ".safetensors" for path in kept):
            raise ExportError(
                f"{base / part} has its weights as pickles alone, which are not copied; expected "
                "safetensors: get a version of the base model that has them"
            )
        found += [copy_of(path, base) for path in kept]
    return found


def _components(index: Path) -> list[str]:
    """The components that a pipeline's index names. Raises ExportError where one cannot be a folder
    beside it."""
    named = sorted(name for name, value in read_json(index).items() if isinstance(value, list))
    strange = [name for name in named if not name.isidentifier()]
    if strange:
        raise ExportError(
            f"{index} names the component {strange[0]!r}; expected the name of a folder beside it: "
            "bring the base model again from where it was published"
        )
    return named


def _is_kept(path: Path) -> bool:
    """True for configs, tokenizers, and weights that `from_pretrained` reads without a variant."""
    if path.name.startswith(".") or path.suffix not in _KEPT:
        return False
    if path.suffix == ".safetensors":
        return "." not in path.stem  # model.fp16.safetensors is a variant
    return ".index." not in path.name or path.name.endswith(".safetensors.index.json")


def _has_pickles(files: list[Path]) -> bool:
    return any(path.suffix in (".bin", ".pt", ".pth", ".ckpt") for path in files)


def _pipeline_lines(use: Use) -> list[str]:
    target, is_adapter = use.target, use.form == "adapter"
    arguments = base_arguments(use.base) if is_adapter else '"."'
    lines = ["import torch", f"from diffusers import {target.pipeline}", ""]
    lines += base_lines(use.base) if is_adapter else []
    lines += [
        'device = "cuda" if torch.cuda.is_available() else "cpu"',
        f"pipeline = {target.pipeline}.from_pretrained(",
        f"    {arguments},",
        f"    dtype=torch.{use.dtype},",
        *(f"    {part}=None,  # trained without it" for part in target.unused),
        ").to(device)",
    ]
    if is_adapter:
        lines.append(f'pipeline.load_lora_weights(".", weight_name="{LORA_FILE}")')
    return lines + _call_lines(target.call)


def _call_lines(call: Mapping[str, Any]) -> list[str]:
    """Sampling as the run's evaluations did it: Euler steps at evenly spaced sigmas."""
    others = [f"    {name}={value!r}," for name, value in call.items() if name != "steps"]
    return [
        "",
        f"steps = {call['steps']}",
        "image = pipeline(",
        f"    {json.dumps(PROMPT)},",
        "    sigmas=[1 - i / steps for i in range(steps)],  # as in the run's evaluations",
        *others,
        '    generator=torch.Generator("cpu").manual_seed(0),',
        ").images[0]",
        'image.save("sample.png")',
    ]


def _peft_lines(use: Use) -> list[str]:
    target = use.target
    return [
        f"from diffusers import {target.model}",
        "from peft import PeftModel",
        "",
        *base_lines(use.base),
        f"{target.component} = {target.model}.from_pretrained(",
        f"    {base_arguments(use.base)}, subfolder={json.dumps(target.component)}",
        ")",
        f'{target.component} = PeftModel.from_pretrained({target.component}, ".")',
    ]
