"""What a process says of itself and of its node: plain data, sent to rank 0 as JSON."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pydantic import TypeAdapter

from adrpo_scale.hub.needs import HubNeed


@dataclass(frozen=True)
class Request:
    """What every process is to look at.

    folder: the run folder, or the nearest parent that rank 0 sees. token: the name of a file that
    rank 0 wrote there, which contains its own name; None where it could not. device: the setting
    `engine.device`. config: the run's TOML file. needs: the models of the run.
    """

    folder: str
    token: str | None
    device: str
    config: str
    needs: tuple[HubNeed, ...] = ()
    skipped: frozenset[str] = frozenset()


@dataclass(frozen=True)
class FolderFacts:
    """unseen: why the token is not seen, None if it is. unwritable: why no file can be made."""

    unseen: str | None = None
    unwritable: str | None = None


@dataclass(frozen=True)
class ModelFacts:
    """missing: a line each. fingerprint: equal where revisions and sizes are."""

    missing: tuple[str, ...] = ()
    fingerprint: str = ""


@dataclass(frozen=True)
class Limits:
    """Of a node: bytes free in /dev/shm (None: it is not there), open files of a process, bytes of
    locked memory (-1: no limit), and whether there is an InfiniBand adapter that needs them."""

    shared_memory: int | None = None
    open_files: int = -1
    locked_memory: int = -1
    infiniband: bool = False


@dataclass(frozen=True)
class CudaFacts:
    """Of a node: whether torch can compute on its GPUs, and how many it sees. why: torch's words
    where it cannot. wheel: the CUDA version of torch, None for a build without. granted: the GPUs
    that Slurm gave, 0 where it says nothing."""

    available: bool = False
    count: int = 0
    why: str = ""
    wheel: str | None = None
    driver: str | None = None
    granted: int = 0


@dataclass(frozen=True)
class GpuFacts:
    """Of one process's GPU. used: bytes that were taken when this process had taken nothing but its
    own context. users: other processes on it, where `nvidia-smi` names them."""

    index: int
    name: str = ""
    total: int = 0
    used: int = 0
    users: tuple[str, ...] = ()
    error: str | None = None


@dataclass(frozen=True)
class NodeFacts:
    """What local rank 0 says for its node. scratch: (folder of temporary files, bytes free)."""

    environment: Mapping[str, Any]
    folder: FolderFacts | None = None
    models: ModelFacts | None = None
    scratch: tuple[str, int] | None = None
    limits: Limits | None = None
    cuda: CudaFacts | None = None


@dataclass(frozen=True)
class Survey:
    """What one process says. node: None but from local rank 0."""

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
    """JSON-able."""
    adapter: TypeAdapter[Any] = _REQUEST if isinstance(value, Request) else _SURVEY
    return adapter.dump_python(value, mode="json")


def to_request(data: Mapping[str, Any]) -> Request:
    return _REQUEST.validate_python(data)


def to_survey(data: Mapping[str, Any]) -> Survey:
    return _SURVEY.validate_python(data)


def to_nodes(surveys: Sequence[Survey]) -> list[Node]:
    """The nodes, in their order. Every node's local rank 0 must be among the surveys."""
    members: dict[int, list[Survey]] = {}
    for survey in sorted(surveys, key=lambda survey: survey.rank):
        members.setdefault(survey.number, []).append(survey)
    return [_to_node(number, found) for number, found in sorted(members.items())]


def _to_node(number: int, surveys: Sequence[Survey]) -> Node:
    first = next(survey for survey in surveys if survey.node is not None)
    assert first.node is not None
    ranks = tuple(survey.rank for survey in surveys)
    gpus = tuple(survey.gpu for survey in surveys if survey.gpu is not None)
    return Node(number, first.name, ranks, first.node, gpus)
