"""Exports for transformers and peft: a complete model folder, or a peft folder. vLLM reads both.

Both hold the tokenizer, with the chat template that training used.
"""

from __future__ import annotations

import json
import shlex
from collections import Counter
from collections.abc import Collection, Mapping
from fnmatch import fnmatch
from typing import Any

import torch
from torch import Tensor

from adrpo_scale.core.errors import ExportError, given
from adrpo_scale.core.printable import one_line
from adrpo_scale.domains.export_target import ChatTarget, ExportTarget
from adrpo_scale.export.base import (
    Copy,
    Form,
    Layout,
    Material,
    Request,
    Use,
    base_arguments,
    base_lines,
    code_block,
    value_text,
)
from adrpo_scale.export.copies import copy_of, json_text, licence_files, without_paths
from adrpo_scale.hub.foreign import read_json

CONFIG, TOKENIZER, TEMPLATE = "config.json", "tokenizer_config.json", "chat_template.jinja"
GENERATION = "generation_config.json"
_TOKENIZER_FILES = (
    TOKENIZER,
    "tokenizer.*",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.*",
    "merges.txt",
    "*.model",
    "tekken.json",
    TEMPLATE,
)
_MODEL_FILES = (*_TOKENIZER_FILES, CONFIG, GENERATION)
_DTYPE_KEYS = {"dtype", "torch_dtype"}  # the latter before transformers 4.56
_TEMPLATES = "additional_chat_templates"
_GENERIC = {"TokenizersBackend": "PreTrainedTokenizerFast"}  # its name before transformers 5
_VLLM_RANKS = (8, 16, 32, 64, 128, 256, 320, 512)  # vLLM's choices of --max-lora-rank


class TransformersLayout(Layout):
    peft_settings: Mapping[str, Any] = {"task_type": "CAUSAL_LM"}

    def check(self, material: Material, form: Form) -> None:
        """Raises ExportError for adapters where the base's files hold a second, different copy of a
        tied weight: transformers would use it, training ignored it."""
        untrue = untrue_copies(material) if form == "adapter" else []
        if untrue:
            raise ExportError(
                f"--as adapter, but {material.folder} stores {', '.join(untrue)} beside the weight "
                "that it is tied to, with other values. transformers would use both, training used "
                "one: use --as merged, or remove the copy from the base's files"
            )

    def copies(self, material: Material, form: Form) -> list[Copy]:
        base = material.folder
        patterns = _TOKENIZER_FILES if form == "adapter" else _MODEL_FILES
        paths = [p for p in base.iterdir() if any(fnmatch(p.name, each) for each in patterns)]
        paths += [*(base / _TEMPLATES).glob("*.jinja")]
        files = sorted(path for path in paths if path.is_file())
        return [*licence_files(base), *(copy_of(path, base) for path in files)]

    def texts(self, material: Material, request: Request) -> dict[str, str]:
        if request.form == "adapter":
            return tokenizer_texts(material, names_class=True)
        own = {CONFIG: config_text(material, request.dtype)} | self.generation_texts(material)
        return tokenizer_texts(material, names_class=False) | own

    def generation_texts(self, material: Material) -> dict[str, str]:
        """generation_config.json, which silences the tokens that training banned."""
        silent = _silent(material.target)
        if not silent:
            return {}
        path = material.folder / GENERATION
        # Without the file, transformers takes the end tokens from config.json.
        before = json.loads(path.read_text()) if path.is_file() else {}
        ends = {"eos_token_id": list(material.target.call["eos_token_id"])} | before
        return {GENERATION: json_text(without_paths(ends | {"suppress_tokens": silent}))}

    def job(self, target: ExportTarget, form: Form) -> dict[str, Any]:
        chat, silent = _chat(target), _silent(target)
        return {
            "is_chat": chat.is_chat,
            "prompt": chat.example,
            "template_arguments": dict(chat.arguments),
            "silent": silent if form in ("adapter", "whole") or not silent else None,
        }

    def check_answer(self, target: ExportTarget, answer: Mapping[str, Any]) -> None:
        """Raises ExportError where the export's tokenizer encodes a prompt differently, or its
        generation_config.json silences other tokens."""
        ids = list(_chat(target).ids)
        if answer["prompt_ids"] != ids:
            raise ExportError(
                f"the export's tokenizer encodes a prompt as {answer['prompt_ids'][:20]}, training "
                f"as {ids[:20]}; please open an issue"
            )
        if sorted(answer["silent"]) != _silent(target):
            raise ExportError(
                f"{GENERATION} of the export suppresses {len(answer['silent'])} tokens, training "
                f"banned {len(_silent(target))}; please open an issue"
            )

    def further_errors(
        self, model: Any, inputs: Mapping[str, Tensor], answer: Mapping[str, Any]
    ) -> dict[str, float]:
        """Largest gap in logits between the policy's best token and the export's greedy one."""
        ids, start = torch.tensor(answer["greedy"]), answer["prompt_length"]
        logits = model(**{**inputs, "input_ids": ids}, return_dict=False)[0].float()
        scale = logits.square().mean().sqrt()
        logits[..., answer["silent"]] = -torch.inf
        logits, chosen = logits[:, start - 1 : -1], ids[:, start:, None]
        gaps = logits.max(-1).values - logits.gather(-1, chosen)[..., 0]
        return {f"greedy generate, {chosen.numel()} tokens: off by": float(gaps.max() / scale)}

    def summary(self, form: Form, target: ExportTarget) -> str:
        return {
            "adapter": "LoRA adapters",
            "merged": "The base model with trained LoRA adapters merged into it",
            "full": "All parameters of the base model",
            "whole": "The base model with its trained part put back into it",
        }[form]

    def usage(self, use: Use) -> list[str]:
        return [
            code_block(_generate_lines(use)),
            "These are the settings of the run's evaluations; requests to vLLM need them too:",
            code_block([vllm_line(use)], "shell"),
        ]


