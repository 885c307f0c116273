"""What a plan is made of. Bytes and seconds are of one GPU unless it says otherwise."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from adrpo_scale.core.errors import ConfigError
from adrpo_scale.engines.planning import Phase

Basis = Literal["predicted", "measured"]

GIB = 2**30


class DoesNotFitError(ConfigError):
    """The run needs more memory than a GPU has; the message names the cheapest change."""


class ForeignTrialError(ConfigError):
    """What `--trial` names is no trial, or one of another model or algorithm."""


@dataclass(frozen=True)
class Gpu:
    """name: as `--gpu` takes it. memory: bytes that a process can have. flops: dense FLOP/s by
    precision, from the data sheet. hbm: bytes/s of its memory. link: bytes/s to its neighbours
    inside the node, one way. efficiency: assumed share of `flops` that large matrix products of
    this package reach. overhead: assumed seconds that one operator costs at least."""

    name: str
    memory: int
    flops: Mapping[str, float]
    hbm: float
    link: float
    efficiency: float
    overhead: float


@dataclass(frozen=True)
class Hardware:
    """network: bytes/s of one node to the others, one way."""

    gpu: Gpu
    nodes: int
    gpus_per_node: int
    network: float

    @property
    def world(self) -> int:
        return self.nodes * self.gpus_per_node


@dataclass(frozen=True)
class MemoryItem:
    """bytes of one thing, in each phase in which it is there."""

    name: str
    bytes: int
    phases: Sequence[Phase]


@dataclass(frozen=True)
class Traffic:
    """Bytes of one phase of one iteration: inside: that one GPU receives from its node's others;
    across: that one node receives from the other nodes."""

    phase: Phase
    inside: float
    across: float


@dataclass(frozen=True)
class PhaseTime:
    """Seconds of one iteration (`load`: of a start). compute and communicate overlap in `update`
    alone. basis: "measured" where a trial has corrected it."""

    phase: Phase
    compute: float
    communicate: float
    seconds: float
    basis: Basis = "predicted"


@dataclass(frozen=True)
class PhaseMemory:
    """Peak of one phase, without `reserve`."""

    phase: Phase
    bytes: int
    basis: Basis = "predicted"


@dataclass(frozen=True)
class Change:
    """Settings for `--set`, or more nodes, after which a run fits."""

    settings: Sequence[str]
    nodes: int | None
    peak: int
    usable: int


@dataclass(frozen=True)
class Plan:
    """Everything that `plan` says of a config on a machine.

    usable: bytes that a GPU's peak may come to, after `reserve` (CUDA context, NCCL) and what the
    allocator cannot hand out. largest_micro_batch, largest_rollout_chunk: None where nothing fits.
    rows: samples that the fullest rank makes in an iteration. micro_batches: of one optimizer step.
    unit: rows that stay together, the least micro-batch. not_counted: what of the run takes memory
    and time that are in none of the figures.
    """

    config: str
    digest: str
    model: str
    trained: str
    algorithm: str
    engine: str
    hardware: Hardware
    iterations: int
    samples: int
    rows: int
    micro_batches: int
    unit: int
    items: Sequence[MemoryItem]
    memory: Sequence[PhaseMemory]
    reserve: int
    usable: int
    traffic: Sequence[Traffic]
    times: Sequence[PhaseTime]
    largest_micro_batch: int | None
    largest_rollout_chunk: int | None
    time_limit_hours: float | None = None
    jobs: int | None = None
    change: Change | None = None
    not_counted: Sequence[str] = ()
    warnings: Sequence[str] = ()
    assumptions: Sequence[str] = field(default=())

    @property
    def peak(self) -> PhaseMemory:
        return max(self.memory, key=lambda m: m.bytes)

    @property
    def fits(self) -> bool:
        return self.peak.bytes <= self.usable

    def memory_of(self, phase: Phase) -> int:
        return next((m.bytes for m in self.memory if m.phase == phase), 0)

    def seconds_of(self, phase: Phase) -> float:
        return next((t.seconds for t in self.times if t.phase == phase), 0.0)

    @property
    def iteration_seconds(self) -> float:
        """Without loading; an evaluation counts with its share."""
        return sum(t.seconds for t in self.times if t.phase != "load")

    @property
    def days(self) -> float:
        return (self.iterations * self.iteration_seconds + self.seconds_of("load")) / 86400

    @property
    def gpu_hours(self) -> float:
        return self.days * 24 * self.hardware.world
