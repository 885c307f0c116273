"""The one training loop: roll out, reward, give credit, exchange, update, log, evaluate.

It uses domains, algorithms, engines and rewards through their contracts alone. All decisions (the
rows trained on, skipped steps, stops) are made from numbers that are the same on every rank.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from adrpo_scale.algorithms.base import Algorithm
from adrpo_scale.core import dist, watchdog
from adrpo_scale.core.errors import NothingLearned
from adrpo_scale.core.histogram import histogram
from adrpo_scale.core.preempt import Stop
from adrpo_scale.core.types import Credit, DrawKey, Prompt, Rows
from adrpo_scale.engines.base import OptimizerConfig
from adrpo_scale.training.advice import Settings, warnings_of, why_nothing
from adrpo_scale.training.batches import MicroBatch, Minibatch, build_minibatches, receive
from adrpo_scale.training.evaluator import Evaluator, numbers_of
from adrpo_scale.training.gradient_signal import Recent, gradient_signal
from adrpo_scale.training.iteration import Tally, credit_record, row_record
from adrpo_scale.training.limits import Limits
from adrpo_scale.training.media import Samples, medium_of
from adrpo_scale.training.metrics import LoggingConfig, MetricsLog, is_due
from adrpo_scale.training.prompt_values import prompt_row
from adrpo_scale.training.reference import Pair
from adrpo_scale.training.replicas import compare_replicas
from adrpo_scale.training.rollout import Rewarded, Rollouts, gather_sizes
from adrpo_scale.training.saver import Saver
from adrpo_scale.training.state import Counters, TrainingState
from adrpo_scale.training.stopwatch import Stopwatch

log = logging.getLogger(__name__)


@dataclass
class Trainer:
    """The assembled parts of a run (`run.build.build_trainer`) and its loop."""

    rollouts: Rollouts
    iterations: int
    optimizer: OptimizerConfig
    limits: Limits
    logging: LoggingConfig
    log: MetricsLog
    evaluator: Evaluator
    state: TrainingState
    saver: Saver
    stop: Stop
    identity: dict[str, Any]  # run, algorithm and seed, written in every row of eval.jsonl
    run: Path
    measures_memory: bool = False  # True: on the CPU as well
    watch: Stopwatch | None = None  # of the last iteration
    _warned: set[str] = field(default_factory=set)
    _signals: Recent = field(default_factory=Recent)  # of this start
    _step_seconds: float = 0.0  # of the slowest optimizer step so far
    _idle: str | None = None  # why the last iteration taught nothing
    _stepped: bool = False  # whether the last iteration changed the policy

    def __post_init__(self) -> None:
        made = self.rollouts
        self.seed, self.group_size, self.stream = made.seed, made.group_size, made.stream
        self.domain, self.engine = made.domain, made.engine
        self.policy, self.references = made.policy, made.references
        self.reference = made.references.reference
        self._settings = Settings(
            self.algorithm,
            getattr(self.domain, "config", None),
            self.optimizer,
            self.limits.config,
            None if self.state.controller is None else self.state.controller.config,
        )

    @property
    def algorithm(self) -> Algorithm:
        """The run's, with the beta0 that a controller has chosen."""
        controller, algorithm = self.state.controller, self.rollouts.algorithm
        return algorithm if controller is None else algorithm.at(controller.beta0)

    @property
    def counters(self) -> Counters:
        return self.state.counters

    def train(self, last: int | None = None) -> None:
        """Trains to the last iteration, or to `last` where that is earlier.

        Raises StopRequested after a signal, LimitReached or NonFiniteError at a limit, and
        CheckpointError where a save has failed.
        """
        last = self.iterations if last is None else min(last, self.iterations)
        with self.log:
            if self._maybe_evaluate() and self.counters.iteration > 0:
                self.saver.maybe_save(True)  # the last start stopped before or in this evaluation
            while self.counters.iteration < last:
                record = self._iterate()
                if is_due(self.limits.config.compare_replicas_every, self.counters.iteration):
                    compare_replicas(self.engine, self.counters.iteration)
                evaluated = self._maybe_evaluate()
                self.saver.maybe_save(evaluated)
                self.limits.check(record)

    def check_learned(self) -> None:
        """Raises NothingLearned, on every rank, where no iteration of the run taught anything."""
        done = self.counters.iteration
        if done == 1 and self._stepped:
            return  # the few groups of one iteration may be alike by chance
        if done and not self.counters.learned:
            why = self._why_idle()
            count = "1 iteration" if done == 1 else f"{done} iterations"
            raise NothingLearned(
                f"nothing was learned in {count}{why}. Start a run with other settings"
            )

    def lost(self) -> str:
        """What a run lost that had learned before: a sentence; "" where its last two iterations
        were not in vain both."""
        idle, done = self.counters.idle, self.counters.iteration
        if idle < 2 or not self.counters.learned:
            return ""
        return f"the last {idle} of {done} iterations taught nothing{self._why_idle()}"

    def _why_idle(self) -> str:
        return f": {self._idle}" if self._idle else "; the logs of its earlier starts say why"

    def _iterate(self) -> dict[str, Any]:
        """Runs one iteration; returns its line of metrics.jsonl."""
        watch = self.watch = Stopwatch(self.engine.device, self.watch, self.measures_memory)
        iteration, tally = self.counters.iteration, Tally(self.references.moving is not None)
        rewarded = self.rollouts.of(iteration, watch)
        with watch("update"):
            credit = self.algorithm.credit(rewarded.rewards)
            measured = self._measured(credit, iteration)
            minibatches = self._remember(self._exchange(rewarded, credit))
            steps = list(self._steps(minibatches))
            for done, (step, minibatch) in enumerate(steps):
                check = partial(self._check_stop, done, len(steps))
                self._update(minibatch, step, measured, tally, rewarded.prompts_P, check)
        self.state.add_rewards(rewarded.rewards)
        self.counters.iteration += 1
        if self.references.moving is not None:
            self.references.moving.move(self.counters.iteration)
        self.counters.cursor += self.stream.per_iteration
        return self._log_iteration(rewarded, credit, tally, watch)

    def _update(
        self,
        minibatch: Minibatch,
        step: int,
        measured: Callable[..., Pair],
        tally: Tally,
        prompts_P: Sequence[Prompt],
        check: Callable[[], None],
    ) -> None:
        """One optimizer step. step: its number in the iteration. check: called before every pass.

        The loss is divided by the global count before backward, so it depends neither on the number
        of ranks nor on the size of micro-batches.
        """
        begin = time.monotonic()
        draws = self.optimizer.draws_per_sample
        count = self._count(minibatch) * draws
        passes = [(micro, draw) for micro in minibatch for draw in range(draws)]
        wanted = self.algorithm.wanted
        for place, (micro, draw) in enumerate(passes):
            check()
            drawn = self._key(step, draw)
            reference, base = measured(is_first=draw == 0 and step < self.optimizer.minibatches)
            more = {} if base is None else {"base": base}
            terms = self.domain.terms(
                self.policy, reference, micro.rows, micro.noise_ids_N, drawn, wanted, **more
            )
            held = self.references.penalty(terms, micro.credit, self.algorithm)
            loss = (self.algorithm.loss(terms, micro.credit) + held) / max(count, 1e-12)
            self.engine.backward(loss, last=place == len(passes) - 1)
            tally.add(loss, terms, micro)
        rate = self.optimizer.rate_at(self.counters.step, self.total_steps)
        result = self.engine.step(rate)
        self.counters.step += 1
        tally.add_step(result.grad_norm, rate, result.skipped)
        self._step_seconds = max(self._step_seconds, time.monotonic() - begin)
        if result.skipped:
            self.limits.count_skipped(self.counters, result.grad_norm, prompts_P)
        else:
            self.counters.nonfinite_in_a_row = 0
            if self.state.ema is not None:
                self.state.ema.update()

    def _exchange(self, rewarded: Rewarded, credit: Credit) -> list[Minibatch]:
        """Deals the selected rows evenly over ranks, and moves them there. Collective."""
        minibatches = build_minibatches(
            rewarded.rows,
            self.algorithm.select(rewarded.rewards, credit),
            credit,
            rewarded.rewards.prompt_ids_P.repeat_interleave(self.group_size),
            rows_per_unit=self.algorithm.rows_per_unit,
            minibatches=self.optimizer.minibatches,
            micro_batch=self.optimizer.micro_batch,
            sizes_S=gather_sizes(self.domain, rewarded.rows),
            is_by_prompt=self.domain.shares_prompts,
        )
        return receive(self.domain, minibatches)

    def _steps(self, minibatches: Sequence[Minibatch]) -> Iterator[tuple[int, Minibatch]]:
        """(number of the optimizer step in its iteration, its rows), in order."""
        for update in range(self.optimizer.updates):
            for k, minibatch in enumerate(minibatches):
                yield update * self.optimizer.minibatches + k, minibatch

    def _count(self, minibatch: Minibatch) -> float:
        """The number of rows (or tokens) in the loss of an optimizer step, over all ranks."""
        counts = [
            self.algorithm.row_counts(m.credit, self.domain.segments(m.rows)) for m in minibatch
        ]
        return float(dist.all_sum(torch.cat(counts).sum()))

    def _remember(self, minibatches: list[Minibatch]) -> list[Minibatch]:
        """Adds what `Domain.remember` or `remember_draws` has of the policy before its first step,
        where a later step needs it.

        Computed on the same micro-batches as training: other shapes would round differently, and
        the first ratio would not be exactly 1.
        """
        if len(minibatches) * self.optimizer.updates < 2 or not self.algorithm.needs_old:
            return minibatches
        with self.engine.sampling(self.policy):
            return [
                [replace(micro, rows=self._remembered(micro)) for micro in minibatch]
                for minibatch in minibatches
            ]

    def _remembered(self, micro: MicroBatch) -> Rows:
        if not self.algorithm.wanted.same_draws:
            return self.domain.remember(self.policy, micro.rows)
        keys = [self._key(0, draw) for draw in range(self.optimizer.draws_per_sample)]
        return self.domain.remember_draws(self.policy, micro.rows, micro.noise_ids_N, keys)

    def _key(self, step: int, draw: int) -> DrawKey:
        """The key of a pass. step: number of the optimizer step in its iteration."""
        update = 0 if self.algorithm.wanted.same_draws else step
        return DrawKey(self.seed, self.counters.iteration, update, draw)

    def _check_stop(self, done: int, steps: int) -> None:
        """A safe point at which `done` of the iteration's `steps` optimizer steps are applied."""
        if done == 0:
            self.stop.check()
        else:
            left = (steps - done) * self._step_seconds
            self.stop.check_unfinished(left + self.saver.seconds)

    def _measured(self, credit: Credit, iteration: int) -> Callable[..., Pair]:
        """`References.measured` of this iteration, for the kind of pass that it is then given."""
        is_logged = is_due(self.logging.divergence_every, iteration)
        return partial(
            self.references.measured,
            is_needed=self.algorithm.needs_reference(credit),
            is_logged=is_logged or self.state.controller is not None,
        )

    @property
    def total_steps(self) -> int:
        return self.iterations * self.optimizer.updates * self.optimizer.minibatches

    def _log_iteration(
        self, rewarded: Rewarded, credit: Credit, tally: Tally, watch: Stopwatch
    ) -> dict[str, Any]:
        """Writes the iteration's line, histograms and pictures; returns the line."""
        done, samples = self.counters.iteration, rewarded.rewards.mask_PG.numel()
        record: dict[str, Any] = {
            "iteration": done,
            **credit_record(rewarded.rewards, credit, self.algorithm.open_gates(rewarded.rewards)),
            **tally.record(),
            "gradient_signal": gradient_signal(self.engine, self.optimizer, self.counters.step),
            **row_record(self.domain.row_metrics(rewarded.rows)),
            "samples": samples,
            **watch.record(samples),
        }
        if self.state.controller is not None:
            record["beta0"] = self.state.controller.beta0
            self.state.controller.follow(record["divergence"])
        self._idle = why_nothing(record, self._settings)
        self._stepped = record["updates"] > record["updates_skipped"]
        self.counters.learned += self._idle is None
        self.counters.idle = 0 if self._idle is None else self.counters.idle + 1
        self.stop.warn_if_slow(record["seconds_update"], self.saver.seconds)
        self._signals.add(record["gradient_signal"], record["reward"])
        for kind, text in warnings_of(record, self._settings, self._signals.mean):
            if kind not in self._warned:
                self._warned.add(kind)  # once per start; metrics.jsonl has every value
                log.warning("iteration %d: %s", done, text)
        histograms: dict[str, Any] = {}
        if is_due(self.logging.histograms_every, done):
            kept = credit.include > 0
            histograms = {"advantage": credit.advantage[kept], "beta_sample": credit.beta[kept]}
            betas = histogram(credit.beta[kept].numpy())
            record["beta_histogram"] = None if betas is None else betas.as_json()
        self.saver.check_owner()
        self.log.iteration(record, {n: v.numpy() for n, v in histograms.items() if len(v)})
        self._show(rewarded, credit, tally)
        return record

    def _show(self, rewarded: Rewarded, credit: Credit, tally: Tally) -> None:
        """Writes pictures or completions of the iteration, where that is due."""
        rewards = rewarded.rewards
        medium_of(self.domain).show(
            self.log,
            self.logging,
            self.counters.iteration,
            Samples(rewarded.rows, rewarded.artifacts, rewarded.prompts_P, rewards.total_PG),
            rewards,
            credit,
            tally.measured(),
        )

    def _maybe_evaluate(self) -> bool:
        """Evaluates where that is due and not done yet; True where it did."""
        done, config = self.counters.iteration, self.evaluator.config
        if not config.is_due(done, self.iterations) or self.counters.evaluated == done:
            return False
        with watchdog.phase("evaluation"), self.state.holding(config.weights):
            results = self.evaluator.evaluate_splits(
                self.policy, self.references.base, self.stop.check
            )
        numbers = numbers_of(results)
        self.saver.check_owner()
        of = self.identity | {"iteration": done, "weights": config.weights}
        by_prompt = [
            prompt_row(done, split, config.weights, self.evaluator.splits[split], result.values)
            for split, result in results.items()
        ]
        self.log.evaluation([of | number for number in numbers], by_prompt)
        for split, result in results.items():
            self.log.picture(f"eval_{split}", result.grid, done, f"{split}-{done:06d}.png")
        self.counters.evaluated = done
        return True
