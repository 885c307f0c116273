"""Checks that evaluations share: their models, their prompts, and room for their results."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from adrpo_scale.cluster.preflight import checks
from adrpo_scale.cluster.preflight.base import Check, Finding, counted
from adrpo_scale.cluster.preflight.judging import alike, by_value, found
from adrpo_scale.cluster.preflight.node import Node
from adrpo_scale.core.disk_space import free_space, shortage, size_text
from adrpo_scale.core.errors import AdrpoError
from adrpo_scale.evaluation.needs import bytes_here
from adrpo_scale.hub.needs import HubNeed


def prompts_fault(text: str) -> Finding:
    return Finding("fault", text, "prompt files whose rows can all be read", "the line says where")


def models_check(
    nodes: Sequence[Node], needs: Sequence[HubNeed], fault: Callable[[], str | None] | None
) -> Check:
    """fault: gives why a model that is here cannot be used, or None; asked once all are here."""
    check = checks.check_models(nodes, len(needs))
    if check.findings or fault is None:
        return check
    why = fault()
    if why is None:
        return check
    expected, remedy = "a model that can be judged", "the line says what helps"
    return checks.check_models(nodes, len(needs), [Finding("fault", why, expected, remedy)])


def space_check(folder: Path, size: int, files: int) -> Check:
    """Room for the results: `size` bytes in `files` files."""
    try:
        space = free_space(folder)
    except AdrpoError as error:
        remedy = "choose another folder for the results"
        return Check("space", "", (Finding("fault", str(error), "a number of bytes", remedy),))
    free = f"{size_text(space.free_bytes)} free by the {space.source}"
    stated = f"{free}; at most {size_text(size)} in {counted(files, 'file')} of results"
    lack = shortage(space, size, files)
    if lack is None:
        return Check("space", stated)
    remedy = "make room, or choose another folder for the results"
    return Check("space", "", (Finding("fault", f"{folder}: {free}", lack, remedy),))


def memory_check(nodes: Sequence[Node], needs: Sequence[HubNeed]) -> Check:
    """Host memory for the largest model, which passes through it while it is loaded."""
    largest = max(map(bytes_here, needs), default=0)

    def lack(node: Node) -> str | None:
        free = node.facts.memory
        is_short = free is not None and free < largest
        return f"{size_text(free)} of host memory free" if free is not None and is_short else None

    stated = f"{size_text(largest)} of the largest model"
    findings = [
        found(bad, nodes, "warning", value, stated, "ask for more memory: sbatch --mem")
        for value, bad in alike(by_value(nodes, lack))
    ]
    return Check("memory", f"loading takes {stated}", tuple(findings))
