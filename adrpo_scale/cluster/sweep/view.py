"""The state of a sweep in one line, and as JSON."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from adrpo_scale.cluster.status.state import judge
from adrpo_scale.cluster.sweep.state import ORDER, TROUBLE, ElementState

_LISTED = 4  # elements of one state whose reasons are told


def line(states: Sequence[ElementState]) -> str:
    """`21 done · 6 running · 1 limit (#17 beta0=0.16 seed=2: divergence, iteration 64)`."""
    parts = []
    for state in ORDER:
        those = [one for one in states if one.state == state]
        if those:
            reasons = _reasons([(one, one.why) for one in those]) if state in TROUBLE else ""
            parts.append(f"{len(those)} {state}{reasons}")
    lost = [(one, one.lost) for one in states if one.lost]
    if lost:
        parts.append(f"{len(lost)} started again{_reasons(lost)}")
    return " · ".join(parts)


def _reasons(those: Sequence[tuple[ElementState, str]]) -> str:
    told = [f"{one.element}: {why}" for one, why in those[:_LISTED]]
    rest = those[_LISTED:]
    more = [f"and {len(rest)} more"] if rest else []
    return f" ({'; '.join([*told, *more])})"


def facts(states: Sequence[ElementState]) -> list[dict[str, Any]]:
    """A JSON object for each element; status: as `status --json` has it, None without a folder."""
    return [
        {
            "element": one.element.number,
            "base": one.element.base,
            "settings": dict(one.element.settings),
            "run": None if one.run is None else str(one.run),
            "state": one.state,
            "why": one.why,
            "lost": one.lost,
            "status": None if one.facts is None else asdict(judge(one.facts)),
        }
        for one in states
    ]
