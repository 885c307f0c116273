"""A language model with the adapters beside it merged into its weights: a folder of its own.

peft computes it, so every kind of adapter that peft merges is one here. The result is checked
before it gets its name: peft's model with its adapters and the written folder give the same
logits, and others than the base alone. A run of it has another base than a run of the base.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory, mkdtemp
from typing import Any

import torch
from torch import Tensor

from adrpo_scale.core.console import say
from adrpo_scale.core.errors import ConfigError, ModelNotFoundError, WeightsError
from adrpo_scale.core.files import remove_folder, replace_json, sync_folder
from adrpo_scale.domains.language_model import FILES
from adrpo_scale.hub.foreign import open_tensors
from adrpo_scale.hub.inside import real_file
from adrpo_scale.hub.loaders import load_weights
from adrpo_scale.hub.needs import HubNeed
from adrpo_scale.hub.soundness import disagreements, loading
from adrpo_scale.hub.weight_files import ADAPTER, TRANSFORMERS
from adrpo_scale.hub.weights import agreement, combined_sha256, find_model

ADAPTER_WEIGHTS = "adapter_model.safetensors"
RECORD = "merged_from.json"
_OFF = {torch.float32: 1e-4}  # relative to the logits' size; of lower precision a rounding of each
_OFF_ROUNDED = 0.05


def merge_adapters(model: str, to: Path, adapter: Path | None = None) -> None:
    """Writes a model with its adapters merged. model: a folder or hub id. adapter: their folder; by
    default the model's.

    Raises ConfigError where `to` exists, ModelNotFoundError and WeightsError where the model or the
    adapters are not whole, do not fit each other, or the result is not what peft computes.
    """
    base = find_model(HubNeed(model, "MODEL", FILES))
    adapters = base if adapter is None else adapter
    for name in (ADAPTER, ADAPTER_WEIGHTS):
        if not (adapters / name).is_file():
            raise ModelNotFoundError(
                f"{adapters} has no {name}: peft's `save_pretrained` writes {ADAPTER} and "
                f"{ADAPTER_WEIGHTS}; name their folder with --adapter"
            )
    if to.is_symlink() or (to.exists() and any(to.iterdir() if to.is_dir() else [to])):
        raise ConfigError(f"--to {to}: it exists and is not empty; choose another folder")
    others = _others(base)
    to.parent.mkdir(parents=True, exist_ok=True)
    part = Path(mkdtemp(prefix=f".{to.name}-", dir=to.parent))
    part.chmod(0o755)
    try:
        with _alone(base) as plain:
            agreement(disagreements(plain, HubNeed(str(plain), raw=True)), is_new=True)
            _write(plain, adapters, part)
        for name, path in others.items():
            if not (part / name).exists():
                shutil.copyfile(path, part / name)
        weights = _hash(base, "model*.safetensors")
        record = {"base": weights, "adapters": _hash(adapters, "adapter_*")}
        replace_json(part / RECORD, record)
        part.rename(to)  # also over an empty folder
        sync_folder(to.parent)
    finally:
        if part.exists():
            remove_folder(part)
    say(f"merged {adapters / ADAPTER_WEIGHTS} into {base}: domain.model = {str(to)!r}")


@contextmanager
def _alone(base: Path) -> Iterator[Path]:
    """A folder of links to the base's files without its adapters, which transformers would load."""
    with TemporaryDirectory() as made:
        for path in base.iterdir():
            if path.is_file() and not path.name.startswith("adapter_"):
                (Path(made) / path.name).symlink_to(path.resolve())
        yield Path(made)


@torch.no_grad()
def _write(plain: Path, adapters: Path, part: Path) -> None:
    """Merges and checks. Raises WeightsError."""
    from transformers import AutoModelForCausalLM

    model = load_weights(AutoModelForCausalLM, plain, TRANSFORMERS, dtype="auto").eval()
    ids = torch.arange(24).view(2, 12) % model.config.get_text_config().vocab_size
    bare = _logits(model, ids)
    with loading(adapters, "adapters"):
        adapted = _with_adapters(model, adapters)
    expected = _logits(adapted, ids)
    if torch.equal(expected, bare):
        raise WeightsError(f"{adapters}: the adapters change nothing; are they trained ones?")
    adapted.merge_and_unload(safe_merge=True).save_pretrained(part)
    again = load_weights(AutoModelForCausalLM, part, TRANSFORMERS, dtype="auto").eval()
    off = float((_logits(again, ids) - expected).norm() / expected.norm())
    if not off <= _OFF.get(again.dtype, _OFF_ROUNDED):
        raise WeightsError(
            f"{plain} with {adapters}: the merged model's logits are off by {off:.2g} of their "
            "size; merge them in float32 with peft (docs/guide/weights.md shows how)"
        )


def _with_adapters(model: Any, adapters: Path) -> Any:
    """peft's model with every tensor of the adapters' file. Raises WeightsError."""
    from peft import PeftModel, get_peft_model_state_dict

    adapted = PeftModel.from_pretrained(model, str(adapters)).eval()
    with open_tensors(adapters / ADAPTER_WEIGHTS) as file:
        there = set(file.keys())
    used = set(get_peft_model_state_dict(adapted))
    left, lacking = sorted(there - used), sorted(n for n in used - there if "lora_" in n)
    if left or lacking:
        raise WeightsError(
            f"{adapters / ADAPTER_WEIGHTS} does not fit the model: {len(lacking)} missing "
            f"{lacking[:3]}, {len(left)} unknown {left[:3]}; name the base that it was trained on"
        )
    return adapted


def _logits(model: Any, ids: Tensor) -> Tensor:
    found: Tensor = model(input_ids=ids, use_cache=False).logits.float()
    return found


def _others(base: Path) -> dict[str, Path]:
    """The tokenizer, templates, card and licence, by name. Raises ModelNotFoundError where one lies
    outside of the base."""
    found = {}
    for path in base.iterdir():
        is_weights = path.suffix in (".safetensors", ".bin", ".gguf") or ".index" in path.name
        if path.is_file() and not path.name.startswith("adapter_") and not is_weights:
            found[path.name] = real_file(path, base)
    return found


def _hash(folder: Path, pattern: str) -> str:
    return combined_sha256(sorted(folder.glob(pattern)), folder)
