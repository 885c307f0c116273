"""The workload of a config, as stated by the classes of its domain, rewards and engine.

The plan names a reward that states nothing as not counted: otherwise a run could silently seem to
fit.
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
    """The domain's workload with the models of the rewards. Raises ModelNotFoundError where the
    shape of a model is unknown here."""
    dtype = DTYPES[config.engine.dtype]
    made = DOMAINS[config.domain.name].workload(config.domain, dtype)
    models = [model for _, held in _models(config, made.tokens) for model in held or ()]
    second = config.reference.moves and made.spec.lora is not None
    spec = replace(made.spec, reference_adapter=second)
    train = made.exact if is_exact(config) and made.exact is not None else made.train
    return replace(made, spec=spec, frozen=(*made.frozen, *models), train=train)


def is_exact(config: RunConfig) -> bool:
    """Whether training measures the exact KL, in a domain that has it."""
    return getattr(config.algorithm, "kl_estimator", "") == "exact"


def engine_of(config: RunConfig) -> EnginePlan:
    """The engine's part of the plan. Raises ConfigError for an engine without one."""
    return engine_plan(ENGINES[config.engine.name], config.engine, config.optimizer)


def not_counted(config: RunConfig, work: Workload) -> list[str]:
    """A line for each reward that does not state its models."""
    return [
        f"reward {label}: its memory and time"
        for label, held in _models(config, work.tokens)
        if held is None
    ]


def _models(config: RunConfig, tokens: int) -> Iterator[tuple[str, list[Frozen] | None]]:
    """(label, models) of each reward; None where it does not state them."""
    dtype = DTYPES[config.engine.dtype]
    for number, reward in enumerate(config.rewards):
        held = REWARDS[reward.kind].models(reward, f"rewards.{number}", dtype, tokens)
        trains = reward.use != "evaluation"
        yield (
            reward.label,
            None if held is None else [replace(each, in_training=trains) for each in held],
        )
