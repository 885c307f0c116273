"""Host memory of the nodes, against what `plan` counts of it; on rank 0 alone."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from adrpo_scale.cluster.plan.host import HostItem, host_items, host_line, peak_of
from adrpo_scale.cluster.plan.memory import encoders_of
from adrpo_scale.cluster.preflight.base import Check
from adrpo_scale.cluster.preflight.estimate import trained_elements
from adrpo_scale.cluster.preflight.judging import alike, by_value, found
from adrpo_scale.cluster.preflight.node import Node
from adrpo_scale.core.disk_space import size_text
from adrpo_scale.core.errors import AdrpoError
from adrpo_scale.engines.spec import DTYPES
from adrpo_scale.run.registry import DOMAINS


def check_host(
    nodes: Sequence[Node], config: Any, ranks: tuple[int, int], bytes_to_cache: int | None
) -> Check:
    """Every node has the memory that loading and training take there beside the processes. A
    warning where one has not: the system decides who is ended. ranks: (of all nodes, of one).
    bytes_to_cache: of `cache_need`."""
    try:
        items = _items(config, ranks, embeds=bool(bytes_to_cache))
    except AdrpoError:
        return Check("memory", "what a node takes is known once the models are here")
    needed = peak_of(items)

    def lack(node: Node) -> str | None:
        free = node.facts.memory
        return (
            f"{size_text(free)} of host memory free" if free is not None and free < needed else None
        )

    remedy = max(items, key=lambda item: item.bytes).remedy if items else ""
    stated = host_line(items)
    findings = [
        found(bad, nodes, "warning", value, stated, remedy)
        for value, bad in alike(by_value(nodes, lack))
    ]
    free = [node.facts.memory for node in nodes if node.facts.memory is not None]
    least = f"at least {size_text(min(free))} free on a node; " if free else ""
    return Check("memory", f"{least}the run takes {stated}", tuple(findings))


def _items(config: Any, ranks: tuple[int, int], embeds: bool) -> list[HostItem]:
    """embeds: whether some prompt is not embedded yet."""
    encoders = 0
    if embeds:
        work = DOMAINS[config.domain.name].workload(config.domain, DTYPES[config.engine.dtype])
        encoders = encoders_of(config, work)
    return host_items(config, ranks, encoders, trained_elements(config) or 0)
