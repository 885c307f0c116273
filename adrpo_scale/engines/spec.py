"""A model as a domain describes it to an engine: its class, its weights, its adapters."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from pydantic import model_validator
from torch import nn

from adrpo_scale.core.bounds import NUMBER, SIDE
from adrpo_scale.core.settings import Section, setting
from adrpo_scale.hub.weights import WeightSource

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


class LoraConfig(Section):
    """Low-rank adapters (peft). The reference is then the same model with adapters off."""

    rank: int = setting(32, "rank r of the adapters", ge=1, le=SIDE)
    alpha: float = setting(32.0, "the adapters' output is scaled by alpha / rank", gt=0, le=NUMBER)
    targets: list[str] = setting([], "names of the adapted modules; empty: the domain's choice")
    dropout: float = setting(0.0, "dropout of the adapters; only 0 is accepted", ge=0, le=1)

    @model_validator(mode="after")
    def _dropout_is_zero(self) -> LoraConfig:
        if self.dropout > 0:
            raise ValueError(
                f"dropout = {self.dropout}: policy and reference must be the same function, and a "
                "resumed run must draw the same numbers; set it to 0"
            )
        return self


@dataclass(frozen=True)
class ModelSpec:
    """A model for an engine to build, load and shard.

    build: constructs the model of the library's own class; called with parameters on the meta
    device.
    weights: the source of its tensors.
    blocks: class names of the repeated blocks; each block is a sharding unit.
    units: further sharding units, each a list of one module, or of several that share weights.
    tie: ties shared weights again; called whenever parameters were replaced.
    lora: settings of adapters, or None for full training.
    lora_targets: names of the adapted modules, or one regular expression for their full names.
    reference_adapter: whether each adapted layer holds a second, frozen adapter.
    checkpoint_activations: switches on the library's own activation checkpointing.
    """

    build: Callable[[], nn.Module]
    weights: WeightSource
    blocks: tuple[str, ...]
    units: Callable[[Any], list[list[nn.Module]]] = field(default=lambda model: [])
    tie: Callable[[Any], None] = field(default=lambda model: None)
    lora: LoraConfig | None = None
    lora_targets: tuple[str, ...] | str = ()
    reference_adapter: bool = False
    checkpoint_activations: Callable[[Any], None] = field(default=lambda model: None)
