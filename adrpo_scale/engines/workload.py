"""What a run computes: models, and calls of them on N rows, from shapes alone.

A domain and the rewards state it (`Domain.workload`, `Reward.models`), and `plan` rehearses it. A
call does what the domain or reward does with a model, without what costs nothing.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from accelerate import init_empty_weights
from torch import Tensor, nn

from adrpo_scale.engines.loading import stored_tensors
from adrpo_scale.engines.planning import Phase
from adrpo_scale.engines.spec import LoraConfig, ModelSpec
from adrpo_scale.hub.shapes import SHAPES

Call = Callable[[Any, int], Any]  # (model, rows)


@dataclass(frozen=True)
class Frozen:
    """A model beside the policy. rows: how many at once, at most. phase: when it works; in a
    rollout after the samples are made, and before them with per_clip. placement: "rank 0" holds it
    while embeddings are made, before there is a policy. per_clip: its rows are clips, each encoded
    once where it is sampled from or trained on. host_seconds: of one core for a row, before the
    model sees it."""

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
    keeps, at most, by which setting."""

    tokens: int
    seconds: float
    bytes: int
    kept: int
    setting: str


@dataclass(frozen=True)
class Step:
    """One kind of pass of a rollout; times: how often for each chunk of samples. per_group: its
    rows are the chunk's different prompts. has_cache: what its call returns is a cache that grows
    with the sample."""

    name: str
    call: Call
    times: int
    per_group: bool = False
    has_cache: bool = False


@dataclass(frozen=True)
class Sampler:
    """Another program that samples in the policy's place. share: of the GPU's memory, which it
    takes for good."""

    name: str
    share: float


@dataclass(frozen=True)
class Workload:
    """spec, reference: as the domain gives them. train: the pass that is differentiated, a scalar.
    rollout: its steps. frozen: the domain's models beside the policy.

    evaluation: how many times as long sampling takes in an evaluation as in a rollout of as many
    samples. tokens: of one row, 0 where there are none. sampler: of rollouts, where the policy does
    not sample itself. assumptions: sentences for the plan's reader.
    """

    spec: ModelSpec
    reference: ModelSpec | None
    train: Call
    rollout: tuple[Step, ...]
    frozen: tuple[Frozen, ...]
    evaluation: float = 1.0
    tokens: int = 0
    clips: Clips | None = None
    sampler: Sampler | None = None
    assumptions: tuple[str, ...] = ()


def spec_of(base: ModelSpec) -> ModelSpec:
    """The same, with shapes in place of weights."""
    return replace(base, weights=ShapesOnly(base))


NO_WEIGHTS: Any = None  # replaced by `spec_of` before anyone reads it


def plain_spec(build: Callable[[], nn.Module]) -> ModelSpec:
    """A model that is never sharded."""
    return ModelSpec(build, NO_WEIGHTS, ())


def lora_of(config: Any) -> LoraConfig | None:
    """Of a domain's config: its adapters, None for full training."""
    return (config.lora or LoraConfig()) if config.train == "lora" else None


class ShapesOnly:
    """A `WeightSource` that has every tensor of a model, and nothing in them."""

    def __init__(self, spec_or_build: ModelSpec) -> None:
        self.folder = SHAPES
        self._spec = spec_or_build
        self._shapes: dict[str, torch.Size] = {}

    def names(self) -> set[str]:
        if not self._shapes:
            with init_empty_weights(include_buffers=False):
                model = self._spec.build()
            self._spec.tie(model)
            self._shapes = {name: tensor.shape for name, tensor in stored_tensors(model).items()}
        return set(self._shapes)

    def read(self, name: str, start: int = 0, stop: int | None = None) -> Tensor:
        shape = self._shapes[name]
        if not shape:
            return torch.empty(())
        return torch.empty(len(range(*slice(start, stop).indices(shape[0]))), *shape[1:])

    def shape(self, name: str) -> tuple[int, ...]:
        self.names()
        return tuple(self._shapes[name])

    def sha256(self) -> str:
        """Of names and shapes."""
        parts = sorted((name, self.shape(name)) for name in self.names())
        return hashlib.sha256(repr(parts).encode()).hexdigest()

    def close(self) -> None:
        pass
