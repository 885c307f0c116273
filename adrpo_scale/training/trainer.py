"""The one training loop: roll out, score, give credit, exchange, update, log, evaluate.

It knows domains, algorithms, engines and rewards by their contracts alone, and every decision that
could differ between ranks (what is trained on, whether a step is skipped, when to stop) is made
from numbers that are the same on every rank.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import nn

from adrpo_scale.algorithms.base import Algorithm
from adrpo_scale.core import dist, watchdog
from adrpo_scale.core.errors import LimitReached, NonFiniteError
from adrpo_scale.core.preempt import Stop
from adrpo_scale.core.settings import Effect, Section, setting
from adrpo_scale.core.types import Credit, DrawKey, Prompt, Rewards, Rows
from adrpo_scale.data.prompts import PromptStream
from adrpo_scale.domains.base import Domain, Reference
from adrpo_scale.engines.base import Engine, OptimizerConfig
from adrpo_scale.rewards.base import Reward, sharded_models
from adrpo_scale.training.batches import Minibatch, build_minibatches, receive
from adrpo_scale.training.evaluator import Evaluator, image_grid
from adrpo_scale.training.iteration import (
    Stopwatch,
    Tally,
    completion_table,
    credit_record,
    row_record,
    warnings_of,
)
from adrpo_scale.training.metrics import LoggingConfig, MetricsLog, is_due
from adrpo_scale.training.rollout import gather_rewards, gather_sizes, sample_block, score_block
from adrpo_scale.training.saver import Saver
from adrpo_scale.training.state import Counters, TrainingState

log = logging.getLogger(__name__)


class LimitsConfig(Section):
    """When to stop on purpose, with the reason."""

    EFFECT: ClassVar[Effect] = "none"

    max_divergence: float | None = setting(None, "stop above this mean divergence", gt=0)
    min_reward: float | None = setting(None, "stop below this mean reward")
    max_nonfinite_updates: int = setting(5, "stop after this many skipped updates in a row", ge=1)
    max_unscored_iterations: int = setting(
        3, "stop after this many iterations in a row in which every sample's reward failed", ge=1
    )
    hang_seconds: float | None = setting(
        1200.0,
        "without progress for this long every rank writes its stacks and ends with the exit code "
        "that asks for a requeue; below engine.timeout_seconds, or its error comes first",
        gt=0,
    )
    max_stalled_lives: int = setting(
        3,
        "a Slurm job that was requeued is refused after this many lives in a row that ended by "
        "accident (killed, hung) and left no new checkpoint",
        ge=1,
    )


@dataclass(frozen=True)
class Scored:
    """One iteration's rollout on this rank, with everybody's rewards."""

    prompts_P: Sequence[Prompt]
    rows: Rows
    artifacts: Sequence[Any]
    rewards: Rewards


@dataclass
class Trainer:
    """Everything a run consists of, assembled by `build.build_trainer`."""

    seed: int
    iterations: int
    group_size: int
    chunk: int
    domain: Domain
    algorithm: Algorithm
    engine: Engine
    policy: nn.Module
    reference: Reference
    rewards: Sequence[Reward]
    stream: PromptStream
    optimizer: OptimizerConfig
    limits: LimitsConfig
    logging: LoggingConfig
    log: MetricsLog
    evaluator: Evaluator
    state: TrainingState
    saver: Saver
    stop: Stop
    identity: dict[str, Any]  # run, algorithm, seed: in every row of eval.jsonl
    run: Path
    measures_memory: bool = False  # also on the CPU
    watch: Stopwatch | None = None  # of the last iteration
    _pool: dict[int, Scored] = field(default_factory=dict)  # offline rollouts, by place
    _warned: set[str] = field(default_factory=set)
    _step_seconds: float = 0.0  # of the slowest optimizer step so far
    _unscored: int = 0  # iterations in a row without any reward

    @property
    def counters(self) -> Counters:
        return self.state.counters

    def train(self, last: int | None = None) -> None:
        """Runs to the last iteration, or no further than to `last`. Raises StopRequested when a
        signal asked for it, and LimitReached, NonFiniteError or CheckpointError when it must
        stop."""
        last = self.iterations if last is None else min(last, self.iterations)
        with self.log:
            if self._maybe_evaluate() and self.counters.iteration > 0:
                self.saver.maybe_save(True)  # the stop before came in the middle of this evaluation
            while self.counters.iteration < last:
                record = self._iterate()
                evaluated = self._maybe_evaluate()
                self.saver.maybe_save(evaluated)
                self._check_limits(record)

    def _iterate(self) -> dict[str, Any]:
        watch = self.watch = Stopwatch(self.engine.device, self.watch, self.measures_memory)
        iteration, tally = self.counters.iteration, Tally()
        scored = self._rollout(iteration, watch)
        with watch("update"):
            credit = self.algorithm.credit(scored.rewards)
            minibatches = build_minibatches(
                scored.rows,
                self.algorithm.select(scored.rewards, credit),
                credit,
                scored.rewards.prompt_ids_P.repeat_interleave(self.group_size),
                rows_per_unit=self.algorithm.rows_per_unit,
                minibatches=self.optimizer.minibatches,
                micro_batch=self.optimizer.micro_batch,
                sizes_S=gather_sizes(self.domain, scored.rows),
            )
            needs = self._needs(credit, iteration)
            minibatches = self._remember(receive(self.domain, minibatches), needs)
            steps = [
                (update * self.optimizer.minibatches + k, minibatch)
                for update in range(self.optimizer.updates)
                for k, minibatch in enumerate(minibatches)
            ]
            for done, (step, minibatch) in enumerate(steps):
                key = DrawKey(self.seed, iteration, update=step)
                check = partial(self._check_stop, done, len(steps))
                self._update(minibatch, key, needs, tally, scored.prompts_P, check)
        self.state.add_rewards(scored.rewards)
        self.counters.iteration += 1
        self.counters.cursor += self.stream.per_iteration
        return self._report(scored, credit, tally, watch)

    def _rollout(self, iteration: int, watch: Stopwatch) -> Scored:
        """Samples and rewards of one iteration; offline, of the pool's place for it."""
        pool = self.algorithm.rollout_pool
        place = iteration % pool if pool else iteration
        if place in self._pool:
            return self._pool[place]
        prompts_P = self.stream.at(place * self.stream.per_iteration)
        offline = self.algorithm.rollouts == "reference"
        with watch("rollout"), self.reference() if offline else nullcontext(self.policy) as model:
            with self.engine.sampling(model):
                rows = sample_block(
                    self.domain,
                    model,
                    prompts_P,
                    self.group_size,
                    DrawKey(self.seed, place),
                    self.chunk,
                    self.stop.check,
                )
            artifacts = self.domain.artifacts(rows)
        with watch("reward"):
            rewards = self._score(rows, artifacts, prompts_P)
        scored = Scored(prompts_P, rows, artifacts, rewards)
        if pool:
            self._pool[place] = scored
        return scored

    def _score(self, rows: Rows, artifacts: Sequence[Any], prompts_P: Sequence[Prompt]) -> Rewards:
        prompts_N = [prompts_P[int(s) // self.group_size] for s in rows.sample_ids_N]
        with self.engine.sampling(*sharded_models(self.rewards)):
            scores_NR = score_block(
                self.rewards, artifacts, prompts_N, self._samples, self.chunk, self.stop.check
            )
        keeps_N = self.domain.keeps(rows)
        return gather_rewards(rows, scores_NR, self.rewards, prompts_P, self.group_size, keeps_N)

    def _remember(self, minibatches: list[Minibatch], needs: frozenset[str]) -> list[Minibatch]:
        """With what the policy says of the rows before its first step, where a later step needs it.
        On the micro-batches themselves: at other shapes the first ratio would not be exactly 1."""
        if len(minibatches) * self.optimizer.updates < 2 or "logp_old" not in needs:
            return minibatches
        with self.engine.sampling(self.policy):
            return [
                [replace(micro, rows=self.domain.remember(self.policy, micro.rows)) for micro in m]
                for m in minibatches
            ]

    def _check_stop(self, done: int, steps: int) -> None:
        """A safe point while `done` of the iteration's optimizer steps are applied."""
        if done == 0:
            self.stop.check()
        else:
            left = (steps - done) * self._step_seconds
            self.stop.check_unfinished(left + self.saver.seconds)

    def _needs(self, credit: Credit, iteration: int) -> frozenset[str]:
        """What to measure. Where every beta is 0 the divergence costs a pass of the reference that
        the loss does not need, so it is measured only now and then, for the log."""
        needs = self.algorithm.needs
        if "divergence" in needs and not bool(credit.beta.any()):
            needs = needs - {"divergence"}
        if is_due(self.logging.divergence_every, iteration):
            needs = needs | {"divergence"}
        return needs

    def _update(
        self,
        minibatch: Minibatch,
        key: DrawKey,
        needs: frozenset[str],
        tally: Tally,
        prompts_P: Sequence[Prompt],
        check: Callable[[], None],
    ) -> None:
        """One optimizer step. The loss is divided by the global count before backward, so neither
        the number of ranks nor the micro-batch size changes it."""
        begin = time.monotonic()
        draws = self.optimizer.draws_per_sample
        counts = [
            self.algorithm.row_counts(m.credit, m.rows.tensors.get("lengths")) for m in minibatch
        ]
        count = float(dist.all_sum(torch.cat(counts).sum())) * draws
        passes = [(micro, draw) for micro in minibatch for draw in range(draws)]
        for place, (micro, draw) in enumerate(passes):
            check()
            terms = self.domain.terms(
                self.policy,
                self.reference,
                micro.rows,
                micro.noise_ids_N,
                replace(key, draw=draw),
                needs,
            )
            loss = self.algorithm.loss(terms, micro.credit) / max(count, 1e-12)
            self.engine.backward(loss, last=place == len(passes) - 1)
            tally.add(loss, terms, micro)
        rate = self.optimizer.rate_at(self.counters.step, self.total_steps)
        result = self.engine.step(rate)
        self.counters.step += 1
        tally.add_step(result.grad_norm, rate, result.skipped)
        self._step_seconds = max(self._step_seconds, time.monotonic() - begin)
        if result.skipped:
            self._count_nonfinite(result.grad_norm, prompts_P)
        else:
            self.counters.nonfinite_in_a_row = 0
            if self.state.ema is not None:
                self.state.ema.update()

    @property
    def _samples(self) -> int:
        return self.stream.per_iteration * self.group_size

    @property
    def total_steps(self) -> int:
        return self.iterations * self.optimizer.updates * self.optimizer.minibatches

    def _count_nonfinite(self, norm: float, prompts_P: Sequence[Prompt]) -> None:
        self.counters.nonfinite_in_a_row += 1
        in_a_row, iteration = self.counters.nonfinite_in_a_row, self.counters.iteration
        log.warning("iteration %d: gradient norm is %s, update skipped", iteration, norm)
        if in_a_row >= self.limits.max_nonfinite_updates:
            names = "; ".join(f"{p.id} {p.text[:60]!r}" for p in prompts_P)
            raise NonFiniteError(
                f"iteration {iteration}: {in_a_row} updates in a row had a gradient norm of {norm} "
                f"(limits.max_nonfinite_updates = {self.limits.max_nonfinite_updates}). Prompts: "
                f"{names}. Lower optimizer.learning_rate, or look at the rewards of these prompts"
            )

    def _report(
        self, scored: Scored, credit: Credit, tally: Tally, watch: Stopwatch
    ) -> dict[str, Any]:
        """Writes the iteration's line, histograms and pictures; returns the line."""
        done = self.counters.iteration
        record: dict[str, Any] = {
            "iteration": done,
            **credit_record(scored.rewards, credit),
            **tally.record(),
            **row_record(self.domain.row_metrics(scored.rows)),
            "samples": scored.rewards.mask_PG.numel(),
            **watch.record(scored.rewards.mask_PG.numel()),
        }
        self.stop.warn_if_slow(record["seconds_update"], self.saver.seconds)
        for kind, text in warnings_of(record, self.algorithm):
            if kind not in self._warned:
                self._warned.add(kind)  # said once: it stays visible in metrics.jsonl
                log.warning("iteration %d: %s", done, text)
        histograms: dict[str, Any] = {}
        if is_due(self.logging.histograms_every, done):
            kept = credit.include > 0
            histograms = {"advantage": credit.weight[kept], "beta_sample": credit.beta[kept]}
        self.log.iteration(record, {n: v.numpy() for n, v in histograms.items() if len(v)})
        self._show(scored, credit, tally)
        return record

    def _show(self, scored: Scored, credit: Credit, tally: Tally) -> None:
        """Pictures or completions of the iteration, for people to look at."""
        done, every = self.counters.iteration, self.logging
        rows, artifacts, prompts_P = scored.rows, scored.artifacts, scored.prompts_P
        if self.domain.makes_pictures and is_due(every.pictures_every, done):
            grid = image_grid(rows, artifacts, prompts_P, scored.rewards.total_PG)
            self.log.picture("rollouts", grid, done)
        if not self.domain.makes_pictures and is_due(every.completions_every, done):
            table = completion_table(
                rows, artifacts, prompts_P, scored.rewards, credit, tally.measured()
            )
            self.log.completions(table, done, every.completions_megabytes)

    def _maybe_evaluate(self) -> bool:
        """Whether it evaluated. Not again where the run goes on from just after an evaluation."""
        done, config = self.counters.iteration, self.evaluator.config
        if not config.is_due(done, self.iterations) or self.counters.evaluated == done:
            return False
        averaged = self.state.ema if config.weights == "ema" else None
        weights = averaged.applied() if averaged is not None else nullcontext()
        with watchdog.phase("evaluation"), weights:
            results = {
                split: self.evaluator.evaluate(self.policy, self.reference, split, self.stop.check)
                for split in self.evaluator.splits
            }
        self.log.evaluation(
            [
                self.identity
                | {"iteration": done, "split": split, "metric": metric}
                | {"value": value, "n": n}
                for split, result in results.items()
                for metric, (value, n) in result.metrics.items()
            ]
        )
        for split, result in results.items():
            self.log.picture(f"eval_{split}", result.grid, done, f"{split}-{done:06d}.png")
        self.counters.evaluated = done
        return True

    def _check_limits(self, record: dict[str, Any]) -> None:
        self._unscored = self._unscored + 1 if record["reward"] is None else 0
        if self._unscored >= self.limits.max_unscored_iterations:
            raise LimitReached(
                f"iteration {record['iteration']}: {self._unscored} iterations in a row had no "
                "sample with a finite reward (limits.max_unscored_iterations); logs/ says what "
                f"{' and '.join(reward.label for reward in self.rewards)} gave instead"
            )
        limits, divergence = self.limits, record["divergence"]
        if limits.max_divergence is not None and (divergence or 0.0) > limits.max_divergence:
            raise LimitReached(
                f"iteration {record['iteration']}: divergence {divergence:.4g} is above "
                f"limits.max_divergence = {limits.max_divergence}; the policy has drifted away"
            )
        reward = record["reward"]
        if limits.min_reward is not None and reward is not None and reward < limits.min_reward:
            raise LimitReached(
                f"iteration {record['iteration']}: mean reward {reward:.4g} is below "
                f"limits.min_reward = {limits.min_reward}; training has collapsed"
            )
