"""The cheapest change after which a run fits, found by planning with it.

Changes are tried from the one that costs least (nothing but a little speed) to the one that costs
most (more nodes); first each alone, then one after the other. What is learned is never changed.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any

from adrpo_scale.cluster.plan.base import Change, DoesNotFitError, Hardware, Phase, Plan
from adrpo_scale.core.errors import ConfigError
from adrpo_scale.run.config import RunConfig
from adrpo_scale.run.load import overridden

FEW_CLIPS = 64  # MiB: an iteration's
Planner = Callable[[RunConfig, Hardware], Plan]


@dataclass(frozen=True)
class Rung:
    """A change that may help. settings: of `--set`; nodes: how many times as many."""

    settings: tuple[str, ...]
    phases: tuple[Phase, ...]
    nodes: int = 1


def ladder(config: RunConfig, plan: Plan) -> list[Rung]:
    """From cheap to dear; only what is not so already."""
    domain, engine, optimizer = config.domain, config.engine, config.optimizer
    found: list[Rung] = []

    def add(*settings: str, phases: Sequence[Phase], nodes: int = 1) -> None:
        found.append(Rung(settings, tuple(phases), nodes))

    best = plan.largest_micro_batch
    if best is not None and best < optimizer.micro_batch:
        add(f"optimizer.micro_batch={best}", phases=["update"])
    elif optimizer.micro_batch > plan.unit:
        add(f"optimizer.micro_batch={plan.unit}", phases=["update"])
    best = plan.largest_rollout_chunk
    if best is not None and best < domain.rollout_chunk:
        add(f"domain.rollout_chunk={best}", phases=["rollout", "evaluation"])
    elif domain.rollout_chunk > 1:
        add("domain.rollout_chunk=1", phases=["rollout", "reward", "evaluation"])
    for size in _halves(getattr(domain, "decode_chunk", 1)):
        add(f"domain.decode_chunk={size}", phases=["rollout"])
    for number, reward in enumerate(config.rewards):
        for size in _halves(getattr(reward, "batch", 1)):
            add(f"rewards.{number}.batch={size}", phases=["reward"])
    if getattr(domain, "clip_megabytes", 0.0) > FEW_CLIPS:
        add(f"domain.clip_megabytes={FEW_CLIPS}", phases=_RUNNING)
    if not engine.activation_checkpointing:
        add("engine.activation_checkpointing=true", phases=["update"])
    for number, reward in enumerate(config.rewards):
        if getattr(reward, "placement", "sharded") == "replicated":
            add(f"rewards.{number}.placement=sharded", phases=_EVERY)
    _sharding(engine, add)
    if engine.dtype == "float32":
        add("engine.dtype=bfloat16", phases=_EVERY)
    if engine.name == "zero3":
        if not engine.offload_optimizer:
            add("engine.offload_optimizer=true", phases=_EVERY)
        if not engine.offload_parameters:
            add("engine.offload_parameters=true", phases=_EVERY)
    if engine.shard == "all" or plan.rows > 1:  # else more of them change nothing
        for times in (2, 4):
            add(phases=_EVERY, nodes=times)
    return found


_EVERY: tuple[Phase, ...] = ("load", "rollout", "reward", "update", "evaluation")
_RUNNING = _EVERY[1:]


def _halves(size: int) -> list[int]:
    return [size // 2, 1] if size > 3 else [1] if size > 1 else []


def _sharding(engine: Any, add: Callable[..., None]) -> None:
    if engine.name == "fsdp2":
        if engine.shard == 1:
            add("engine.shard=node", phases=_EVERY)
        if engine.shard != 1 and not engine.reduce_every_micro_batch:
            add("engine.reduce_every_micro_batch=true", phases=["update"])
        if engine.shard != "all":
            add("engine.shard=all", phases=_EVERY)
            add(
                "engine.shard=all",
                "engine.reduce_every_micro_batch=true",
                phases=_EVERY,
            )
    elif engine.shard == "node":
        add("engine.shard=all", phases=_EVERY)


def cheapest_change(config: RunConfig, plan: Plan, planner: Planner) -> Change | None:
    """None where no change on the ladder is enough."""
    steps = ladder(config, plan)
    failing = _failing(plan)
    for rung in steps:
        if failing <= set(rung.phases):
            after = _try(config, plan.hardware, [rung], planner)
            if after is not None and after.fits:
                return _change([rung], after)
    return _several(config, plan, steps, planner)


def _several(
    config: RunConfig, plan: Plan, steps: Sequence[Rung], planner: Planner
) -> Change | None:
    """One after the other, each kept if it helps; what turns out not to be needed is left out."""
    kept: list[Rung] = []
    best = plan
    for rung in steps:
        if not _failing(best) & set(rung.phases):
            continue
        after = _try(config, plan.hardware, [*kept, rung], planner)
        if after is None or _excess(after) >= _excess(best):
            continue
        kept, best = [*kept, rung], after
        if best.fits:
            break
    if not best.fits:
        return None
    for rung in list(reversed(kept)):  # the dearest first
        fewer = [other for other in kept if other is not rung]
        after = _try(config, plan.hardware, fewer, planner)
        if fewer and after is not None and after.fits:
            kept, best = fewer, after
    return _change(kept, best)


def _failing(plan: Plan) -> set[Phase]:
    return {m.phase for m in plan.memory if m.bytes > plan.usable}


def _excess(plan: Plan) -> int:
    return sum(max(0, m.bytes - plan.usable) for m in plan.memory)


def _try(
    config: RunConfig, hardware: Hardware, rungs: Sequence[Rung], planner: Planner
) -> Plan | None:
    """None where the settings do not go together."""
    settings = [setting for rung in rungs for setting in rung.settings]
    times = max([rung.nodes for rung in rungs], default=1)
    with suppress(ConfigError), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        changed = overridden(config, settings)
        return planner(changed, replace(hardware, nodes=hardware.nodes * times))
    return None


def _change(rungs: Sequence[Rung], after: Plan) -> Change:
    settings = list(dict.fromkeys(setting for rung in rungs for setting in rung.settings))
    more = any(rung.nodes > 1 for rung in rungs)
    nodes = after.hardware.nodes if more else None
    return Change(settings, nodes, after.peak.bytes, after.usable)


def refusal(plan: Plan) -> DoesNotFitError:
    """What it needs, what there is, and what to do."""
    gib = 2**30
    peak, gpu = plan.peak, plan.hardware.gpu
    text = (
        f"{plan.config or plan.model} does not fit: the {peak.phase} needs {peak.bytes / gib:.1f} "
        f"GiB on a GPU, one {gpu.name} has room for {plan.usable / gib:.1f} GiB of "
        f"{gpu.memory / gib:.1f}"
    )
    if plan.change is None:
        return DoesNotFitError(
            f"{text}. No change that leaves what is learned as it is makes it fit; use GPUs with "
            "more memory, or domain.train=lora"
        )
    options = [f"--set {setting}" for setting in plan.change.settings]
    options += [f"--nodes {plan.change.nodes}"] if plan.change.nodes is not None else []
    return DoesNotFitError(
        f"{text}. The cheapest change that fits ({plan.change.peak / gib:.1f} GiB): "
        f"{' '.join(options)}"
    )
