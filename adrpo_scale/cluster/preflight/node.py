"""Surveys: a process's facts about itself and its node, sent to rank 0 as JSON."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pydantic import TypeAdapter

from adrpo_scale.core.errors import given
from adrpo_scale.hub.needs import HubNeed


@dataclass(frozen=True)
class Request:
    """The survey that rank 0 requests of every process.

    folder: the run folder, or its nearest parent that rank 0 sees. token: the name of a file that
    rank 0 wrote there and that contains its own name; None where writing failed. device: the
    setting `engine.device`. config: the run's TOML file. needs: the run's models. skipped: names of
    checks. caches: the run uses the cache;
    cache_token: as token, there.
    """

    folder: str
    token: str | None
    device: str
    config: str
    needs: tuple[HubNeed, ...] = ()
    skipped: frozenset[str] = frozenset()
    caches: bool = False
    cache_token: str | None = None


@dataclass(frozen=True)
class FolderFacts:
    """A node's view of the run folder. unseen: reason why the token is not seen, or None.
    unwritable: reason why no file can be written, or None."""

    unseen: str | None = None
    unwritable: str | None = None


@dataclass(frozen=True)
class ModelFacts:
    """A node's copies of the models. missing: a line for each missing model. fingerprint: equal for
    equal revisions and file sizes. damaged: a line for each file that is there and cannot be
    read."""

    missing: tuple[str, ...] = ()
    fingerprint: str = ""
    damaged: tuple[str, ...] = ()


@dataclass(frozen=True)
class Limits:
    """Limits of a node. shared_memory: bytes free in /dev/shm, None without it. open_files: of one
    process. locked_memory: bytes; -1: no limit. infiniband: there is an adapter, which needs locked
    memory."""

    shared_memory: int | None = None
    open_files: int = -1
    locked_memory: int = -1
    infiniband: bool = False


@dataclass(frozen=True)
class CudaFacts:
    """CUDA on a node. available: torch can compute on GPUs; count: the GPUs that it sees. why: its
    warnings where it cannot. wheel: torch's CUDA version; None for a build without CUDA. granted:
    number of GPUs that Slurm assigned; 0 where unstated."""

    available: bool = False
    count: int = 0
    why: str = ""
    wheel: str | None = None
    driver: str | None = None
    granted: int = 0


@dataclass(frozen=True)
class GpuFacts:
    """The GPU of one process. used: bytes in use while this process holds only its context. users:
    other processes on it, where `nvidia-smi` names them."""

    index: int
    name: str = ""
    total: int = 0
    used: int = 0
    users: tuple[str, ...] = ()
    error: str | None = None


@dataclass(frozen=True)
class NodeFacts:
    """The facts of a node, from its local rank 0. scratch: (folder of temporary files, bytes
    free). cache: its view of the cache, where the run uses it. memory: free bytes of the host's;
    None where the system does not say."""

    environment: Mapping[str, Any]
    folder: FolderFacts | None = None
    models: ModelFacts | None = None
    scratch: tuple[str, int] | None = None
    limits: Limits | None = None
    cuda: CudaFacts | None = None
    cache: FolderFacts | None = None
    memory: int | None = None


@dataclass(frozen=True)
class Survey:
    """The survey of one process. number: its node's. node: only from local rank 0."""

    rank: int
    number: int
    name: str
    node: NodeFacts | None = None
    gpu: GpuFacts | None = None


@dataclass(frozen=True)
class Node:
    """A node as rank 0 knows it, from the surveys of its processes."""

    number: int
    name: str
    ranks: tuple[int, ...]
    facts: NodeFacts
    gpus: tuple[GpuFacts, ...] = ()


_REQUEST, _SURVEY = TypeAdapter(Request), TypeAdapter(Survey)


def to_data(value: Request | Survey) -> dict[str, Any]:
    """`value` as JSON-able data."""
    adapter: TypeAdapter[Any] = _REQUEST if isinstance(value, Request) else _SURVEY
    return adapter.dump_python(value, mode="json")


def to_request(data: Mapping[str, Any]) -> Request:
    return _REQUEST.validate_python(data)


def to_survey(data: Mapping[str, Any]) -> Survey:
    return _SURVEY.validate_python(data)


def to_nodes(surveys: Sequence[Survey]) -> list[Node]:
    """The nodes, in order. Every node's local rank 0 must be among the surveys."""
    members: dict[int, list[Survey]] = {}
    for survey in sorted(surveys, key=lambda survey: survey.rank):
        members.setdefault(survey.number, []).append(survey)
    return [_to_node(number, found) for number, found in sorted(members.items())]


def _to_node(number: int, surveys: Sequence[Survey]) -> Node:
    first = next(survey for survey in surveys if survey.node is not None)
    ranks = tuple(survey.rank for survey in surveys)
    gpus = tuple(survey.gpu for survey in surveys if survey.gpu is not None)
    return Node(number, first.name, ranks, given(first.node), gpus)
