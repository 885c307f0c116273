"""What a run computes: models, and calls of them on N rows, from shapes alone.

A call does what the domain or reward does with a model, without what costs nothing.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import nn

from adrpo_scale.cluster.plan.base import Phase
from adrpo_scale.cluster.plan.shapes import ShapesOnly
from adrpo_scale.engines.spec import LoraConfig, ModelSpec
from adrpo_scale.run.config import RunConfig

Call = Callable[[Any, int], Any]  # (model, rows)


@dataclass(frozen=True)
class Frozen:
    """A model beside the policy. rows: how many at once, at most. phase: when it works. placement:
    "rank 0" holds it while embeddings are made, before there is a policy. per_clip: its rows are
    clips, each encoded once where it is sampled from or trained on. host_seconds: of one core for a
    row, before the model sees it."""

    name: str
    spec: ModelSpec
    dtype: torch.dtype
    placement: Literal["replicated", "sharded", "rank 0"]
    phase: Phase
    rows: int
    call: Call
    per_clip: bool = False
    host_seconds: float = 0.0


@dataclass(frozen=True)
class Clips:
    """What is heard. tokens, seconds, bytes: of one clip, encoded. kept: bytes of them that a rank
    keeps, at most."""

    tokens: int
    seconds: float
    bytes: int
    kept: int


@dataclass(frozen=True)
class Step:
    """One kind of pass of a rollout; times: how often for each chunk of samples. per_group: its
    rows are the chunk's different prompts."""

    name: str
    call: Call
    times: int
    per_group: bool = False


@dataclass(frozen=True)
class Workload:
    """spec, reference: as the domain gives them. train: the pass that is differentiated, a scalar.
    rollout: its steps. tokens: of one row, 0 where there are none. head_bytes: of the logits that
    are there at once."""

    spec: ModelSpec
    reference: ModelSpec | None
    train: Call
    rollout: tuple[Step, ...]
    frozen: tuple[Frozen, ...]
    tokens: int = 0
    head_bytes: int = 0
    clips: Clips | None = None
    not_counted: tuple[str, ...] = ()


def spec_of(base: ModelSpec) -> ModelSpec:
    """The same, with shapes in place of weights."""
    return replace(base, weights=ShapesOnly(base))


NO_WEIGHTS: Any = None  # replaced by `spec_of` before anyone reads it


def lora_of(config: RunConfig) -> LoraConfig | None:
    return (config.domain.lora or LoraConfig()) if config.domain.train == "lora" else None


def plain_spec(build: Callable[[], nn.Module]) -> ModelSpec:
    """A model that is never sharded."""
    return ModelSpec(build, NO_WEIGHTS, ())