def _chat(target: ExportTarget) -> ChatTarget:
    return given(target.chat)


def _silent(target: ExportTarget) -> list[int]:
    """The tokens that the policy never generates."""
    return list(target.call.get("suppress_tokens", ()))


def untrue_copies(material: Material) -> list[str]:
    """Stored tensors that training ignored and that equal none of those it read."""
    stored = material.stored

    def is_copy(name: str) -> bool:
        alike = [n for n in stored.policy_names if stored.shape(n) == stored.shape(name)]
        return any(torch.equal(stored.read(name), stored.read(n)) for n in alike)

    found = [name for name in sorted(stored.left_out) if not is_copy(name)]
    material.close()
    return found


def config_text(material: Material, wanted: torch.dtype | None) -> str:
    """The base's config.json, or the model's section of it. `dtype` is the type of most of the
    export's elements; in the model's section of a whole model, of most of the policy's."""
    config = without_paths(read_json(material.folder / CONFIG))
    key, stored = material.target.part.config, material.stored
    if key and stored.is_whole:
        of_model = _main_dtype(material, wanted, stored.policy_names)
        config[key] |= dict.fromkeys(config[key].keys() & _DTYPE_KEYS, of_model)
    elif key:
        config = config[key] | {"architectures": [material.target.model]}
    keys = {"dtype", *config.keys() & _DTYPE_KEYS}
    return json_text(config | dict.fromkeys(keys, _main_dtype(material, wanted, stored.names())))


def _main_dtype(material: Material, wanted: torch.dtype | None, names: Collection[str]) -> str:
    elements: Counter[torch.dtype] = Counter()
    for name in names:
        elements[material.dtype(name, wanted)] += torch.Size(material.stored.shape(name)).numel()
    material.close()
    return str(elements.most_common(1)[0][0]).removeprefix("torch.")


