"""Assembles a Trainer from a RunConfig, in the order in which faults are cheap to find."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

from torch import nn

from adrpo_scale.checkpoint.merged import MergedWeights
from adrpo_scale.checkpoint.reader import Reader
from adrpo_scale.checkpoint.store import Store
from adrpo_scale.core import dist
from adrpo_scale.core.errors import ConfigError, RewardError, agreed
from adrpo_scale.core.preempt import Signals, Stop
from adrpo_scale.core.types import Prompt
from adrpo_scale.data.prompts import PromptStream, build_prompts
from adrpo_scale.domains.base import Domain, Reference
from adrpo_scale.engines.adapters import adapters_off
from adrpo_scale.engines.base import Engine
from adrpo_scale.engines.spec import ModelSpec
from adrpo_scale.hub.weights import SafetensorsFolder, combined_sha256, revision_of
from adrpo_scale.rewards.base import Reward
from adrpo_scale.run.config import RunConfig
from adrpo_scale.run.registry import ALGORITHMS, DOMAINS, ENGINES, REWARDS
from adrpo_scale.run.resume import check_content, is_allowed, prompts_digest
from adrpo_scale.training.ema import Ema
from adrpo_scale.training.evaluator import Evaluator
from adrpo_scale.training.limits import Limits
from adrpo_scale.training.metrics import MetricsLog
from adrpo_scale.training.saver import Saver
from adrpo_scale.training.state import TrainingState
from adrpo_scale.training.trainer import Trainer


def build_engine(config: RunConfig) -> Engine:
    return ENGINES[config.engine.name](config.engine, config.optimizer, config.seed)  # type: ignore[call-arg]


def build_domain(config: RunConfig) -> Domain:
    return DOMAINS[config.domain.name](config.domain)  # type: ignore[call-arg]


def build_rewards(
    config: RunConfig, engine: Engine, prompts: Sequence[Prompt] = ()
) -> list[Reward]:
    """All rewards, loaded. prompts: those of the run. Raises RewardError, on every rank alike, if
    one of them lacks what a reward needs. Collective."""
    rewards = [REWARDS[reward.kind](reward, engine.device) for reward in config.rewards]  # type: ignore[call-arg]
    for reward in rewards:
        try:
            reward.check(prompts)
        except RewardError as error:
            raise agreed(error) from error
        spec = reward.model_spec()
        if spec is not None:
            reward.use(engine.build_frozen(spec))
    return rewards


def build_reference(
    spec: ModelSpec | None, engine: Engine, policy: nn.Module
) -> tuple[Reference, nn.Module | None]:
    """The reference, and its model where it has one of its own (full training)."""
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


@dataclass(frozen=True)
class Beginning:
    """What a life begins with.

    reader: the run's checkpoint to go on from. origin: the checkpoint whose trained weights it
    starts from (`init_from`). allowed: what `--allow-change` names. signals: who may ask for a
    stop. store: where checkpoints go; one without an owner by default.
    """

    reader: Reader | None = None
    origin: Reader | None = None
    allowed: Sequence[str] = ()
    signals: Signals | None = None
    store: Store | None = None


def build_trainer(config: RunConfig, run: Path, beginning: Beginning = Beginning()) -> Trainer:
    """Everything of a run, loaded and ready, at the iteration where it is to go on. Collective.

    Prompt files and model configs are read first, then reward models, then the policy's weights.
    """
    parts = build_prompts(config.prompts)
    domain = build_domain(config)
    domain.check_training()
    train, held_out = (usable(domain, part, beginning) for part in parts)
    left_out = sorted(ids_of(*parts) - ids_of(train, held_out))
    policy_spec, reference_spec = specs_of(domain, config, beginning.origin)
    constant = dist.run_on_main(
        lambda: constant_facts(config, run, domain, train, beginning) | {"left_out": left_out}
    )
    if beginning.reader is not None:
        check_content(beginning.reader, constant, beginning.allowed)
    engine = build_engine(config)
    rewards = build_rewards(config, engine, [*train, *held_out])
    trained_on = _trained_on(config, rewards)
    domain.prepare([*train, *held_out], engine.device, engine.dtype)
    policy = engine.build_policy(policy_spec)
    reference, frozen = build_reference(reference_spec, engine, policy)
    ema = Ema(engine, config.ema_decay) if config.ema_decay is not None else None
    state = TrainingState(engine, ema, constant)
    log = MetricsLog(run, config.iterations)
    timeout = config.engine.timeout_seconds
    store = beginning.store or Store(run, config.checkpoint, timeout_seconds=timeout)
    saver = Saver(store, config.checkpoint, state, log)
    _begin(config, state, saver, log, beginning)
    identity: dict[str, Any] = {
        "run": run.name,
        "algorithm": config.algorithm.name,
        "seed": config.seed,
    }
    return Trainer(
        seed=config.seed,
        iterations=config.iterations,
        group_size=config.prompts.group_size,
        chunk=config.domain.rollout_chunk,
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
        limits=Limits(config.limits, [reward.label for reward in trained_on]),
        logging=config.logging,
        log=log,
        evaluator=_build_evaluator(
            config, domain, engine, rewards, {"train": train, "held_out": held_out}, frozen
        ),
        state=state,
        saver=saver,
        stop=Stop(beginning.signals, config.checkpoint.grace_seconds, timeout),
        identity=identity,
        run=run,
    )


def _trained_on(config: RunConfig, rewards: Sequence[Reward]) -> list[Reward]:
    return [r for r, c in zip(rewards, config.rewards, strict=True) if c.use == "training"]


def _build_evaluator(
    config: RunConfig,
    domain: Domain,
    engine: Engine,
    rewards: Sequence[Reward],
    splits: dict[str, list[Prompt]],
    frozen: nn.Module | None,
) -> Evaluator:
    return Evaluator(
        config.evaluation,
        domain,
        engine,
        rewards,
        {reward.label for reward in _trained_on(config, rewards)},
        splits,
        config.domain.rollout_chunk,
        [frozen] if frozen is not None else [],
    )


def specs_of(
    domain: Domain, config: RunConfig, origin: Reader | None
) -> tuple[ModelSpec, ModelSpec | None]:
    """Policy and reference; with rebase_reference both of the origin's trained weights."""
    policy, reference = domain.policy_spec(), domain.reference_spec()
    if origin is None or not config.rebase_reference:
        return policy, reference
    policy = replace(policy, weights=MergedWeights(policy.weights, origin))
    if reference is not None:
        reference = replace(reference, weights=MergedWeights(reference.weights, origin))
    return policy, reference


