"""The parts of a plan. Bytes and seconds are those of one GPU unless stated otherwise."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from adrpo_scale.cluster.plan.host import HostItem
from adrpo_scale.core.errors import ConfigError
from adrpo_scale.engines.planning import Phase

Basis = Literal["predicted", "measured"]

GIB = 2**30


class DoesNotFitError(ConfigError):
    """The run needs more memory than a GPU has; the message names the cheapest change."""


class ForeignTrialError(ConfigError):
    """The file of `--trial` is no trial, or that of another model or algorithm."""


@dataclass(frozen=True)
class Gpu:
    """A kind of GPU. name: as in `--gpu`. memory: bytes available to a process. flops: dense FLOP/s
    by dtype, from the data sheet. hbm: bytes/s of its memory. link: bytes/s to other GPUs in the
    node, one way. efficiency: assumed share of `flops` that large matrix products of this package
    reach. overhead: assumed least seconds of one operator."""

    name: str
    memory: int
    flops: Mapping[str, float]
    hbm: float
    link: float
    efficiency: float
    overhead: float


@dataclass(frozen=True)
class Hardware:
    """The machines of a job. network: bytes/s of one node to the others, one way."""

    gpu: Gpu
    nodes: int
    gpus_per_node: int
    network: float

    @property
    def world(self) -> int:
        return self.nodes * self.gpus_per_node


@dataclass(frozen=True)
class MemoryItem:
    """Memory for one purpose. phases: those in which it is allocated."""

    name: str
    bytes: int
    phases: Sequence[Phase]


@dataclass(frozen=True)
class Traffic:
    """Bytes of one phase of one iteration. inside: received by one GPU from the others in its node;
    across: received by one node from the other nodes."""

    phase: Phase
    inside: float
    across: float


@dataclass(frozen=True)
class PhaseTime:
    """Seconds of one phase of an iteration (`load`: of a start; `save`: the share of a checkpoint
    that training waits for). `compute` and `communicate` overlap in `update` alone. basis:
    "measured" where a trial has scaled the prediction."""

    phase: Phase | Literal["save"]
    compute: float
    communicate: float
    seconds: float
    basis: Basis = "predicted"


@dataclass(frozen=True)
class PhaseMemory:
    """Peak memory of one phase, without `Plan.reserve`."""

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
    """The plan of a config on a machine.

    usable: bytes that a GPU's peak may reach, after `reserve` (CUDA context, NCCL) and
    fragmentation. largest_micro_batch, largest_rollout_chunk: None where nothing fits.
    rollout_chunk: the one that is planned with; chunk_is_auto: the config leaves the choice to the
    run, which chooses it on such a machine.
    rows: samples that the fullest rank generates in an iteration. micro_batches: those of one
    optimizer step. cache_bytes: what the first start adds to the cache on disk;
    None: nothing, or not known here. disk_bytes: of the checkpoints that the run keeps. host: host
    memory of a node. unit: rows that stay together, the least micro-batch.
    not_counted: parts of the run whose memory and time are in none of the figures.
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
    rollout_chunk: int
    chunk_is_auto: bool
    time_limit_hours: float | None = None
    jobs: int | None = None
    change: Change | None = None
    cache_bytes: int | None = None
    disk_bytes: int | None = None
    host: Sequence[HostItem] = ()
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

    def seconds_of(self, phase: Phase | Literal["save"]) -> float:
        return next((t.seconds for t in self.times if t.phase == phase), 0.0)

    @property
    def iteration_seconds(self) -> float:
        """Seconds of an iteration without loading, with an evaluation's share."""
        return sum(t.seconds for t in self.times if t.phase != "load")

    @property
    def days(self) -> float:
        return (self.iterations * self.iteration_seconds + self.seconds_of("load")) / 86400

    @property
    def gpu_hours(self) -> float:
        return self.days * 24 * self.hardware.world
