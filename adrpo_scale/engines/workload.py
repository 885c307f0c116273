"""The workload of a run, from shapes alone: its models, and calls of them on N rows.

A domain and the rewards state it (`Domain.workload`, `Reward.models`), and `plan` rehearses it. A
call repeats the domain's or reward's use of a model, without the parts of negligible cost.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor, nn

from adrpo_scale.engines.loading import stored_tensors
from adrpo_scale.engines.planning import Phase
from adrpo_scale.engines.spec import LoraConfig, ModelSpec
from adrpo_scale.hub.shapes import SHAPES

Call = Callable[[Any, int], Any]  # (model, rows)


@dataclass(frozen=True)
class Frozen:
    """A frozen model beside the policy.

    dtype: of its parameters. placement: on every rank whole, sharded like the policy, or whole
    while prompts are embedded ("at loading"), before the policy exists.
    phase: the phase in which it runs: in a rollout after sampling, or before it with per_clip.
    rows: largest number of rows of one call.
    per_clip: its rows are clips, each encoded once on every rank that samples or trains on it.
    host_seconds: CPU seconds of one core to prepare a row for the model.
    in_training: False for a reward's that evaluations alone call.
    """

    name: str
    spec: ModelSpec
    dtype: torch.dtype
    placement: Literal["replicated", "sharded", "at loading"]
    phase: Phase
    rows: int
    call: Call
    per_clip: bool = False
    host_seconds: float = 0.0
    in_training: bool = True


@dataclass(frozen=True)
class Clips:
    """Encoded audio clips. tokens, seconds, bytes: of one clip. kept: largest number of bytes of
    clips that a rank keeps, limited by `setting`."""

    tokens: int
    seconds: float
    bytes: int
    kept: int
    setting: str


@dataclass(frozen=True)
class Step:
    """One kind of forward pass of a rollout.

    times: passes for each chunk of samples. per_group: its rows are the chunk's different prompts.
    has_cache: its call returns a cache that grows with the sample. is_captured: its kernels are
    launched as one graph. found: makes what a pass finds
    there already, with the same arguments; the work of it is not the pass's.
    """

    name: str
    call: Call
    times: int
    per_group: bool = False
    has_cache: bool = False
    is_captured: bool = False
    found: Call | None = None


@dataclass(frozen=True)
class Sampler:
    """Another program that draws the samples. share: the part of the GPU's memory that it takes
    at its start and keeps."""

    name: str
    share: float


@dataclass(frozen=True)
class Workload:
    """The models and passes of a run.

    spec, reference: the domain's models. train: the differentiated pass; returns a scalar.
    exact: the same where the exact KL is asked for; None in a domain without it.
    rollout: its passes. frozen: the domain's models beside the policy.
    evaluation: time of sampling in an evaluation, relative to a rollout of as many samples.
    tokens: of one row; 0 for a domain without tokens.
    sampler: the program that draws rollouts, where it is not the policy.
    assumptions: sentences that `plan` prints.
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
    exact: Call | None = None
    assumptions: tuple[str, ...] = ()


def spec_of(base: ModelSpec) -> ModelSpec:
    """The spec with shapes in place of weights."""
    return replace(base, weights=ShapesOnly(base))


NO_WEIGHTS: Any = None  # `spec_of` replaces it before it is read


def plain_spec(build: Callable[[], nn.Module]) -> ModelSpec:
    """The spec of a model that is never sharded."""
    return ModelSpec(build, NO_WEIGHTS, ())


def lora_of(config: Any) -> LoraConfig | None:
    """The adapters of a domain's config; None for full training."""
    return (config.lora or LoraConfig()) if config.train == "lora" else None


class ShapesOnly:
    """A `WeightSource` of a model's names and shapes, whose values are undefined."""

    def __init__(self, spec_or_build: ModelSpec) -> None:
        self.folder = SHAPES
        self._spec = spec_or_build
        self._shapes: dict[str, torch.Size] = {}

    def names(self) -> set[str]:
        if not self._shapes:
            from accelerate import init_empty_weights

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
        """Hash of names and shapes."""
        parts = sorted((name, self.shape(name)) for name in self.names())
        return hashlib.sha256(repr(parts).encode()).hexdigest()

    def close(self) -> None:
        pass