def tokenizer_texts(material: Material, *, names_class: bool) -> dict[str, str]:
    """Files of the tokenizer that differ from the base's.

    The chat template is that of training. names_class: for exports without a config.json, whose
    tokenizer_config.json must name the tokenizer's class.
    """
    chat, path = _chat(material.target), material.folder / TOKENIZER
    settings = without_paths(read_json(path)) if path.is_file() else {}
    before, found = dict(settings), {}
    if chat.template is not None:
        found[TEMPLATE] = with_system(chat.template, chat.system)
        settings.pop("chat_template", None)  # or there would be two
    if names_class and not is_class(chat.tokenizer, settings.get("tokenizer_class", "")):
        settings["tokenizer_class"] = _GENERIC.get(chat.tokenizer, chat.tokenizer)
    return found if settings == before else found | {TOKENIZER: json_text(settings)}


def is_class(found: str, stated: str) -> bool:
    """True where a file states a tokenizer's class; old files add "Fast" to the name."""
    return _GENERIC.get(found, found).removesuffix("Fast") == (
        _GENERIC.get(stated, stated).removesuffix("Fast")
    )


def with_system(template: str, system: str | None) -> str:
    """A chat template that puts a system message before conversations that begin without one."""
    if system is None:
        return template
    text = json.dumps(system, ensure_ascii=False)  # Jinja reads the same escapes
    # The newline belongs to the block (trim_blocks), so the template's text is unchanged.
    return (
        "{% if messages[0]['role'] != 'system' %}"
        f"{{% set messages = [{{'role': 'system', 'content': {text}}}] + messages %}}"
        "{% endif %}\n" + template
    )


def _generate_lines(use: Use) -> list[str]:
    chat, is_adapter = _chat(use.target), use.form == "adapter"
    lines = ["import torch", *["from peft import PeftModel"] * is_adapter]
    lines += ["from transformers import AutoModelForCausalLM, AutoTokenizer", ""]
    lines += base_lines(use.base) if is_adapter else []
    arguments = base_arguments(use.base) if is_adapter else '"."'
    lines += [
        'device = "cuda" if torch.cuda.is_available() else "cpu"',
        'tokenizer = AutoTokenizer.from_pretrained(".")',
        "model = AutoModelForCausalLM.from_pretrained(",
        f"    {arguments}, dtype=torch.{use.dtype}",
        ").to(device)",
        *['model = PeftModel.from_pretrained(model, ".")'] * is_adapter,
        "",
        *(_chat_lines(chat) if chat.is_chat else _plain_lines(chat)),
        "tokens = model.generate(",
        "    **inputs,",
        *(f"    {name}={value_text(value)}," for name, value in use.target.call.items()),
        ")",
        'print(tokenizer.decode(tokens[0, inputs["input_ids"].shape[1] :]))',
    ]
    return lines


def _chat_lines(chat: ChatTarget) -> list[str]:
    return [
        f'messages = [{{"role": "user", "content": {json.dumps(chat.example)}}}]',
        "inputs = tokenizer.apply_chat_template(",
        "    messages,",
        "    add_generation_prompt=True,",
        "    return_dict=True,",
        '    return_tensors="pt",',
        *(f"    {name}={value!r}," for name, value in chat.arguments.items()),
        ").to(device)",
    ]


def _plain_lines(chat: ChatTarget) -> list[str]:
    return [f'inputs = tokenizer({json.dumps(chat.example)}, return_tensors="pt").to(device)']


def vllm_line(use: Use, adapter: str = ".") -> str:
    """The command that serves an export. adapter: the folder of adapters."""
    if use.form != "adapter":
        return f"vllm serve . --dtype {use.dtype}"
    own = given(use.rank)
    rank = next((rank for rank in _VLLM_RANKS if rank >= own), own)
    base, revision = use.base.name.removeprefix("demo:"), use.base.revision
    pinned = (
        f" --revision {shlex.quote(one_line(revision))}" if use.base.is_hub_id and revision else ""
    )
    return (
        f"vllm serve {shlex.quote(one_line(base))}{pinned} --dtype {use.dtype} "
        f"--enable-lora --max-lora-rank {rank} --lora-modules trained={adapter}"
    )
