"""The config of a run, composed of the components' own config classes, with checks of their
contradictions. `load` reads it from a file."""

from __future__ import annotations

import hashlib
import inspect
import json
import warnings
from collections.abc import Iterator
from typing import Annotated, Any

from pydantic import model_validator

from adrpo_scale.algorithms.base import Algorithm
from adrpo_scale.algorithms.regulariser import RegulariserConfig
from adrpo_scale.checkpoint.base import CheckpointConfig
from adrpo_scale.core.bounds import COUNT, SAMPLES
from adrpo_scale.core.components import OneOf
from adrpo_scale.core.errors import ConfigError
from adrpo_scale.core.python_warnings import SettingsWarning
from adrpo_scale.core.settings import REQUIRED, Effect, Section, leaves, setting, walk
from adrpo_scale.data.prompts import PromptsConfig
from adrpo_scale.engines.base import OptimizerConfig
from adrpo_scale.hub.needs import HubNeed
from adrpo_scale.rewards.base import REPEATS, longest_wait
from adrpo_scale.run.given_pairs import faults_of_pairs, has_given_pairs
from adrpo_scale.run.registry import ALGORITHMS, DOMAINS, ENGINES, REWARDS
from adrpo_scale.training.evaluator import EvaluationConfig
from adrpo_scale.training.limits import LimitsConfig
from adrpo_scale.training.metrics import LoggingConfig
from adrpo_scale.training.reference import ReferenceConfig

DomainSection = Annotated[Any, OneOf(DOMAINS)]
EngineSection = Annotated[Any, OneOf(ENGINES, "fsdp2")]


class SampleConfig(Section):
    """The settings for sampling from a model: written for a published model, or the part of a run's
    config that sampling uses (`RunConfig.sampling`)."""

    domain: DomainSection = setting(REQUIRED, "the kind of samples and the model that makes them")
    engine: EngineSection = setting(ENGINES.config_of("fsdp2")(), "sharding of the models")


