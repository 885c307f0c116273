"""The contract of an engine: everything that differs between sharding libraries.

A domain describes the model (`ModelSpec`). An engine decides where each parameter lives, gathers
parameters for sampling, runs backward and the optimizer step, and returns local slices. Domains
and algorithms never ask which engine they have.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from adrpo_scale.core.bounds import AT_ONCE, COUNT, NUMBER, REPEATS, SMALLEST, WAIT
from adrpo_scale.core.errors import ConfigError
from adrpo_scale.core.settings import REQUIRED, Section, setting
from adrpo_scale.core.types import FlatRange
from adrpo_scale.engines.spec import ModelSpec

_PIECE = 1 << 22  # elements that are squared at once: whole tensors may not fit a second time


class EngineConfig(Section):
    """The settings that every engine has."""

    name: str = setting(REQUIRED, "the engine: fsdp2, zero3, or an import path", effect="rounding")
    device: Literal["auto", "cpu", "cuda"] = setting(
        "auto", "auto: CUDA where there is one", effect="rounding"
    )
    dtype: Literal["float32", "bfloat16"] = setting(
        "float32", "compute precision; trained weights and reductions stay in float32"
    )
    activation_checkpointing: bool = setting(
        False,
        "recompute activations in backward: less memory, about a third more compute",
        effect="rounding",
    )
    deterministic: bool = setting(
        False, "only deterministic kernels: bit-equal reruns on CUDA, slower", effect="rounding"
    )
    threads: int = setting(
        1,
        "CPU threads per process where the model runs on the CPU",
        effect="rounding",
        ge=1,
        le=AT_ONCE,
    )
    timeout_seconds: float = setting(
        1800.0, "seconds that a collective may wait", effect="none", ge=1, le=WAIT
    )

    def torch_device(self) -> str:
        """ "cuda" or "cpu". ConfigError where "cuda" is set and torch sees no CUDA device."""
        if self.device == "auto":
            return "cuda" if torch.cuda.is_available() else "cpu"
        if self.device == "cuda" and not torch.cuda.is_available():
            raise ConfigError(
                'engine.device = "cuda", but torch sees no CUDA device here; '
                'use "auto" or "cpu", or check the driver with nvidia-smi'
            )
        return self.device


class OptimizerConfig(Section):
    """AdamW, and the division of a rollout into optimizer steps."""

    learning_rate: float = setting(1e-4, "peak learning rate", gt=0, le=NUMBER)
    beta1: float = setting(0.9, "AdamW's first moment decay", ge=0, lt=1)
    beta2: float = setting(0.999, "AdamW's second moment decay", ge=0, lt=1)
    eps: float = setting(1e-8, "AdamW's epsilon", ge=SMALLEST, le=NUMBER)
    weight_decay: float = setting(0.0, "decoupled weight decay", ge=0, le=NUMBER)
    schedule: Literal["constant", "linear", "cosine"] = setting(
        "constant", "learning rate after the warm-up: constant, or falling to 0 at the last step"
    )
    warmup_steps: int = setting(0, "optimizer steps of linear warm-up", ge=0, le=COUNT)
    max_grad_norm: float = setting(
        1.0, "gradients are clipped to this global norm", gt=0, le=NUMBER
    )
    updates: int = setting(1, "passes over each rollout", ge=1, le=REPEATS)
    minibatches: int = setting(1, "optimizer steps per pass", ge=1, le=REPEATS)
    micro_batch: int = setting(
        8, "rows of one forward and backward on one rank", effect="rounding", ge=1, le=COUNT
    )
    draws_per_sample: int = setting(
        1, "flow: (t, x0) draws per sample and update", paper="Algorithm 1", ge=1, le=REPEATS
    )

    def rate_at(self, step: int, total: int) -> float:
        """Learning rate of optimizer step `step` (counted from 0) of `total`."""
        if step < self.warmup_steps:
            return self.learning_rate * (step + 1) / self.warmup_steps
        if self.schedule == "constant":
            return self.learning_rate
        done = (step - self.warmup_steps) / max(1, total - self.warmup_steps)
        left = 1 - done if self.schedule == "linear" else (1 + math.cos(math.pi * done)) / 2
        return self.learning_rate * max(0.0, left)


@dataclass(frozen=True)
class StepResult:
    """grad_norm: global norm before clipping. skipped: no parameter was changed, because the norm
    was not finite or the engine refused it."""

    grad_norm: float
    skipped: bool


class Engine(ABC):
    """One policy and any number of frozen models, sharded; contract: the module docstring."""

    Config: ClassVar[Any]  # the engine's config class
    # "module:Class" of a subclass of `engines.planning.EnginePlan`; `plan` refuses an engine
    # without one.
    planned_by: ClassVar[str] = ""
    device: torch.device
    dtype: torch.dtype

    @abstractmethod
    def build_policy(self, spec: ModelSpec) -> nn.Module:
        """The model to train, sharded and loaded, with its optimizer."""

    @abstractmethod
    def build_frozen(self, spec: ModelSpec) -> nn.Module:
        """A further model without gradients, sharded and loaded: the reference of full training."""

    @abstractmethod
    def sampling(self, *models: nn.Module) -> AbstractContextManager[None]:
        """A context in which every rank holds the models' parameters whole.

        They are gathered once at entry and freed at exit. Gradients are off. Ranks may call
        forward a different number of times.
        """

    @abstractmethod
    def backward(self, loss: Tensor, *, last: bool) -> None:
        """Adds the gradients of `loss`, a sum already divided by the global count of rows.

        last: True at the last micro-batch of an optimizer step. Before it an engine need not
        communicate.
        """

    @abstractmethod
    def step(self, learning_rate: float) -> StepResult:
        """Sums gradients over ranks, clips them, steps the optimizer and clears gradients.

        Where the global norm is not finite, every rank skips the optimizer step.
        """

    @abstractmethod
    def trained_slices(self) -> dict[str, Tensor]:
        """This rank's float32 part of every trained parameter, by name.

        The model takes in-place changes over at the next `publish`.
        """

    @abstractmethod
    def publish(self) -> None:
        """Copies in-place changes of `trained_slices` to the parameters of the forward pass."""

    def fill(self, model: nn.Module, slices: Mapping[str, Tensor]) -> None:
        """Copies this rank's float32 slices to frozen parameters, rounded to their dtype.

        model: the policy, or one of `build_frozen`. slices: by name of a frozen parameter of
        `model`; each is the part that `trained_slices` has of a trained parameter of that shape.
        Call it outside of `sampling`, and not between the passes of an optimizer step. Only a
        moving reference needs it; ConfigError of an engine without it.
        """
        raise ConfigError(
            f"the engine {type(self).__name__} cannot fill frozen parameters, which a moving "
            'reference needs: give it the method `fill`, or set reference.kind = "base"'
        )

    @abstractmethod
    def places(self) -> dict[str, FlatRange]:
        """The range of each of `trained_slices` in its whole flattened tensor, by name."""

    @abstractmethod
    def moments(self) -> dict[str, dict[str, Tensor]]:
        """Adam's moments `exp_avg` and `exp_avg_sq`, each by parameter name and shaped like
        `trained_slices`. Callers write to them in place. They exist before the first step."""

    @torch.no_grad()
    def moment_sums(self) -> dict[int, tuple[float, float]]:
        """The sums of exp_avg² and of exp_avg_sq over this rank's elements, of replicas over those
        of the first, by the number of Adam's steps that the elements have had."""
        moments, places, steps = self.moments(), self.places(), self.optimizer_steps()
        names: dict[int, list[str]] = {}
        for name, place in places.items():
            if place.replica == 0:
                names.setdefault(steps[name], []).append(name)
        return {
            step: sums_of(
                [moments["exp_avg"][name] for name in those],
                [moments["exp_avg_sq"][name] for name in those],
            )
            for step, those in names.items()
        }

    @abstractmethod
    def optimizer_steps(self) -> dict[str, int]:
        """Adam's number of steps of each trained parameter, by name."""

    @abstractmethod
    def set_optimizer_steps(self, steps: Mapping[str, int]) -> None:
        """Sets the numbers that `optimizer_steps` returns."""


def sums_of(first: list[Tensor], second: list[Tensor]) -> tuple[float, float]:
    """(sum of squares of `first`, sum of `second`), of pieces in float32 and of these in float64.
    `_foreach_norm` adds up in another way, and is wrong by 4e-4 on half a million elements."""
    squares = torch.stack([piece.square().sum() for piece in _pieces(first)])
    sums = torch.stack([piece.sum() for piece in _pieces(second)])
    total, other = torch.stack([squares.double().sum(), sums.double().sum()]).tolist()
    return total, other


def _pieces(tensors: list[Tensor]) -> Iterator[Tensor]:
    return (piece for tensor in tensors for piece in tensor.flatten().split(_PIECE))
