"""Assembles a Trainer from a RunConfig; the cheapest checks come first."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from torch import nn

from adrpo_scale.algorithms.regulariser_rules import beta0_of
from adrpo_scale.checkpoint.merged import MergedWeights
from adrpo_scale.checkpoint.reader import Reader
from adrpo_scale.checkpoint.store import Store
from adrpo_scale.core import dist
from adrpo_scale.core.errors import together
from adrpo_scale.core.pace import safe_point
from adrpo_scale.core.preempt import Signals, Stop
from adrpo_scale.core.signals import stoppable
from adrpo_scale.core.types import Prompt
from adrpo_scale.data.prompts import PromptStream, build_prompts
from adrpo_scale.domains.base import Domain, Reference
from adrpo_scale.engines.adapters import adapters_off
from adrpo_scale.engines.base import Engine
from adrpo_scale.engines.spec import ModelSpec
from adrpo_scale.rewards.base import Reward
from adrpo_scale.run.compare import check_content, constant_facts
from adrpo_scale.run.config import RunConfig, SampleConfig
from adrpo_scale.run.coverage import report_coverage
from adrpo_scale.run.cut_prompts import report_cut
from adrpo_scale.run.given_pairs import pair_facts, take_pairs
from adrpo_scale.run.prompt_sets import report_sets
from adrpo_scale.run.registry import DOMAINS, ENGINES
from adrpo_scale.run.resume import FROM_ZERO, Start, ids_of, take_over, usable
from adrpo_scale.run.rewards import build_light_rewards, build_rewards
from adrpo_scale.run.soundness import check_models
from adrpo_scale.training.controller import Controller
from adrpo_scale.training.ema import Ema
from adrpo_scale.training.evaluator import Evaluator
from adrpo_scale.training.limits import Limits
from adrpo_scale.training.metrics import MetricsLog
from adrpo_scale.training.reference import MovingReference, ReferenceConfig, References
from adrpo_scale.training.rollout import Rollouts
from adrpo_scale.training.saver import Saver
from adrpo_scale.training.state import TrainingState
from adrpo_scale.training.trainer import Trainer

Specs = tuple[ModelSpec, ModelSpec | None]


def build_engine(config: RunConfig) -> Engine:
    """The engine of a config, without models yet."""
    return ENGINES[config.engine.name](config.engine, config.optimizer, config.seed)  # type: ignore[call-arg]


def build_domain(config: RunConfig | SampleConfig, reader: Reader | None = None) -> Domain:
    """The domain of a config; reads the model's config files, not its weights. reader: a checkpoint
    of the run, whose rules the domain keeps."""
    domain: Domain = DOMAINS[config.domain.name](config.domain)  # type: ignore[call-arg]
    if reader is not None:
        domain.keep_rules(reader.manifest.document.get("rules", {}))
    return domain


def build_reference(
    spec: ModelSpec | None, engine: Engine, policy: nn.Module
) -> tuple[Reference, nn.Module | None]:
    """(the base as a reference, its model). The model is None where the base is the policy without
    adapters."""
    if spec is None:
        return _adapters_off(policy), None
    frozen = engine.build_frozen(spec)

    def reference() -> AbstractContextManager[nn.Module]:
        return nullcontext(frozen)

    return reference, frozen


def build_moving(
    config: ReferenceConfig, spec: ModelSpec | None, engine: Engine, policy: nn.Module
) -> MovingReference | None:
    """The reference that moves; None where it is the base. spec: of the base, None where that is
    the policy without adapters."""
    if not config.moves:
        return None
    return MovingReference(config, engine, policy if spec is None else engine.build_frozen(spec))


def _adapters_off(policy: nn.Module) -> Reference:
    @contextmanager
    def reference() -> Iterator[nn.Module]:
        with adapters_off(policy):
            yield policy

    return reference


@stoppable()
def build_trainer(
    config: RunConfig,
    run: Path,
    start: Start = FROM_ZERO,
    signals: Signals | None = None,
    store: Store | None = None,
) -> Trainer:
    """The trainer of a run, loaded and at the iteration where it starts or resumes. Collective.

    Prompt files and model configs are read first and rows are checked, then reward models are
    loaded, then the policy's weights.
    start: `find_start` of the run. signals: the signals that stop it. store: the store of its
    checkpoints; by default one that does not check the folder's lock.
    """
    ready = _prepared(config, run, start, store)
    domain, engine, rewards = ready.domain, ready.engine, ready.rewards
    trained_on, gates = (_used(config, rewards, use) for use in ("training", "gate"))
    policy = engine.build_policy(ready.specs[0])
    base, frozen = build_reference(ready.specs[1], engine, policy)
    moving = build_moving(config.reference, ready.specs[1], engine, policy)
    ema = Ema(engine, config.ema_decay) if config.ema_decay is not None else None
    safe_point(together=True)
    algorithm = config.build_algorithm()
    steered = config.regulariser.controller
    controller = Controller(steered, beta0_of(algorithm)) if steered.is_on else None
    state = TrainingState(engine, ema, moving, ready.constant, controller=controller)
    log = MetricsLog(run, config.iterations)
    timeout = config.engine.timeout_seconds
    store = store or Store(run, config.checkpoint, timeout_seconds=timeout)
    saver = Saver(store, config.checkpoint, state, log)
    take_over(config, state, saver, log, start)
    stop = Stop(signals, config.checkpoint.grace_seconds, timeout)
    rollouts = Rollouts(
        seed=config.seed,
        group_size=config.prompts.group_size,
        chunk=config.domain.chunk,
        domain=domain,
        algorithm=algorithm,
        engine=engine,
        policy=policy,
        references=References(base, moving, config.reference.base_coefficient),
        rewards=[*trained_on, *gates],
        gates=frozenset(reward.label for reward in gates),
        stream=_build_stream(config, ready.train),
        check=stop.check,
    )
    return Trainer(
        rollouts=rollouts,
        iterations=config.iterations,
        optimizer=config.optimizer,
        limits=Limits(config.limits, [reward.label for reward in trained_on]),
        logging=config.logging,
        log=log,
        evaluator=_build_evaluator(config, ready, frozen),
        state=state,
        saver=saver,
        stop=stop,
        identity={"run": run.name, "algorithm": config.algorithm.name, "seed": config.seed},
        run=run,
    )


@dataclass(frozen=True)
class _Prepared:
    """All that a trainer is built from, but for the policy. specs: of policy and reference.
    constant: what the manifest of every checkpoint states."""

    domain: Domain
    engine: Engine
    rewards: list[Reward]
    train: list[Prompt]
    held_out: list[Prompt]
    specs: Specs
    constant: dict[str, Any]


def _prepared(config: RunConfig, run: Path, start: Start, store: Store | None) -> _Prepared:
    """Checks everything that takes seconds, then loads the rewards and the domain. Collective."""
    domain, parts, (train, held_out) = _read(config, start)
    engine = build_engine(config)
    prompts, resumes = [*train, *held_out], start.reader is not None
    light = build_light_rewards(config, engine, prompts, resumes, run)
    left_out = sorted(ids_of(*parts) - ids_of(train, held_out))
    specs, constant = _compared(config, run, start, domain, train, left_out)
    rewards = build_rewards(config, engine, prompts, resumes, light, run)
    if store is not None:
        store.check_owner()
    dist.run_on_main(lambda: report_cut(domain, rewards, prompts, run))
    dist.run_on_main(lambda: report_sets(train, held_out, run))
    used = (train, held_out)
    dist.run_on_main(lambda: report_coverage(config.prompts, parts, used, run))
    safe_point(together=True)
    domain.prepare(prompts, engine.device, engine.dtype)
    safe_point(together=True)
    return _Prepared(domain, engine, rewards, train, held_out, specs, constant)


def _read(
    config: RunConfig, start: Start
) -> tuple[Domain, Sequence[list[Prompt]], tuple[list[Prompt], list[Prompt]]]:
    """(domain, all (train, held out) prompts, the usable ones of each). Collective."""
    parts, domain = together(
        lambda: build_prompts(config.prompts), lambda: build_domain(config, start.reader)
    )
    domain.check_training()
    train, held_out = (usable(domain, part, start) for part in parts)
    train = take_pairs(config, domain, train)
    return domain, parts, (train, held_out)


def _compared(
    config: RunConfig,
    run: Path,
    start: Start,
    domain: Domain,
    train: list[Prompt],
    left_out: Sequence[int],
) -> tuple[Specs, dict[str, Any]]:
    """(`specs_of` the domain, `constant_facts`), after a comparison of the facts with the
    checkpoint that the run resumes from. left_out: ids of prompts that are not usable.
    Collective."""
    specs = specs_of(domain, config, start.origin)
    needs, is_new = config.needs_from_hub(), start.reader is None
    dist.run_on_main(lambda: check_models(needs, domain, is_new=is_new))
    constant = dist.run_on_main(
        lambda: (
            constant_facts(config, run, domain, train, start.origin)
            | {"left_out": [*left_out]}
            | pair_facts(config, domain)
        )
    )
    if start.reader is not None:
        check_content(start.reader, constant, start.allowed)
    return specs, constant


def _build_stream(config: RunConfig, train: Sequence[Prompt]) -> PromptStream:
    prompts = config.prompts
    return PromptStream(train, prompts.per_iteration, config.seed, prompts.shuffle)


def _used(config: RunConfig, rewards: Sequence[Reward], use: str) -> list[Reward]:
    return [r for r, c in zip(rewards, config.rewards, strict=True) if c.use == use]


def _build_evaluator(config: RunConfig, ready: _Prepared, frozen: nn.Module | None) -> Evaluator:
    return Evaluator(
        config.evaluation,
        ready.domain,
        ready.engine,
        ready.rewards,
        {reward.label for reward in _used(config, ready.rewards, "training")},
        {"train": ready.train, "held_out": ready.held_out},
        config.domain.chunk,
        [frozen] if frozen is not None else [],
    )


def specs_of(domain: Domain, config: RunConfig, origin: Reader | None) -> Specs:
    """Specs of policy and reference; with rebase_reference, of the origin's trained weights."""
    policy, reference = domain.policy_spec(), domain.reference_spec()
    policy = replace(policy, reference_adapter=config.reference.moves and policy.lora is not None)
    if origin is None or not config.rebase_reference:
        return policy, reference
    policy = replace(policy, weights=MergedWeights(policy.weights, origin))
    if reference is not None:
        reference = replace(reference, weights=MergedWeights(reference.weights, origin))
    return policy, reference