class RunConfig(Section):
    """All settings of a run. The hash of those that change learning is the run's identity."""

    seed: int = setting(0, "seed of every random draw of the run", ge=0, lt=2**63)
    iterations: int = setting(100, "rollouts, each with its updates", effect="none", ge=0, le=COUNT)
    init_from: str | None = setting(
        None, "start from the trained weights of RUN or RUN@iteration, with fresh counters"
    )
    rebase_reference: bool = setting(
        False, "with init_from: these weights are also the reference, in place of the original base"
    )
    domain: DomainSection = setting(REQUIRED, "the kind of samples and the model that makes them")
    algorithm: Annotated[Any, OneOf(ALGORITHMS)] = setting(REQUIRED, "the loss and its credit")
    regulariser: RegulariserConfig = setting(
        RegulariserConfig(), "the coefficient of each sample's divergence"
    )
    reference: ReferenceConfig = setting(
        ReferenceConfig(), "the model that the penalty holds the policy to"
    )
    rewards: list[Annotated[Any, OneOf(REWARDS)]] = setting(
        [], "the judges of samples; given pairs need none"
    )
    prompts: PromptsConfig = setting(REQUIRED, "the prompts of training and evaluation")
    optimizer: OptimizerConfig = setting(OptimizerConfig(), "AdamW and the updates of an iteration")
    ema_decay: float | None = setting(None, "moving average of the trained weights", gt=0, lt=1)
    engine: EngineSection = setting(ENGINES.config_of("fsdp2")(), "sharding of the models")
    evaluation: EvaluationConfig = setting(EvaluationConfig(), "measurements during training")
    checkpoint: CheckpointConfig = setting(CheckpointConfig(), "times of saves, and retention")
    limits: LimitsConfig = setting(LimitsConfig(), "conditions for stopping on purpose")
    logging: LoggingConfig = setting(LoggingConfig(), "contents and frequency of the logs")

    @model_validator(mode="after")
    def _sections_agree(self) -> RunConfig:
        faults = [*self._contradictions(), *self._faults_of_algorithm()]
        if faults:
            raise ValueError("\n".join(faults))
        self._warn_of_nucleus()
        self._warn_of_time_limits()
        return self

    def _contradictions(self) -> Iterator[str]:
        labels = [reward.label for reward in self.rewards]
        is_judged = any(reward.use == "training" for reward in self.rewards)
        if not is_judged and not has_given_pairs(self):
            yield "no reward to train on: give at least one [[rewards]] with use = training"
        if len(set(labels)) < len(labels):
            yield f"rewards {labels} share a name; set `name` of one of them"
        if self.evaluation.weights == "ema" and self.ema_decay is None:
            yield 'evaluation.weights = "ema" without ema_decay; set ema_decay, e.g. 0.99'
        if self.rebase_reference and self.init_from is None:
            yield "rebase_reference without init_from: name the run to start from, or leave it out"
        samples = self.prompts.per_iteration * self.prompts.group_size
        if samples > SAMPLES:
            yield (
                f"prompts.per_iteration * prompts.group_size = {samples:,}: an iteration has at "
                f"most {SAMPLES:,} samples, whose ids and rewards every rank holds; lower one"
            )
        yield from self._faults_of_gate()
        yield from self._faults_of_media()
        yield from self._faults_of_best()

    def _faults_of_gate(self) -> Iterator[str]:
        """A gate compares with other rewards, and those have no other purpose."""
        gates = [reward.label for reward in self.rewards if reward.use == "gate"]
        share = self.regulariser.gate.share
        if share is not None and not gates:
            yield (
                f"regulariser.gate.share = {share:g} without a reward to compare with: give at "
                'least one [[rewards]] with use = "gate"'
            )
        if share is None and gates:
            yield (
                f'rewards {gates} have use = "gate", and regulariser.gate.share is not set: set '
                'it, e.g. to 0.1, or use = "evaluation"'
            )

    def _faults_of_media(self) -> Iterator[str]:
        """A reward that cannot judge what the domain makes would fail on every sample."""
        medium = getattr(DOMAINS[self.domain.name], "medium", None)
        for number, reward in enumerate(self.rewards):
            judges = REWARDS[reward.kind].judges
            if judges and medium not in judges:
                others = [kind for kind in REWARDS if medium in REWARDS[kind].judges]
                yield (
                    f"rewards.{number}.kind = {reward.kind!r} judges {' and '.join(judges)}, and "
                    f"domain {self.domain.name} makes {medium}: take one of {', '.join(others)}, "
                    "or a function of your own"
                )

    def _faults_of_algorithm(self) -> Iterator[str]:
        """The algorithm refuses settings that do not fit the domain's terms."""
        try:
            algorithm = self.build_algorithm()
        except ConfigError as error:
            yield str(error)
            return
        yield from self._faults_of_rollouts(algorithm)
        if has_given_pairs(self):
            yield from faults_of_pairs(self, algorithm)
        if self.optimizer.micro_batch % algorithm.rows_per_unit:
            yield (
                f"optimizer.micro_batch = {self.optimizer.micro_batch} with {self.algorithm.name}, "
                f"which trains on {algorithm.rows_per_unit} rows at a time; use a multiple"
            )

    def _faults_of_rollouts(self, algorithm: Any) -> Iterator[str]:
        """Samples and penalties of other models than the policy."""
        source, name = algorithm.rollouts, self.algorithm.name
        measures = inspect.signature(DOMAINS[self.domain.name].terms).parameters
        if self.reference.moves and "base" not in measures:
            yield (
                f'reference.kind = "{self.reference.kind}": the domain {self.domain.name} cannot '
                "measure the base beside it; give its method `terms` the argument `base` "
                '(`domains.base.Domain.terms`), or set reference.kind = "base"'
            )
        if algorithm.released_reference and not self.reference.moves:
            yield (
                f'algorithm.name = "{name}" with reference.kind = "base": its reference follows '
                f'the policy; set reference.kind = "ema", with {algorithm.released_reference} as '
                f"released, or take {algorithm.plain} with the base"
            )
        if source not in ("policy", "file") and algorithm.needs_old:
            yield (
                f'algorithm.rollouts = "{source}" with {name} on {algorithm.terms.name}: its ratio '
                'is to the policy that drew the samples; use rollouts = "policy", or an algorithm '
                "without a ratio (orw_cfm_w2, raft, dpo)"
            )
        if source == "reference" and algorithm.rollout_pool and self.reference.moves:
            yield (
                f'algorithm.pool = {algorithm.rollout_pool} with rollouts = "reference" and '
                f'reference.kind = "{self.reference.kind}": the reference moves, so a start that '
                'resumes would make another pool; use rollouts = "base", or pool = 0'
            )

    def _warn_of_nucleus(self) -> None:
        """Warns of top-p or top-k with several optimizer steps per rollout. Ratios are of the whole
        distribution, but samples come from a part of it; with one step the ratio is always 1."""
        rollout: Any = getattr(self.domain, "rollout", None)
        steps = self.optimizer.updates * self.optimizer.minibatches
        cut = getattr(rollout, "top_p", 1.0) < 1 or getattr(rollout, "top_k", 0) > 0
        if cut and steps > 1:
            warnings.warn(
                f"domain.rollout.top_p = {rollout.top_p}, top_k = {rollout.top_k} with {steps} "
                "optimizer steps per rollout: ratios are of the whole distribution, not of the one "
                "that was drawn from; use top_p = 1 and top_k = 0, or one step",
                category=SettingsWarning,
                stacklevel=2,
            )

    def _warn_of_time_limits(self) -> None:
        """Warns of rewards that may work longer than the other ranks wait for them."""
        longest, waits = longest_wait(self.rewards), self.engine.timeout_seconds
        if longest >= waits:
            warnings.warn(
                f"rewards may take {longest:g} s for a chunk of samples ({1 + REPEATS} times "
                "time_limit, or call_seconds where they ask a server), but other ranks wait "
                f"engine.timeout_seconds = {waits:g} for them: lower time_limit or call_seconds, "
                "or raise it",
                stacklevel=2,
            )

    def _faults_of_best(self) -> Iterator[str]:
        """`keep_best` without evaluations of its split would keep nothing."""
        if self.checkpoint.keep_best == 0:
            return
        held_out = self.prompts.held_out is not None or self.prompts.held_out_share > 0
        splits = ["train", *(["held_out"] if held_out else [])]
        if self.evaluation.every == 0:
            yield (
                "checkpoint.keep_best with evaluation.every = 0: nothing is measured; set "
                "evaluation.every, or leave keep_best out"
            )
        if self.checkpoint.best_split not in splits:
            yield (
                f"checkpoint.best_split = {self.checkpoint.best_split!r}, but this run evaluates "
                f"{' and '.join(splits)}; name one of these"
            )

    def build_algorithm(self) -> Algorithm:
        """The algorithm of the run. Raises ConfigError as its class does."""
        table, gives = ALGORITHMS[self.algorithm.name], DOMAINS[self.domain.name].gives
        more: dict[str, Any] = {}
        # Constructors of one's own may take neither.
        if self.regulariser != RegulariserConfig():
            more["regulariser"] = self.regulariser
        if "base_coefficient" in inspect.signature(table).parameters:
            more["base_coefficient"] = self.reference.base_coefficient
        return table(self.algorithm, *gives, **more)

    @property
    def sampling(self) -> SampleConfig:
        """The part of the settings that sampling from the run uses."""
        return SampleConfig(domain=self.domain, engine=self.engine)

    def needs_from_hub(self) -> list[HubNeed]:
        """All models and datasets that the components read."""
        sections = [self.domain, *self.rewards, self.prompts]
        return [need for section in sections for need in section.needs_from_hub()]

    def resolved(self) -> dict[str, Any]:
        """All settings as JSON types, in declaration order."""
        return self.model_dump(mode="json")

    def effects(self) -> dict[str, Effect]:
        """The effect of each setting, by dotted path."""
        found = {leaf.path: leaf.effect for leaf in walk(self)}
        if self.optimizer.schedule != "constant":
            found["iterations"] = "maths"  # the learning rate falls towards the last one
        return found

    def identity(self) -> dict[str, Any]:
        """The settings that change learning, by their first names. A setting added later is left
        out at the value of runs before it."""
        effects, resolved = self.effects(), self.resolved()
        kept: dict[str, Any] = {}
        for leaf in walk(self):
            if effects[leaf.path] in ("maths", "content") and not leaf.is_as_before:
                kept |= leaves(_at(resolved, leaf.path), leaf.first)
        return kept

    def digest(self) -> str:
        """Hash of the run's identity, 8 hex digits. A run that becomes longer or logs more stays
        the same run, and so does an older run that gets new settings."""
        text = json.dumps(self.identity(), sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:8]


def _at(data: Any, path: str) -> Any:
    for key in path.split("."):
        data = data[int(key)] if isinstance(data, list) else data[key]
    return data