def ids_of(*parts: Sequence[Prompt]) -> set[int]:
    return {prompt.id for part in parts for prompt in part}


def usable(domain: Domain, prompts: Sequence[Prompt], beginning: Beginning) -> list[Prompt]:
    """Those that a run can work on; where it goes on, those it had, whatever has become of their
    clips since: its place in them would mean others. Collective."""
    document = beginning.reader.manifest.document if beginning.reader else {}
    if "left_out" not in document or is_allowed("prompts", beginning.allowed):
        return domain.usable(prompts)
    left_out = {*document["left_out"]}
    return domain.as_before([prompt for prompt in prompts if prompt.id not in left_out])


def constant_facts(
    config: RunConfig, run: Path, domain: Domain, train: Sequence[Prompt], beginning: Beginning
) -> dict[str, Any]:
    """What every checkpoint of a run says of it beside its state. Hashes the base weights."""
    spec = domain.policy_spec()
    assert isinstance(spec.weights, SafetensorsFolder)
    origin = None
    if beginning.origin is not None:
        said = beginning.origin.manifest.document["run"]
        origin = {"run": said, "iteration": beginning.origin.iteration}
    return {
        "run": run.name,
        "identity": config.digest(),
        "package": version("adrpo_scale"),
        "world_size": dist.world_size(),
        "config": config.resolved(),
        "base": {
            "model": config.domain.model,
            "revision": revision_of(domain.folder),
            "sha256": spec.weights.sha256(),
            "frozen": combined_sha256(domain.frozen_files(), domain.folder),
        },
        "lora": spec.lora and {"rank": spec.lora.rank, "alpha": spec.lora.alpha},
        "prompts": prompts_digest(train),
        "origin": origin,
    }


def _begin(
    config: RunConfig, state: TrainingState, saver: Saver, log: MetricsLog, beginning: Beginning
) -> None:
    """Brings the state to where the run goes on, or to the weights that it starts from."""
    reader, origin = beginning.reader, beginning.origin
    if reader is not None:
        state.restore(reader)
        saver.resumed()
        log.resumed_at(reader.iteration)
    elif origin is not None and not config.rebase_reference:
        there, here = origin.manifest.document["lora"], state.constant["lora"]
        if there != here:
            raise ConfigError(
                f"init_from = {config.init_from!r} has adapters {there}, this run {here}: use the "
                "same domain.train and domain.lora, or rebase_reference = true"
            )
        state.start_from(origin)
    for checkpoint in (reader, origin):
        if checkpoint is not None:
            checkpoint.close()  # or its space stays taken when retention removes it
