"""The contract between an engine and `plan`: memory of a rank, communication, and advice.

`Engine.planned_by` names an engine's `EnginePlan` by import path, because it needs modules (fake
tensors, a fake process group) that a training run should not load. `engine_plan` refuses an engine
that names none: another engine's numbers would be wrong without notice.
"""

from __future__ import annotations

import importlib
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from enum import IntEnum
from typing import Any, Literal

from torch import Tensor, nn

from adrpo_scale.core.errors import ConfigError
from adrpo_scale.engines.base import Engine, EngineConfig, OptimizerConfig
from adrpo_scale.engines.spec import ModelSpec

Phase = Literal["load", "rollout", "reward", "update", "evaluation"]
EVERY: tuple[Phase, ...] = ("load", "rollout", "reward", "update", "evaluation")
RUNNING = EVERY[1:]


class Price(IntEnum):
    """The cost of a change, ascending: smaller pieces (a little speed), recomputation, more
    communication, lower precision, host memory used at every step, more nodes."""

    PIECES = 0
    AGAIN = 1
    TRAVEL = 2
    PRECISION = 3
    HOST = 4
    NODES = 5


@dataclass(frozen=True)
class Rung:
    """One step of advice: a change of settings that may make a run fit, with the same learning.

    settings: arguments of `--set`. phases: those whose memory it lowers. nodes: factor on the
    number of nodes.
    """

    settings: tuple[str, ...]
    phases: tuple[Phase, ...]
    price: Price
    nodes: int = 1


def halves(setting: str, size: int, *phases: Phase) -> list[Rung]:
    """Rungs that lower `setting`, a number of items worked on at once, to its half and to 1."""
    sizes = [size // 2, 1] if size > 3 else [1] if size > 1 else []
    return [Rung((f"{setting}={each}",), phases, Price.PIECES) for each in sizes]


@dataclass(frozen=True)
class Ranks:
    """A launch of `world` processes, `per_node` on each node, seen from `rank`."""

    world: int
    per_node: int
    rank: int = 0


@dataclass(frozen=True)
class Shards:
    """The part of one model on the fullest rank; bytes, except for the last three.

    parameters: those that forward computes with; FSDP2's sharded trained parameters in the float32
    from which forward casts them.
    masters: further float32 copies. gradients: after a backward that communicates.
    moments: Adam's. slices: this rank's trained parameters, once, in float32.
    whole: the gathered model, in the compute precision. largest: its largest gathered unit.
    trained: trained elements of the whole model. degree: ranks over which a parameter is sharded.
    copies: replicas of the sharded model.
    """

    parameters: int
    masters: int
    gradients: int
    moments: int
    slices: int
    whole: int
    largest: int
    trained: int
    degree: int
    copies: int


class Rehearsed(ABC):
    """An engine on fake tensors (`fake.without_memory`)."""

    @abstractmethod
    def build_policy(self, spec: ModelSpec) -> nn.Module:
        """As `Engine.build_policy`."""

    @abstractmethod
    def backward(self, loss: Tensor, *, last: bool) -> None:
        """As `Engine.backward`."""

    @abstractmethod
    def drop_gradients(self) -> None:
        """Clears gradients, as an optimizer step does."""


class EnginePlan(ABC):
    """One engine's answers to `plan`, for one run's settings."""

    def __init__(self, config: Any, optimizer: OptimizerConfig) -> None:
        """config: the engine's, an instance of its `Config`."""
        self.config, self.optimizer = config, optimizer

    @property
    def sharding(self) -> str:
        """The sharding as `plan` prints it; "" for an engine with one way only."""
        return ""

    @property
    @abstractmethod
    def spreads_over_all(self) -> bool:
        """True where each rank holds less of the model with more nodes."""

    @property
    @abstractmethod
    def reduces_every_micro_batch(self) -> bool:
        """True where gradients are reduced after every micro-batch, not once per step."""

    @abstractmethod
    def shards(self, spec: ModelSpec, ranks: Ranks, *, trained: bool) -> Shards:
        """Shards of the policy (trained) or of a frozen model; called outside of
        `fake.without_memory`."""

    @abstractmethod
    def rehearsal(self, ranks: Ranks) -> AbstractContextManager[Rehearsed]:
        """A context with the engine on whose update `plan` counts activations and operators."""

    @abstractmethod
    def rehearsed_shards(self, engine: Rehearsed, policy: nn.Module) -> Shards | None:
        """The policy's shards, where its rehearsal has already measured them; else None."""

    @abstractmethod
    def update_memory(self, policy: Shards, peak: int, gradients: int, world: int) -> Working:
        """Memory of the rehearsed update. peak: its bytes. gradients: bytes among them that wait
        for the next micro-batch."""

    @abstractmethod
    def sharding_rungs(self) -> Iterator[Rung]:
        """Other ways to shard, the cheapest first."""

    def host_rungs(self) -> Iterator[Rung]:
        """Settings that move memory to the host."""
        yield from ()

    def rungs(self) -> Iterator[Rung]:
        """All changes of the section [engine] that lower memory."""
        config: EngineConfig = self.config
        if not config.activation_checkpointing:
            yield Rung(("engine.activation_checkpointing=true",), ("update",), Price.AGAIN)
        yield from self.sharding_rungs()
        if config.dtype == "float32":
            yield Rung(("engine.dtype=bfloat16",), EVERY, Price.PRECISION)
        yield from self.host_rungs()

    def __str__(self) -> str:
        """The engine as `plan` prints it."""
        config = self.config
        shard = f", {self.sharding}" if self.sharding else ""
        checkpointing = ", activation checkpointing" if config.activation_checkpointing else ""
        return f"{config.name}{shard}, {config.dtype}{checkpointing}"


@dataclass(frozen=True)
class Working:
    """Bytes of an update. waiting: gradients between micro-batches. working: other temporary
    memory, mostly activations."""

    waiting: int
    working: int


def engine_plan(
    engine: type[Engine], config: EngineConfig, optimizer: OptimizerConfig
) -> EnginePlan:
    """The `EnginePlan` of an engine. Raises ConfigError where `planned_by` is empty."""
    module, _, name = engine.planned_by.partition(":")
    if not name:
        raise ConfigError(
            f"plan does not know how the engine {getattr(config, 'name', engine.__name__)!r} "
            f'shards: set {engine.__name__}.planned_by to "module:Class", a subclass of '
            "adrpo_scale.engines.planning.EnginePlan that answers for it; training does not need it"
        )
    found: type[EnginePlan] = getattr(importlib.import_module(module), name)
    return found(config, optimizer)
