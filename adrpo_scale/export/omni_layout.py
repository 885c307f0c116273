"""Exports of models that hear, for transformers and peft: the thinker of Qwen2.5-Omni in a folder
of its own, adapters on it, or the whole model with the trained thinker put back into it.

All of them hold the processor's files, so that clips are encoded as in training. Parts outside the
policy (the towers, and in a whole model the talker, token2wav and the speakers' file) are copied
from the base byte for byte.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from adrpo_scale.core.errors import given
from adrpo_scale.domains.export_target import ExportTarget
from adrpo_scale.export.base import (
    Copy,
    Form,
    Material,
    Use,
    base_arguments,
    base_lines,
    code_block,
    value_text,
)
from adrpo_scale.export.copies import copy_of, licence_files
from adrpo_scale.export.peft_folder import PEFT_FILE, write_peft
from adrpo_scale.export.transformers_layout import TransformersLayout, vllm_line

OLD_TEMPLATE = "chat_template.json"  # a processor's template before chat_template.jinja
_PROCESSOR_FILES = (
    "preprocessor_config.json",
    "video_preprocessor_config.json",
    "processor_config.json",
    OLD_TEMPLATE,
)
_WEIGHTS = {".safetensors", ".bin", ".pt", ".pth", ".ckpt", ".h5", ".msgpack", ".gguf", ".onnx"}
VLLM = "vllm"  # folder of the adapters under the names that vLLM knows
# vLLM maps `thinker.model.` to its own class's `language_model.model.`, as it does for the base's
# weights. A name that it cannot map is no error there: the adapter would have no effect.
_STEM, _VLLM_STEM = "model.language_model.", "thinker.model."
_SECONDS = 1  # of silence: the clip in the card's example


class HearingLayout(TransformersLayout):
    def copies(self, material: Material, form: Form) -> list[Copy]:
        base = material.folder
        if form == "whole":
            found = [*licence_files(base), *_everything_else(material)]
        else:
            beside = [copy_of(base / n, base) for n in _PROCESSOR_FILES if (base / n).is_file()]
            found = [*super().copies(material, form), *beside]
        has_own = material.target.chat is not None and material.target.chat.template is not None
        once = {copy.name: copy for copy in found if not (has_own and copy.name == OLD_TEMPLATE)}
        return list(once.values())

    def write_adapters(
        self,
        material: Material,
        tensors: Mapping[str, Tensor],
        settings: Mapping[str, Any],
        folder: Path,
    ) -> list[str]:
        """A second peft folder for vLLM, which serves whole models alone."""
        if not material.target.part.whole:
            return []
        place = folder / VLLM
        place.mkdir()
        renamed = {_VLLM_STEM + n.removeprefix(_STEM): t for n, t in tensors.items()}
        layers = {name.partition(".lora_")[0].rpartition(".")[2] for name in renamed}
        own = {**settings, **self.peft_settings, "target_modules": sorted(layers)}
        write_peft(material.base, renamed, own, place)
        return [f"{VLLM}/{PEFT_FILE}"]

    def trained_name(self, name: str, target: ExportTarget) -> str:
        bare = super().trained_name(name, target)
        is_vllms = bare.startswith(_VLLM_STEM)
        return _STEM + bare.removeprefix(_VLLM_STEM) if is_vllms else bare

    def generation_texts(self, material: Material) -> dict[str, str]:
        """None of a whole model, whose file is of the model around the thinker."""
        return {} if material.stored.is_whole else super().generation_texts(material)

    def job(self, target: ExportTarget, form: Form) -> dict[str, Any]:
        own = {"loader": "hearing", "processor": target.processor}
        if form == "whole":
            own |= {"model": target.part.whole, "attribute": target.part.attribute}
        return super().job(target, form) | own

    def summary(self, form: Form, target: ExportTarget) -> str:
        return {
            "adapter": "LoRA adapters of the thinker",
            "merged": "The base's thinker with trained LoRA adapters merged into it",
            "full": "The base's thinker, whose language model was trained",
            "whole": "The base model with its trained thinker",
        }[form]

    def usage(self, use: Use) -> list[str]:
        blocks = [code_block(_lines(use)), "These are the settings of the run's evaluations."]
        served = {"whole": f"vllm serve . --dtype {use.dtype}"}
        if use.target.part.whole and use.rank is not None:
            served["adapter"] = vllm_line(use, f"./{VLLM}")
        if use.form in served:
            blocks += ["vLLM serves the thinker of a whole model, by requests with audio:"]
            blocks += [code_block([served[use.form]], "shell")]
        if use.form == "adapter" and use.form in served:
            blocks += [
                f"The folder `{VLLM}` holds the same adapters under the names that vLLM maps to "
                "its own; with the names of transformers they would have no effect there."
            ]
        return blocks


def _everything_else(material: Material) -> list[Copy]:
    """The base's files except weights, the card, and hidden files, which belong to a download or
    a repository."""
    base = material.folder
    found = []
    for path in sorted(path for path in base.rglob("*") if path.is_file()):
        name = path.relative_to(base)
        is_needed = name.as_posix() in material.target.part.needs
        if is_needed or not (_is_hidden(name) or _is_weights(name) or name == Path("README.md")):
            found.append(copy_of(path, base))
    return found


def _is_hidden(name: Path) -> bool:
    return any(part.startswith(".") for part in name.parts)


def _is_weights(name: Path) -> bool:
    """True for weights, which are those before training, and pickles, which may run code."""
    return name.suffix in _WEIGHTS or any(f"{suffix}.index." in name.name for suffix in _WEIGHTS)


# ---- the card's example --------------------------------------------------------------------------


def _lines(use: Use) -> list[str]:
    target, is_adapter, is_whole = use.target, use.form == "adapter", use.form == "whole"
    model = target.part.whole if is_whole else target.model
    is_heard = bool(target.inputs)
    lines = [*["import numpy as np"] * is_heard, "import torch"]
    lines += ["from peft import PeftModel"] * is_adapter
    lines += [f"from transformers import {', '.join(sorted((target.processor, model)))}", ""]
    lines += base_lines(use.base) if is_adapter else []
    arguments = base_arguments(use.base) if is_adapter else '"."'
    return [
        *lines,
        'device = "cuda" if torch.cuda.is_available() else "cpu"',
        f'processor = {target.processor}.from_pretrained(".")',
        f"model = {model}.from_pretrained(",
        f"    {arguments}, dtype=torch.{use.dtype}",
        ").to(device)",
        *['model = PeftModel.from_pretrained(model, ".")'] * is_adapter,
        "",
        *_input_lines(target),
        "tokens = model.generate(",
        "    **inputs,",
        *(f"    {name}={value_text(value)}," for name, value in _call(target, is_whole).items()),
        ")",
        'print(processor.decode(tokens[0, inputs["input_ids"].shape[1] :]))',
    ]


def _input_lines(target: ExportTarget) -> list[str]:
    chat = given(target.chat)
    if not chat.is_chat:
        made = [f'inputs = processor(text={json.dumps(chat.example)}, return_tensors="pt")']
    else:
        made = [
            f"clip = np.zeros({16000 * _SECONDS}, np.float32)  # your sound, mono at 16 kHz",
            "content = [",
            '    {"type": "audio", "audio": "clip"},',
            f'    {{"type": "text", "text": {json.dumps(chat.example)}}},',
            "]",
            "text = processor.apply_chat_template(",
            '    [{"role": "user", "content": content}],',
            "    add_generation_prompt=True,",
            "    tokenize=False,",
            *(f"    {name}={value!r}," for name, value in chat.arguments.items()),
            ")",
            'inputs = processor(text=text, audio=[clip], return_tensors="pt")',
        ]
    return [*made, "inputs = inputs.to(device).to(model.dtype)"]


def _call(target: ExportTarget, is_whole: bool) -> Mapping[str, Any]:
    """Arguments of `generate`; a whole model passes those with a part's prefix on to the part."""
    if not is_whole:
        return target.call
    own = {f"{target.part.attribute}_{name}": value for name, value in target.call.items()}
    return {"generation_mode": "text", **own}
