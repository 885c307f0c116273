"""Comparison of nodes, and findings about the differing ones; pure functions."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Literal

from adrpo_scale.cluster.preflight.base import Finding
from adrpo_scale.cluster.preflight.node import Node

Severity = Literal["fault", "warning"]


def found(
    bad: Sequence[Node],
    nodes: Sequence[Node],
    severity: Severity,
    value: str,
    expectation: str,
    remedy: str,
    hardware: bool = False,
) -> Finding:
    """A finding about the nodes `bad` among `nodes`. Where all nodes are bad, others would probably
    be no better, so none is excluded, except for faults of the hardware."""
    scope: Literal["node", "run"] = "node" if hardware or len(bad) < len(nodes) else "run"
    names = tuple(dict.fromkeys(node.name for node in bad))
    return Finding(severity, value, expectation, remedy, names, scope)


def alike(bad: Mapping[str, list[Node]]) -> Iterable[tuple[str, list[Node]]]:
    """(value, nodes with it), the most frequent value first."""
    return sorted(bad.items(), key=lambda item: -len(item[1]))


def by_value(nodes: Iterable[Node], value: Callable[[Node], str | None]) -> dict[str, list[Node]]:
    """The nodes by their value, without those whose value is None."""
    groups: dict[str, list[Node]] = {}
    for node in nodes:
        stated = value(node)
        if stated is not None:
            groups.setdefault(stated, []).append(node)
    return groups


def majority(groups: Mapping[str, list[Node]]) -> tuple[list[Node], list[Node]]:
    """(nodes with the most frequent value, other nodes); of equally frequent ones, rank 0's."""
    usual = max(groups.values(), key=lambda group: (len(group), -group[0].number))
    return usual, [node for group in groups.values() if group is not usual for node in group]
