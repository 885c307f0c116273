"""Assembles a Trainer from a RunConfig, in the order in which faults are cheap to find."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any

from torch import nn

from adrpo_scale.config import RunConfig
from adrpo_scale.domains.base import Domain, Reference
from adrpo_scale.ema import Ema
from adrpo_scale.engines.adapters import adapters_off
from adrpo_scale.engines.base import Engine
from adrpo_scale.evaluation.evaluator import Evaluator
from adrpo_scale.metrics import MetricsLog
from adrpo_scale.prompts import PromptStream, build_prompts
from adrpo_scale.registry import ALGORITHMS, DOMAINS, ENGINES, REWARDS
from adrpo_scale.rewards.base import Reward
from adrpo_scale.trainer import Trainer


def build_engine(config: RunConfig) -> Engine:
    return ENGINES[config.engine.name](config.engine, config.optimizer, config.seed)  # type: ignore[call-arg]


def build_domain(config: RunConfig) -> Domain:
    return DOMAINS[config.domain.name](config.domain)  # type: ignore[call-arg]


def build_rewards(config: RunConfig, engine: Engine) -> list[Reward]:
    return [REWARDS[reward.kind](reward, engine.device) for reward in config.rewards]  # type: ignore[call-arg]


def build_reference(
    domain: Domain, engine: Engine, policy: nn.Module
) -> tuple[Reference, nn.Module | None]:
    """The reference, and its model where it has one of its own (full training)."""
    spec = domain.reference_spec()
    if spec is None:
        return _adapters_off(policy), None
    frozen = engine.build_frozen(spec)

    def reference() -> AbstractContextManager[nn.Module]:
        return nullcontext(frozen)

    return reference, frozen


def _adapters_off(policy: nn.Module) -> Reference:
    @contextmanager
    def reference() -> Iterator[nn.Module]:
        with adapters_off(policy):
            yield policy

    return reference


def build_trainer(config: RunConfig, run: Path) -> Trainer:
    """Everything of a run, loaded and ready. Collective.

    Prompt files and model configs are read first, then reward models, then the policy's weights.
    """
    train, held_out = build_prompts(config.prompts)
    domain = build_domain(config)
    engine = build_engine(config)
    rewards = build_rewards(config, engine)
    domain.prepare([*train, *held_out], engine.device, engine.dtype)
    policy = engine.build_policy(domain.policy_spec())
    reference, frozen = build_reference(domain, engine, policy)
    trained_on = [r for r, c in zip(rewards, config.rewards, strict=True) if c.use == "training"]
    chunk = config.domain.rollout_chunk
    identity: dict[str, Any] = {
        "run": run.name,
        "algorithm": config.algorithm.name,
        "seed": config.seed,
    }
    return Trainer(
        seed=config.seed,
        iterations=config.iterations,
        group_size=config.prompts.group_size,
        chunk=chunk,
        domain=domain,
        algorithm=ALGORITHMS[config.algorithm.name](config.algorithm, domain.kind),
        engine=engine,
        policy=policy,
        reference=reference,
        rewards=trained_on,
        stream=PromptStream(
            train, config.prompts.per_iteration, config.seed, config.prompts.shuffle
        ),
        optimizer=config.optimizer,
        limits=config.limits,
        logging=config.logging,
        log=MetricsLog(run, config.iterations),
        evaluator=Evaluator(
            config.evaluation,
            domain,
            engine,
            rewards,
            {reward.label for reward in trained_on},
            {"train": train, "held_out": held_out},
            chunk,
            [frozen] if frozen is not None else [],
        ),
        ema=Ema(engine, config.ema_decay) if config.ema_decay is not None else None,
        identity=identity,
        run=run,
    )
