"""Tensors that are not those of the model: where such folders come from, and what makes them right.

Each remedy was tried on a folder of its kind (`tests/domains/test_model_folders.py`).
"""

from __future__ import annotations

import shlex
from collections.abc import Set
from pathlib import Path

OTHERWISE = "use the config.json that belongs to these weights"
# What wrappers put before every name.
_WRAPPERS = {
    "_orig_mod.": "torch.compile",
    "module.": "DistributedDataParallel",
    "_fsdp_wrapped_module.": "FullyShardedDataParallel",
    "base_model.model.": "peft",
    "pretrained_model.": "a value head of TRL",
    "policy.": "a wrapper",
    "actor.": "a wrapper",
}
_PEFT = (".lora_A.", ".lora_B.", ".base_layer.", ".modules_to_save.")
_QUANTISED = {
    ".absmax": "bitsandbytes",
    ".quant_map": "bitsandbytes",
    ".SCB": "bitsandbytes",
    ".qweight": "GPTQ or AWQ",
    ".qzeros": "GPTQ or AWQ",
    ".g_idx": "GPTQ",
    ".weight_packed": "compressed-tensors",
    ".weight_scale": "FP8 or compressed-tensors",
    ".weight_scale_inv": "FP8",
    ".input_scale": "FP8",
    "_blocks": "MXFP4",
}
_HEADS = ("v_head.", "value_head.", "score.", "reward_head.", "summary.")
DEQUANTISE = (
    "name the model that it was made from, or save `from_pretrained(…).dequantize()` to another "
    "folder"
)


def explanation(wanted: Set[str], there: Set[str]) -> str:
    """The likely reason why a folder has other tensors than the model, and the remedy."""
    extra = sorted(there - wanted)
    for ending, how in _QUANTISED.items():
        if any(name.endswith(ending) or f"{ending}." in name for name in extra):
            return f"they are quantised ({how}), and training needs all bits: {DEQUANTISE}"
    if any(mark in name for name in extra for mark in _PEFT):
        return (
            "they hold adapters beside the base's weights: merge them (peft's `merge_and_unload`) "
            "and save the result with `save_pretrained`"
        )
    inner = [name for name in extra if not name.startswith(_HEADS)]
    for prefix, wrapper in _WRAPPERS.items():
        if inner and all(name.startswith(prefix) for name in inner):
            also = ", beside a value or reward head" if len(inner) < len(extra) else ""
            return (
                f"every name begins with {prefix!r}, which {wrapper} adds{also}: save the wrapped "
                "model itself, or take the prefix off the names"
            )
    if extra and wanted < there and all(name.startswith(_HEADS) for name in extra):
        return (
            "they have a value or reward head, which a policy has not: save the language model "
            "alone (of TRL's wrapper, its `pretrained_model`)"
        )
    prefix = _base_prefix(wanted, there)
    if prefix:
        return (
            f"the names lack {prefix!r}, as those of a model without its head: load it with the "
            "class of config.json's `architectures`, and save it with `save_pretrained`"
        )
    return OTHERWISE


def _base_prefix(wanted: Set[str], there: Set[str]) -> str:
    """The beginning of all names that the folder's names lack: "model." or "transformer."."""
    inner = {name for name in wanted if not name.startswith("lm_head.")}
    prefixes = {name.partition(".")[0] for name in inner}
    if len(prefixes) != 1 or not there:
        return ""
    prefix = f"{prefixes.pop()}."
    return prefix if {prefix + name for name in there} <= wanted else ""


def shape_remedy(is_empty: bool) -> str:
    """What helps against a tensor of another shape; is_empty: it holds no number."""
    if is_empty:
        return (
            "it is empty, as ZeRO-3 leaves weights that are saved without being gathered: put them "
            "together with the `zero_to_fp32.py` of that checkpoint"
        )
    return OTHERWISE


def adapter_line(folder: Path) -> str:
    """The disagreement of a model's folder with adapters beside its weights."""
    return (
        f"{folder} holds adapter_config.json beside the model: transformers loads the model with "
        "these adapters, and training would start without them: move adapter_* to another folder "
        f"to train the base, or merge them (`adrpo-scale prepare merge {shlex.quote(str(folder))} "
        "--to MERGED`, docs/guide/weights.md) and name the result"
    )


def stray_adapter_line(folder: Path, name: str, config: str) -> str:
    """The disagreement of a model's folder with weights of adapters whose config is missing."""
    return (
        f"{folder} holds {name} without {config} beside the model: training would start without "
        f"these adapters, and transformers leaves them out, too; move {name} to another folder to "
        "train the base, or bring the config and merge them (`adrpo-scale prepare merge`)"
    )
