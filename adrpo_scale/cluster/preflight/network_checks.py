"""Checks of the measured all-reduces; pure functions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from statistics import median

from adrpo_scale.cluster.preflight.bandwidth import Sums
from adrpo_scale.cluster.preflight.base import Check, Finding, listed
from adrpo_scale.cluster.preflight.judging import found
from adrpo_scale.cluster.preflight.node import Node
from adrpo_scale.core.disk_space import size_text

SLOW = 0.5  # share of the median below which a node is named
_NETWORK = (
    "set NCCL_SOCKET_IFNAME and GLOO_SOCKET_IFNAME to the interface between the nodes, or exclude "
    "the node; NCCL_DEBUG=INFO says more"
)
_INSIDE = "exclude the node, and report it; NCCL_DEBUG=INFO says more, NCCL_P2P_DISABLE=1 may help"


def check_within(nodes: Sequence[Node], sums: Sequence[Sums]) -> Check:
    """All-reduce among the processes of each node works."""
    of_node = {rank: node for node in nodes for rank in node.ranks}
    findings = []
    for one in (one for one in sums if not one.is_sound):
        node = of_node[one.members[0]]
        value = f"{one.backend} all-reduce within the node: {_what(one)}"
        findings.append(found([node], nodes, "fault", value, "right sums", _INSIDE, hardware=True))
    for backend, own in _by_backend(sums).items():
        rates = {of_node[one.members[0]].number: one.bandwidth for one in own if one.bandwidth}
        findings += _slow(nodes, backend, rates, "within the node", _INSIDE)
    return Check("all-reduce", _stated("within each node", sums), tuple(findings))


def check_pairs(nodes: Sequence[Node], sums: Sequence[Sums]) -> Check:
    """All-reduce between neighbours on the ring of nodes works. A node is bad where all its pairs
    fail, slow where even its fastest pair is."""
    of_node = {rank: node for node in nodes for rank in node.ranks}
    findings = []
    for backend, own in _by_backend(sums).items():
        broken = [one for one in own if not one.is_sound]
        pairs = {node.number: [o for o in own if node.ranks[0] in o.members] for node in nodes}
        bad = [n for n in nodes if pairs[n.number] and not any(o.is_sound for o in pairs[n.number])]
        if len(bad) == len(nodes) > 2:  # the nodes share the cause
            value = f"{backend} all-reduce between any two neighbours: {_what(broken[0])}"
            findings.append(found(bad, nodes, "fault", value, "right sums", _NETWORK))
            continue
        for node in bad:
            what = _what(_most_telling(pairs[node.number], node))
            value = f"{backend} all-reduce with its neighbours: {what}"
            findings.append(found([node], nodes, "fault", value, "right sums", _NETWORK, True))
        for one in broken:
            ends = [of_node[rank] for rank in one.members]
            if not any(node in bad for node in ends):
                value = (
                    f"{backend} all-reduce between {ends[0].name} and {ends[1].name}: {_what(one)}"
                )
                findings.append(found(ends, nodes, "fault", value, "right sums", _NETWORK, True))
        rates = {
            number: max(rate for o in seen if (rate := o.bandwidth))
            for number, seen in pairs.items()
            if any(o.bandwidth for o in seen)
        }
        findings += _slow(nodes, backend, rates, "with its neighbours", _NETWORK)
    return Check("all-reduce", _stated("between neighbours", sums), tuple(findings))


def _most_telling(pairs: Sequence[Sums], node: Node) -> Sums:
    """The first pair in which the node itself reports an error, without its neighbour's report."""
    for one in pairs:
        own = {rank: why for rank, why in (one.failed or {}).items() if rank in node.ranks}
        if own:
            return replace(one, failed=own)
    return pairs[0]


def check_all(nodes: Sequence[Node], sums: Sequence[Sums]) -> Check:
    """All-reduce of all processes works; run after all nodes and pairs were sound."""
    findings = []
    for one in (one for one in sums if not one.is_sound):
        value = f"{one.backend} all-reduce of all {len(one.members)} processes: {_what(one)}"
        expectation = "right sums, as within each node and between neighbours"
        findings.append(Finding("fault", value, expectation, _NETWORK))
    return Check("all-reduce", _stated("all processes", sums), tuple(findings))


def _what(one: Sums) -> str:
    if one.wrong is not None:
        return one.wrong
    failed: Mapping[int, str] = one.failed or {}
    return listed([f"rank {rank}: {why}" for rank, why in failed.items()], 2)


def _by_backend(sums: Sequence[Sums]) -> dict[str, list[Sums]]:
    return {name: [o for o in sums if o.backend == name] for name in {o.backend for o in sums}}


def _slow(
    nodes: Sequence[Node], backend: str, rates: Mapping[int, float], where: str, remedy: str
) -> list[Finding]:
    """Warnings about nodes below SLOW of the median; none for two nodes, which have no usual
    rate."""
    if len(rates) < 3:
        return []
    usual = median(rates.values())
    return [
        found(
            [node],
            nodes,
            "warning",
            f"{backend} all-reduce {where}: {rate_text(rates[node.number])}",
            f"at least {SLOW:.0%} of the median, {rate_text(usual)}",
            remedy,
        )
        for node in nodes
        if rates.get(node.number, usual) < SLOW * usual
    ]


def rate_text(rate: float) -> str:
    return f"{size_text(rate)}/s"


def _stated(where: str, sums: Sequence[Sums]) -> str:
    """`within each node: gloo 1.2 to 1.4 GB/s`."""
    parts = []
    for backend, own in sorted(_by_backend(sums).items()):
        rates = [one.bandwidth for one in own if one.bandwidth]
        if rates:
            low, high = rate_text(min(rates)), rate_text(max(rates))
            parts.append(f"{backend} {low}" + (f" to {high}" if low != high else ""))
    return f"{where}: {', '.join(parts) or 'nothing to measure'}"
