"""Low-rank adapters of a peft folder (LoRA, arXiv 2106.09685), applied to a model of an engine.

They stay adapters: W x + alpha/rank · B A x is computed as in training, where a merged weight would
round otherwise. So the export of a run's adapters has the run's own numbers.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from pydantic import ValidationError
from torch import Tensor

from adrpo_scale.core.errors import ConfigError, ModelNotFoundError, WeightsError
from adrpo_scale.engines.base import Engine
from adrpo_scale.engines.spec import LoraConfig, ModelSpec
from adrpo_scale.hub.foreign import open_tensors, read_json
from adrpo_scale.hub.needs import HubNeed
from adrpo_scale.hub.weight_files import ADAPTER
from adrpo_scale.hub.weights import check_finite, combined_sha256, find_model

FILE, TEMPLATE = "adapter_model.safetensors", "chat_template.jinja"
FILES = (ADAPTER, FILE, TEMPLATE)
_PREFIX = "base_model.model."
_MERGE = "merge them (peft's `merge_and_unload`), save the result, and name that folder"
# Settings of peft beyond LoRA's own formula, and the values at which they change nothing.
_OTHERS: Mapping[str, tuple[Any, ...]] = {
    "use_dora": (None, False),
    "modules_to_save": (None, []),
    "rank_pattern": (None, {}),
    "alpha_pattern": (None, {}),
    "bias": (None, "none"),
    "lora_bias": (None, False),
    "fan_in_fan_out": (None, False),
    "layers_to_transform": (None, []),
    "layer_replication": (None, []),
    "exclude_modules": (None, []),
    "trainable_token_indices": (None, [], {}),
    "target_parameters": (None, []),
}


@dataclass(frozen=True)
class Adapters:
    """The adapters in a folder. targets: names of the adapted modules, or a regular expression for
    their full names."""

    folder: Path
    lora: LoraConfig
    targets: tuple[str, ...] | str

    @property
    def template(self) -> Path | None:
        """The chat template that was saved beside them."""
        path = self.folder / TEMPLATE
        return path if path.is_file() else None

    def sha256(self) -> str:
        """One hash of all files that answers depend on."""
        files = [self.folder / name for name in (ADAPTER, FILE)]
        return combined_sha256([*files, *filter(None, [self.template])], self.folder)

    def on(self, spec: ModelSpec) -> ModelSpec:
        """The model with adapters in the places of these."""
        return replace(spec, lora=self.lora, lora_targets=self.targets)

    @torch.no_grad()
    def fill(self, engine: Engine) -> None:
        """Gives the policy of `engine`, built from `on`, these adapters' values. Raises
        WeightsError where the file has others than the model's."""
        path, slices, places = self.folder / FILE, engine.trained_slices(), engine.places()
        with open_tensors(path) as file:
            stored = {_own_name(name): name for name in file.keys()}  # noqa: SIM118 (no mapping)
            missing, extra = sorted(slices.keys() - stored), sorted(stored.keys() - slices.keys())
            if missing or extra:
                raise WeightsError(
                    f"{path} does not fit the base: {len(missing)} tensors missing {missing[:3]}, "
                    f"{len(extra)} unknown {extra[:3]}; name the model that it was trained on "
                    f"(adapter_config.json says {self._stated_base()!r})"
                )
            for name, values in slices.items():
                whole, place = file.get_tensor(stored[name]), places[name]
                if tuple(whole.shape) != place.shape:
                    raise WeightsError(
                        f"{path}: {stored[name]} has shape {list(whole.shape)}, the base needs "
                        f"{list(place.shape)}; name the model that it was trained on"
                    )
                check_finite(stored[name], whole, self.folder)
                values.copy_(_part(whole, place.start, place.stop).view(values.shape))
        engine.publish()

    def _stated_base(self) -> Any:
        return read_json(self.folder / ADAPTER).get("base_model_name_or_path")


def _part(whole: Tensor, start: int, stop: int) -> Tensor:
    return whole.float().flatten()[start:stop]


def _own_name(stored: str) -> str:
    """The engine's name of a tensor, which has peft's name of the adapter in it."""
    inner = stored.removeprefix(_PREFIX)
    return inner.replace(".lora_A.weight", ".lora_A.default.weight").replace(
        ".lora_B.weight", ".lora_B.default.weight"
    )


def adapters_need(name: str, what: str) -> HubNeed:
    """What is read of a peft folder or hub id. what: the setting that names it."""
    return HubNeed(name, what, FILES, raw=True)


def read_adapters(name: str, what: str) -> Adapters:
    """The adapters of a peft folder or hub id; no tensor is read. what: the setting that names it.

    Raises ModelNotFoundError where there are none, ConfigError for adapters of another kind than
    LoRA's own.
    """
    folder = find_model(adapters_need(name, what))
    if not (folder / ADAPTER).is_file() or not (folder / FILE).is_file():
        raise ModelNotFoundError(
            f"{what} = {name!r}: expected {ADAPTER} and {FILE} in {folder}; adapters of an older "
            "peft are saved again with `save_pretrained(…, safe_serialization=True)`"
        )
    settings = read_json(folder / ADAPTER)
    kind = settings.get("peft_type")
    if kind != "LORA":
        raise ConfigError(f"{what} = {name!r} is of peft's type {kind!r}, expected LORA; {_MERGE}")
    changed = [key for key, usual in _OTHERS.items() if settings.get(key) not in usual]
    if changed:
        stated = ", ".join(f"{key} = {settings[key]!r}" for key in changed)
        raise ConfigError(f"{what} = {name!r} has {stated}, which only peft computes; {_MERGE}")
    rank, alpha, targets = (settings.get(k) for k in ("r", "lora_alpha", "target_modules"))
    try:
        # peft multiplies by alpha / √rank there (arXiv 2312.03732).
        factor = float(rank) ** 0.5 if settings.get("use_rslora") else 1.0  # type: ignore[arg-type]
        lora = LoraConfig(rank=rank, alpha=float(alpha) * factor)  # type: ignore[arg-type]
        named = targets if isinstance(targets, str) else tuple(sorted(targets))  # type: ignore[arg-type]
    except (TypeError, ValueError, ValidationError) as error:
        raise ConfigError(
            f"{what} = {name!r}: {ADAPTER} has r = {rank!r}, lora_alpha = {alpha!r} and "
            f"target_modules = {targets!r}, expected a rank, a number and names of modules"
        ) from error
    return Adapters(folder, lora, named)
