"""The contract of an engine: everything that differs between sharding back-ends stays behind it.

A domain says what to build (`ModelSpec`); an engine decides where each parameter lives, gathers
parameters for sampling, runs backward and the optimizer step, and hands out local slices. Neither
domains nor algorithms ever ask which engine they have.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from adrpo_scale.core.errors import ConfigError
from adrpo_scale.core.settings import REQUIRED, Section, setting
from adrpo_scale.core.types import FlatRange
from adrpo_scale.engines.spec import ModelSpec


class EngineConfig(Section):
    """What every engine has."""

    name: str = setting(REQUIRED, "which engine; your own by import path", effect="rounding")
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
        1, "CPU threads per process where the model runs on the CPU", effect="rounding", ge=1
    )
    timeout_seconds: float = setting(1800.0, "how long a collective may wait", effect="none", gt=0)

    def torch_device(self) -> str:
        if self.device == "auto":
            return "cuda" if torch.cuda.is_available() else "cpu"
        if self.device == "cuda" and not torch.cuda.is_available():
            raise ConfigError(
                'engine.device = "cuda", but torch sees no CUDA device here; '
                'use "auto" or "cpu", or check the driver with nvidia-smi'
            )
        return self.device


class OptimizerConfig(Section):
    """AdamW, and how a rollout is cut into optimizer steps."""

    learning_rate: float = setting(1e-4, "peak learning rate", gt=0)
    beta1: float = setting(0.9, "AdamW's first moment decay", ge=0, lt=1)
    beta2: float = setting(0.999, "AdamW's second moment decay", ge=0, lt=1)
    eps: float = setting(1e-8, "AdamW's epsilon", gt=0)
    weight_decay: float = setting(0.0, "decoupled weight decay", ge=0)
    schedule: Literal["constant", "linear", "cosine"] = setting(
        "constant", "learning rate after the warm-up: constant, or down to 0 at the last step"
    )
    warmup_steps: int = setting(0, "optimizer steps of linear warm-up", ge=0)
    max_grad_norm: float = setting(1.0, "global gradient norm is clipped to this", gt=0)
    updates: int = setting(1, "passes over each rollout", ge=1)
    minibatches: int = setting(1, "optimizer steps per pass", ge=1)
    micro_batch: int = setting(
        8, "rows of one forward and backward on one rank", effect="rounding", ge=1
    )
    draws_per_sample: int = setting(
        1, "flow: (t, x0) draws per sample and update", paper="Algorithm 1", ge=1
    )

    def rate_at(self, step: int, total: int) -> float:
        """Learning rate of optimizer step `step` (from 0) of `total`."""
        if step < self.warmup_steps:
            return self.learning_rate * (step + 1) / self.warmup_steps
        if self.schedule == "constant":
            return self.learning_rate
        done = (step - self.warmup_steps) / max(1, total - self.warmup_steps)
        left = 1 - done if self.schedule == "linear" else (1 + math.cos(math.pi * done)) / 2
        return self.learning_rate * max(0.0, left)


@dataclass(frozen=True)
class StepResult:
    """grad_norm: global norm before clipping. skipped: it was not finite, nothing was changed."""

    grad_norm: float
    skipped: bool


class Engine(ABC):
    """See the module docstring. One engine holds one policy and any number of frozen models."""

    Config: ClassVar[Any]  # the engine's config class
    # "module:Class", an `engines.planning.EnginePlan`: the engine's answers to `plan`, which
    # refuses an engine without any.
    planned_by: ClassVar[str] = ""
    device: torch.device
    dtype: torch.dtype

    @abstractmethod
    def build_policy(self, spec: ModelSpec) -> nn.Module:
        """The model to train, sharded and loaded, with its optimizer."""

    @abstractmethod
    def build_frozen(self, spec: ModelSpec) -> nn.Module:
        """A second model without gradients, sharded and loaded: the reference of full training."""

    @abstractmethod
    def sampling(self, *models: nn.Module) -> AbstractContextManager[None]:
        """Inside, the models' parameters are whole on every rank: gathered once, freed after.

        Gradients are off; ranks may call forward a different number of times.
        """

    @abstractmethod
    def backward(self, loss: Tensor, *, last: bool) -> None:
        """Adds the gradients of `loss`, already divided by the global count.

        last: True at the last micro-batch of an optimizer step; until then no rank communicates.
        """

    @abstractmethod
    def step(self, learning_rate: float) -> StepResult:
        """Sums gradients over ranks, clips, steps, clears gradients. A global norm that is not
        finite skips the step on every rank alike."""

    @abstractmethod
    def trained_slices(self) -> dict[str, Tensor]:
        """This rank's float32 part of every trained parameter, by name; writing to it in place
        and calling `publish` changes the model."""

    @abstractmethod
    def publish(self) -> None:
        """Makes in-place changes of `trained_slices` take effect in the forward pass."""

    @abstractmethod
    def places(self) -> dict[str, FlatRange]:
        """Where each of `trained_slices` lies in its whole tensor, by name."""

    @abstractmethod
    def moments(self) -> dict[str, dict[str, Tensor]]:
        """`exp_avg` and `exp_avg_sq`: Adam's moments by name, laid out like `trained_slices` and
        written to in place. They exist from the start."""

    @abstractmethod
    def optimizer_steps(self) -> dict[str, int]:
        """How often Adam has stepped each trained parameter, by name."""

    @abstractmethod
    def set_optimizer_steps(self, steps: Mapping[str, int]) -> None:
        """The reverse of `optimizer_steps`."""
