"""What a domain asks an engine to build: the model's class, its weights, its adapters."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from pydantic import model_validator
from torch import nn

from adrpo_scale.core.settings import Section, setting
from adrpo_scale.hub.weights import WeightSource

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


class LoraConfig(Section):
    """Low-rank adapters (peft). The reference is then the same model with adapters off."""

    rank: int = setting(32, "rank r of the adapters", ge=1)
    alpha: float = setting(32.0, "scaling is alpha / rank", gt=0)
    targets: list[str] = setting([], "module names to adapt; empty: the domain's attention layers")
    dropout: float = setting(0.0, "refused above 0", ge=0)

    @model_validator(mode="after")
    def _dropout_is_zero(self) -> LoraConfig:
        if self.dropout > 0:
            raise ValueError(
                f"dropout = {self.dropout}: policy and reference must see the same function, and a "
                "resumed run the same randomness; set it to 0"
            )
        return self


@dataclass(frozen=True)
class ModelSpec:
    """What a domain asks an engine to build.

    build: makes the model of the real library's class; called with parameters on the meta device.
    weights: where its tensors are read from. blocks: class names of the repeated blocks, each a
    sharding unit. units: further sharding units, each one module or several that share weights.
    tie: makes modules share the weights that they share; called whenever parameters were replaced.
    lora: settings of adapters, or None for full training. lora_targets: names of the modules that
    are adapted, or one pattern of their whole names.
    checkpoint_activations: switches the library's own activation checkpointing on.
    """

    build: Callable[[], nn.Module]
    weights: WeightSource
    blocks: tuple[str, ...]
    units: Callable[[Any], list[list[nn.Module]]] = field(default=lambda model: [])
    tie: Callable[[Any], None] = field(default=lambda model: None)
    lora: LoraConfig | None = None
    lora_targets: tuple[str, ...] | str = ()
    checkpoint_activations: Callable[[Any], None] = field(default=lambda model: None)
