"""A plan as text and tables, and as JSON."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from rich.table import Table
from rich.text import Text

from adrpo_scale.cluster.plan.base import GIB, PhaseMemory, Plan
from adrpo_scale.cluster.plan.host import host_line, peak_of
from adrpo_scale.core.console import console
from adrpo_scale.core.disk_space import size_text
from adrpo_scale.engines.planning import EVERY


def facts(plan: Plan) -> dict[str, Any]:
    """JSON-able: every field of the plan, and its derived figures."""
    return {
        **asdict(plan),
        "fits": plan.fits,
        "peak": asdict(plan.peak),
        "iteration_seconds": plan.iteration_seconds,
        "days": plan.days,
        "gpu_hours": plan.gpu_hours,
        "host_bytes": peak_of(plan.host),
    }


def show(plan: Plan) -> None:
    """Prints the plan as text and tables."""
    _print(f"{plan.config or 'plan'}-{plan.digest}: {plan.model}, {plan.trained}, {plan.algorithm}")
    _print(f"engine: {plan.engine}")
    _print(_machine(plan))
    console.print(memory_table(plan))
    console.print(phase_table(plan))
    _print(_limits(plan))
    _print(_total(plan))
    _print(f"host memory of a node, beside its processes: {host_line(plan.host)}")
    if plan.disk_bytes:
        _print(f"disk: checkpoints take up to {size_text(plan.disk_bytes)}")
    if plan.cache_bytes:
        _print(
            f"disk: the first start adds {size_text(plan.cache_bytes)} of prompt embeddings to the "
            "cache ($ADRPO_CACHE), which later runs share"
        )
    for text in plan.assumptions:
        _print(f"assumed: {text}")
    for text in plan.not_counted:
        _print(f"not counted: {text}")
    for text in plan.warnings:
        _print(f"warning: {text}")


def _machine(plan: Plan) -> str:
    hardware = plan.hardware
    nodes = "1 node" if hardware.nodes == 1 else f"{hardware.nodes} nodes"
    return (
        f"machine: {nodes} of {hardware.gpus_per_node} {hardware.gpu.name} = {hardware.world} "
        f"processes; {plan.samples} samples an iteration, at most {plan.rows} a process"
    )


def memory_table(plan: Plan) -> Table:
    """Memory by purpose and phase."""
    phases = [phase for phase in EVERY if any(m.phase == phase for m in plan.memory)]
    unit = "GiB" if plan.peak.bytes > GIB / 10 else "MiB"
    table = Table(f"{unit} of the fullest GPU", *phases, title="memory")
    for column in table.columns[1:]:
        column.justify = "right"
    for item in plan.items:
        cells = [_amount(item.bytes, unit) if phase in item.phases else "" for phase in phases]
        table.add_row(item.name, *cells)
    table.add_section()
    peaks = {m.phase: m for m in plan.memory}
    highest = [_peak(plan, peaks[phase], unit) for phase in phases]
    table.add_row("peak", *highest, style="bold")
    room = f"room on one {plan.hardware.gpu.name}, without CUDA's own"
    table.add_row(room, *[_amount(plan.usable, unit)] * len(phases))
    return table


def _peak(plan: Plan, peak: PhaseMemory, unit: str) -> Text:
    text = _amount(peak.bytes, unit) + "*" * (peak.basis == "measured")
    return Text(text, "red" if peak.bytes > plan.usable else "")


def phase_table(plan: Plan) -> Table:
    """Seconds and traffic of one iteration, by phase."""
    names = ("seconds", "of them computing", "moving data", "GB in a node", "GB between nodes")
    table = Table("one iteration", *names, title="time and traffic")
    for column in table.columns[1:]:
        column.justify = "right"
    for time in plan.times:
        moved = [t for t in plan.traffic if t.phase == time.phase]
        inside, across = sum(t.inside for t in moved), sum(t.across for t in moved)
        mark = "*" if time.basis == "measured" else ""
        name = {
            "load": "load (once a start)",
            "evaluation": "evaluation (its share)",
            "save": "save (its share)",
        }
        cells = [f"{time.seconds:.3g}{mark}", f"{time.compute:.3g}", f"{time.communicate:.3g}"]
        cells += [f"{inside / 1e9:.3g}" if inside else "", f"{across / 1e9:.3g}" if across else ""]
        table.add_row(name.get(time.phase, time.phase), *cells)
    table.add_section()
    table.add_row("an iteration", f"{plan.iteration_seconds:.3g}", style="bold")
    return table


def _limits(plan: Plan) -> str:
    rows, chunk = plan.largest_micro_batch, plan.largest_rollout_chunk
    text = (
        f"largest that fit: optimizer.micro_batch = {_or_none(rows)}, domain.rollout_chunk = "
        f"{_or_none(chunk)} (a process has no more rows than that, or no more room)"
    )
    if plan.chunk_is_auto:
        text += f'; "auto" → {plan.rollout_chunk}'
    return text


def _or_none(value: int | None) -> str:
    return "none" if value is None else str(value)


def _total(plan: Plan) -> str:
    text = (
        f"{plan.iterations} iterations: {_duration(plan.days)}, {_hours(plan.gpu_hours)} GPU-hours"
    )
    if plan.jobs is not None:
        text += (
            f"; {plan.jobs} job{'s' * (plan.jobs > 1)} of at most {plan.time_limit_hours:g} hours"
        )
    bases = [t.basis for t in plan.times] + [m.basis for m in plan.memory]
    measured = "measured" in bases
    return text + ("; * scaled by a trial's measurement" if measured else "")


def _duration(days: float) -> str:
    if days >= 1:
        return f"{days:.1f} days"
    return f"{days * 24:.1f} hours" if days * 24 >= 1 else f"{days * 1440:.1f} minutes"


def _hours(hours: float) -> str:
    return f"{hours:,.0f}" if hours >= 10 else f"{hours:.2g}"


def _amount(count: float, unit: str) -> str:
    return f"{count / (GIB if unit == 'GiB' else GIB / 1024):.2f}"


def _print(text: str) -> None:
    console.print(text, highlight=False, soft_wrap=True)
