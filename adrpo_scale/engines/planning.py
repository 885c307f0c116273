"""What an engine answers `plan`: what a rank holds, what travels, and what would need less memory.

`Engine.planned_by` names the class that answers by its import path: it needs things (fake tensors,
a fake process group) that no training run should load. An engine that names none is refused there
(`engine_plan`), because any other engine's answers would be wrong without a word.
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
    """What a change costs, from cheap to dear: nothing but a little speed (smaller pieces), things
    computed again, more that travels, precision, host memory at every step, more nodes."""

    PIECES = 0
    AGAIN = 1
    TRAVEL = 2
    PRECISION = 3
    HOST = 4
    NODES = 5


@dataclass(frozen=True)
class Rung:
    """A change that may help where a run does not fit, and that changes nothing that is learned.
    settings: of `--set`; phases: whose memory it lowers; nodes: how many times as many."""

    settings: tuple[str, ...]
    phases: tuple[Phase, ...]
    price: Price
    nodes: int = 1


def halves(setting: str, size: int, *phases: Phase) -> list[Rung]:
    """Half of a number of things worked on at once, and one of them."""
    sizes = [size // 2, 1] if size > 3 else [1] if size > 1 else []
    return [Rung((f"{setting}={each}",), phases, Price.PIECES) for each in sizes]


@dataclass(frozen=True)
class Ranks:
    """world processes, per_node of them on a node, seen by `rank`."""

    world: int
    per_node: int
    rank: int = 0


@dataclass(frozen=True)
class Shards:
    """What the fullest rank holds of one model, in bytes.

    parameters: what forward computes with, and of FSDP2's sharded trained parameters the float32
    ones that it is cast from. masters: further float32 copies. gradients: after a backward that
    communicates. moments: Adam's. slices: what is trained, once, in float32. whole: the model
    gathered, in the compute precision. largest: its largest sharding unit gathered. trained:
    elements that are trained, of the whole model. degree: over how many ranks a parameter is
    spread; copies: how many times.
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
    """What an engine does with a model, on tensors without memory (`fake.without_memory`)."""

    @abstractmethod
    def build_policy(self, spec: ModelSpec) -> nn.Module:
        """As `Engine.build_policy`."""

    @abstractmethod
    def backward(self, loss: Tensor, *, last: bool) -> None:
        """As `Engine.backward`."""

    @abstractmethod
    def drop_gradients(self) -> None:
        """As after an optimizer step."""


class EnginePlan(ABC):
    """The answers of one engine, for one run's settings."""

    def __init__(self, config: Any, optimizer: OptimizerConfig) -> None:
        """config: the engine's."""
        self.config, self.optimizer = config, optimizer

    @property
    def sharding(self) -> str:
        """How parameters are spread, for the plan's reader; "" where there is one way alone."""
        return ""

    @property
    @abstractmethod
    def spreads_over_all(self) -> bool:
        """Whether more nodes leave each rank with less of the model."""

    @property
    @abstractmethod
    def reduces_every_micro_batch(self) -> bool:
        """Whether gradients travel after every micro-batch, not once for an optimizer step."""

    @abstractmethod
    def shards(self, spec: ModelSpec, ranks: Ranks, *, trained: bool) -> Shards:
        """Of the policy (trained), or of a frozen model. Outside of `fake.without_memory`."""

    @abstractmethod
    def rehearsal(self, ranks: Ranks) -> AbstractContextManager[Rehearsed]:
        """With whose update activations and operators are counted."""

    @abstractmethod
    def rehearsed_shards(self, engine: Rehearsed, policy: nn.Module) -> Shards | None:
        """The policy's, where its rehearsal has found them out already; else None."""

    @abstractmethod
    def update_memory(self, policy: Shards, peak: int, gradients: int, world: int) -> Working:
        """Of the rehearsed update. peak: its bytes; gradients: those of them that wait for the next
        micro-batch."""

    @abstractmethod
    def sharding_rungs(self) -> Iterator[Rung]:
        """Other ways to shard, from cheap to dear."""

    def host_rungs(self) -> Iterator[Rung]:
        """What can lie in host memory."""
        yield from ()

    def rungs(self) -> Iterator[Rung]:
        """Everything of the engine's own section that would need less memory."""
        config: EngineConfig = self.config
        if not config.activation_checkpointing:
            yield Rung(("engine.activation_checkpointing=true",), ("update",), Price.AGAIN)
        yield from self.sharding_rungs()
        if config.dtype == "float32":
            yield Rung(("engine.dtype=bfloat16",), EVERY, Price.PRECISION)
        yield from self.host_rungs()

    def __str__(self) -> str:
        """For the plan's reader."""
        config = self.config
        shard = f", {self.sharding}" if self.sharding else ""
        checkpointing = ", activation checkpointing" if config.activation_checkpointing else ""
        return f"{config.name}{shard}, {config.dtype}{checkpointing}"


@dataclass(frozen=True)
class Working:
    """Bytes of an update. waiting: gradients between micro-batches; working: everything else that
    comes and goes."""

    waiting: int
    working: int


def engine_plan(
    engine: type[Engine], config: EngineConfig, optimizer: OptimizerConfig
) -> EnginePlan:
    """Raises ConfigError for an engine that gives `plan` no answers."""
    module, _, name = engine.planned_by.partition(":")
    if not name:
        raise ConfigError(
            f"plan does not know how the engine {getattr(config, 'name', engine.__name__)!r} "
            f'shards: set {engine.__name__}.planned_by to "module:Class", a subclass of '
            "adrpo_scale.engines.planning.EnginePlan that answers for it; training does not need it"
        )
    found: type[EnginePlan] = getattr(importlib.import_module(module), name)
    return found(config, optimizer)
