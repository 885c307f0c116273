"""The cheapest change after which a run fits, found by planning with it.

Changes are tried in order of their price, from a little speed to more nodes: first each alone, then
one added to the other. No change alters what the model learns.
"""

from __future__ import annotations

import shlex
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import replace

from adrpo_scale.cluster.plan.base import Change, DoesNotFitError, Hardware, Plan
from adrpo_scale.cluster.plan.workload import engine_of
from adrpo_scale.core.errors import ConfigError
from adrpo_scale.engines.planning import EVERY, Phase, Price, Rung
from adrpo_scale.run.config import RunConfig
from adrpo_scale.run.load import overridden
from adrpo_scale.run.registry import DOMAINS, REWARDS

Planner = Callable[[RunConfig, Hardware], Plan]


def ladder(config: RunConfig, plan: Plan) -> list[Rung]:
    """Possible changes, cheapest first, without those in force already. Domain, rewards and engine
    state their own."""
    engine = engine_of(config)
    found = [*_of_the_run(config, plan), *DOMAINS[config.domain.name].rungs(config.domain)]
    for number, reward in enumerate(config.rewards):
        found += REWARDS[reward.kind].rungs(reward, f"rewards.{number}")
    found += engine.rungs()
    if engine.spreads_over_all or plan.rows > 1:  # otherwise more nodes free no memory
        found += [Rung((), EVERY, Price.NODES, times) for times in (2, 4)]
    return sorted(found, key=lambda rung: rung.price)


def _of_the_run(config: RunConfig, plan: Plan) -> Iterator[Rung]:
    """Smaller micro-batches and chunks. A chunk of "auto" is the largest that fits already."""
    micro_batch, chunk = config.optimizer.micro_batch, plan.rollout_chunk

    def rung(setting: str, *phases: Phase) -> Rung:
        return Rung((setting,), phases, Price.PIECES)

    best = plan.largest_micro_batch
    if best is not None and best < micro_batch:
        yield rung(f"optimizer.micro_batch={best}", "update")
    elif micro_batch > plan.unit:
        yield rung(f"optimizer.micro_batch={plan.unit}", "update")
    best = plan.largest_rollout_chunk
    if plan.chunk_is_auto:
        return
    if best is not None and best < chunk:
        yield rung(f"domain.rollout_chunk={best}", "rollout", "evaluation")
    elif chunk > 1:
        yield rung("domain.rollout_chunk=1", "rollout", "reward", "evaluation")


def cheapest_change(config: RunConfig, plan: Plan, planner: Planner) -> Change | None:
    """The cheapest change after which the run fits; None where no change on the ladder suffices."""
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
    """Adds changes one by one and keeps those that help; then drops those that are not needed."""
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
    """The plan after the changes; None where the settings contradict each other."""
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
    """The error of a plan that does not fit: needed and available memory, and the cheapest
    change."""
    gib = 2**30
    peak, gpu = plan.peak, plan.hardware.gpu
    text = (
        f"{plan.config or plan.model} does not fit: the {peak.phase} needs {peak.bytes / gib:.1f} "
        f"GiB on a GPU, one {gpu.name} has room for {plan.usable / gib:.1f} GiB of "
        f"{gpu.memory / gib:.1f}"
    )
    if plan.change is None:
        smaller = "" if plan.trained.startswith("LoRA") else ", or domain.train=lora"
        return DoesNotFitError(
            f"{text}. No change of settings that keeps the training's results makes it fit; use "
            f"GPUs with more memory{smaller}"
        )
    options = [f"--set {shlex.quote(setting)}" for setting in plan.change.settings]
    options += [f"--nodes {plan.change.nodes}"] if plan.change.nodes is not None else []
    return DoesNotFitError(
        f"{text}. The cheapest change that fits ({plan.change.peak / gib:.1f} GiB): "
        f"{' '.join(options)}"
    )
