"""Surveys of nodes, written by hand, for the tests of what `preflight` makes of them."""

from __future__ import annotations

from adrpo_scale.cluster.preflight.base import (
    bad_nodes,
    exit_code,
)
from adrpo_scale.cluster.preflight.node import (
    CudaFacts,
    GpuFacts,
    Node,
    NodeFacts,
)

ENVIRONMENT = {
    "commit": "a" * 40,
    "versions": {"python": "3.11", "torch": "2.15"},
    "cuda": "13.2",
    "driver": "590.1",
    "gpu": None,
}
CUDA = CudaFacts(available=True, count=2, wheel="13.2", driver="590.1", granted=2)
GPU = GpuFacts(0, "A6000", 48 << 30, 500_000_000)


def node(number, processes=2, environment=None, gpus=(), **facts):
    name = f"n{number}"
    ranks = tuple(range(number * processes, (number + 1) * processes))
    environment = ENVIRONMENT | (environment or {}) | {"host": name}
    return Node(number, name, ranks, NodeFacts(environment, **facts), tuple(gpus))


def nodes_with(name, values, **others):
    return [node(k, **{name: value}, **others) for k, value in enumerate(values)]


def outcome(check):
    """(exit code, nodes to exclude, state)"""
    return exit_code([check]), bad_nodes([check]), check.state
