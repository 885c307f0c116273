"""What a sweep costs, by a plan of each of its runs."""

from __future__ import annotations

import heapq
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fractions import Fraction

from adrpo_scale.cluster.plan.base import GIB, DoesNotFitError, Hardware, Plan
from adrpo_scale.cluster.plan.hardware import build_hardware
from adrpo_scale.core.disk_space import size_text
from adrpo_scale.run.config import RunConfig
from adrpo_scale.run.sweep import Sweep, toml
from adrpo_scale.run.sweep_runs import SweepRun, checked


@dataclass(frozen=True)
class SweepSize:
    """runs: how many. nodes: of each run. hours: until the last is done with `at_once` together.
    bytes: of the checkpoints of all runs."""

    runs: int
    nodes: Fraction
    gpu_hours: float
    at_once: int
    hours: float
    bytes: int


def size_of(
    runs: Sequence[SweepRun],
    hardware: Hardware,
    per_node: int,
    at_once: int,
    plan: Callable[[RunConfig, Hardware], Plan],
) -> SweepSize:
    """hardware: of one run. per_node: runs that share a node. plan: `planner.plan_of`; called once
    for runs that differ in their seed alone. Raises DoesNotFitError where a run does not fit."""
    plans: dict[str, Plan] = {}
    found = []
    for run in runs:
        config = run.loaded.config
        key = json.dumps(config.resolved() | {"seed": None}, sort_keys=True)
        if key not in plans:
            plans[key] = plan(config, hardware)
            _require_fit(run, plans[key])
        found.append(plans[key])
    return SweepSize(
        len(runs),
        Fraction(hardware.nodes, per_node),
        sum(one.gpu_hours for one in found),
        min(at_once, len(runs)),
        makespan([one.days * 24 for one in found], at_once),
        sum(one.disk_bytes or 0 for one in found),
    )


def priced(
    sweep: Sweep, machine: tuple[str, int, int, float], per_node: int = 1, at_once: int = 1
) -> str:
    """The line of a sweep. machine: of one run, as `build_hardware` takes it."""
    from transformers.utils import logging

    from adrpo_scale.cluster.plan.planner import plan_of

    logging.set_verbosity_error()  # transformers warns of configs; no warning concerns the plan
    return line(size_of(checked(sweep), build_hardware(*machine), per_node, at_once, plan_of))


def makespan(hours: Sequence[float], at_once: int) -> float:
    """Hours until the last of runs has ended that are begun in order, each when a place is free."""
    ends = [0.0] * min(at_once, max(1, len(hours)))
    for each in hours:
        heapq.heapreplace(ends, ends[0] + each)
    return max(ends)


def line(size: SweepSize) -> str:
    """`30 runs · 10 nodes each · 1,200 GPU-hours · 15 hours at 10 at once · 84.0 GB on disk`."""
    one = "1 run" if size.runs == 1 else f"{size.runs} runs"
    nodes = "1 node" if size.nodes == 1 else f"{size.nodes} {'nodes' if size.nodes > 1 else 'node'}"
    return " · ".join(
        [
            one,
            f"{nodes} each",
            f"{_amount(size.gpu_hours)} GPU-hours",
            f"{_amount(size.hours)} hours at {size.at_once} at once",
            f"{size_text(size.bytes)} on disk",
        ]
    )


def _amount(number: float) -> str:
    return f"{number:.2g}" if number < 10 else f"{number:,.0f}"


def _require_fit(run: SweepRun, plan: Plan) -> None:
    if plan.fits:
        return
    element = run.element
    sets = " ".join(f"--set '{key}={toml(value)}'" for key, value in element.settings.items())
    raise DoesNotFitError(
        f"element {element} does not fit: its {plan.peak.phase} needs "
        f"{plan.peak.bytes / GIB:.1f} GiB of a {plan.hardware.gpu.name}, which has "
        f"{plan.usable / GIB:.1f}; `adrpo-scale plan {element.base} {sets}` names the cheapest "
        "change"
    )
