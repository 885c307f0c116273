"""What a config computes: what the classes of its domain, its rewards and its engine state.

A reward that states nothing is named as not counted: left out without a word, a run would seem to
fit that does not.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from adrpo_scale.engines.planning import EnginePlan, engine_plan
from adrpo_scale.engines.spec import DTYPES
from adrpo_scale.engines.workload import Frozen, Workload
from adrpo_scale.run.config import RunConfig
from adrpo_scale.run.registry import DOMAINS, ENGINES, REWARDS


def workload_of(config: RunConfig) -> Workload:
    """With the models that rewards hold. Raises ModelNotFoundError where a model's shape is not
    known here."""
    dtype = DTYPES[config.engine.dtype]
    made = DOMAINS[config.domain.name].workload(config.domain, dtype)
    models = [model for _, held in _models(config, made.tokens) for model in held or ()]
    return replace(made, frozen=(*made.frozen, *models))


def engine_of(config: RunConfig) -> EnginePlan:
    """The engine's answers. Raises ConfigError for an engine that gives plan none."""
    return engine_plan(ENGINES[config.engine.name], config.engine, config.optimizer)


def not_counted(config: RunConfig, work: Workload) -> list[str]:
    """The rewards that state nothing of their models."""
    return [
        f"reward {label}: whatever memory and time it takes"
        for label, held in _models(config, work.tokens)
        if held is None
    ]


def _models(config: RunConfig, tokens: int) -> Iterator[tuple[str, list[Frozen] | None]]:
    """By each reward's label; None where it states nothing."""
    dtype = DTYPES[config.engine.dtype]
    for number, reward in enumerate(config.rewards):
        held = REWARDS[reward.kind].models(reward, f"rewards.{number}", dtype, tokens)
        yield reward.label, None if held is None else list(held)
