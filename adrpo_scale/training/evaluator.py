"""Evaluation during training: fixed prompts and noise, the same numbers at any world size.

Each prompt of a split gets `samples_per_prompt` samples. Their noise depends on `seed` alone, so
two evaluations differ only by the policy.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from PIL import Image
from torch import Tensor, nn

from adrpo_scale.core import dist, watchdog
from adrpo_scale.core.bounds import COUNT, REPEATS
from adrpo_scale.core.seeding import Purpose, permutation
from adrpo_scale.core.settings import Effect, Section, setting
from adrpo_scale.core.types import DrawKey, Prompt, Rewards, Rows
from adrpo_scale.domains.base import Domain, Mode, Reference
from adrpo_scale.engines.base import Engine
from adrpo_scale.rewards.base import Reward, longest_wait, sharded_models
from adrpo_scale.rewards.calls import ABSTAINED
from adrpo_scale.training.media import Samples, medium_of
from adrpo_scale.training.rollout import (
    gather_rewards,
    nothing,
    reward_block,
    sample_block,
    weighted_sum,
)

EVALUATION = -1  # the iteration in the seed of draws, the same at every evaluation


class EvaluationConfig(Section):
    EFFECT: ClassVar[Effect] = "none"

    every: int = setting(
        10, "iterations between evaluations, first and last included; 0: never", ge=0, le=COUNT
    )
    prompts: int = setting(12, "prompts per split", ge=1, le=COUNT)
    samples_per_prompt: int = setting(
        12, "samples per prompt; at least two, for diversity", ge=2, le=REPEATS
    )
    weights: Literal["raw", "ema"] = setting(
        "raw", "the evaluated weights: the trained ones, or their moving average"
    )
    seed: int = setting(0, "seed of the fixed noise and of the choice of prompts", ge=0, lt=2**63)

    def is_due(self, iteration: int, last: int) -> bool:
        """True where an evaluation follows iteration `iteration`, of `last`."""
        return self.every > 0 and (iteration % self.every == 0 or iteration == last)


@dataclass(frozen=True)
class Result:
    """values: name → a value a sample [P, G] or [P·G], or a prompt [P]; NaN where there is none.
    grid: None on ranks > 0, and for media without one."""

    values: dict[str, Tensor]
    grid: Image.Image | None

    @property
    def metrics(self) -> dict[str, tuple[float, int]]:
        """Name → (mean, number of samples or prompts)."""
        return {name: finite_mean(values) for name, values in self.values.items()}


class Evaluator:
    """Evaluates the policy on splits of prompts. Every method is collective."""

    def __init__(
        self,
        config: EvaluationConfig,
        domain: Domain,
        engine: Engine,
        rewards: Sequence[Reward],
        trained_on: set[str],
        splits: dict[str, list[Prompt]],
        chunk: int,
        frozen: Sequence[nn.Module] = (),
    ) -> None:
        """rewards: all of the run. trained_on: labels of those in the weighted sum `reward`.
        chunk: samples made at once. frozen: the reference, where it is a separate model.
        Raises ConfigError where a split has fewer samples than there are ranks.
        """
        self.config, self.domain, self.engine, self.chunk = config, domain, engine, chunk
        self.rewards, self.trained_on, self.frozen = rewards, trained_on, frozen
        self.medium = medium_of(domain)
        self.splits = {name: self._choose(prompts) for name, prompts in splits.items() if prompts}
        for name, prompts in self.splits.items():
            self.medium.check(len(prompts), config.samples_per_prompt, name)

    def _choose(self, prompts: Sequence[Prompt]) -> list[Prompt]:
        order = permutation(len(prompts), self.config.seed, int(Purpose.EVALUATION)).tolist()
        return [prompts[i] for i in order[: self.config.prompts]]

    def evaluate_splits(
        self, policy: nn.Module, reference: Reference, check: Callable[[], None] = nothing
    ) -> dict[str, Result]:
        """The results of `evaluate`, by split."""
        return {split: self.evaluate(policy, reference, split, check) for split in self.splits}

    def evaluate(
        self,
        policy: nn.Module,
        reference: Reference,
        split: str,
        check: Callable[[], None] = nothing,
    ) -> Result:
        """Metrics and picture grid of one split. check: see `sample_block`."""
        prompts, size = self.splits[split], self.config.samples_per_prompt
        key = DrawKey(self.config.seed, EVALUATION)
        # All forward passes are inside: here, ranks may run different numbers of them.
        with self.engine.sampling(policy):
            rows = self._sample(policy, prompts, size, key, "evaluation", check)
            greedy = None
            if "greedy" in self.domain.evaluations:
                greedy = self._sample(policy, prompts, 1, key, "greedy", check)
            with self.engine.sampling(*self.frozen):  # gathered only after sampling, to save memory
                measured = self._divergences(policy, reference, rows, key)
        artifacts, rewards = self._reward(rows, prompts, size, check)
        measured |= self.domain.row_metrics(rows)
        values = reward_planes(rewards, self.trained_on, greedy is not None)
        shown = values["reward"] if self.trained_on else rewards.total_PG
        samples = Samples(rows, artifacts, prompts, shown)
        if greedy is not None:
            _, best = self._reward(greedy, prompts, 1, check)
            values = with_greedy(values, reward_planes(best, self.trained_on, True))
        values |= gather_values(measured)
        values |= self.medium.measure(samples, self.rewards)
        return Result(values, self.medium.grid(samples))

    def _sample(
        self,
        policy: nn.Module,
        prompts: Sequence[Prompt],
        size: int,
        key: DrawKey,
        mode: Mode,
        check: Callable[[], None],
    ) -> Rows:
        return sample_block(self.domain, policy, prompts, size, key, self.chunk, check, mode)

    def _reward(
        self, rows: Rows, prompts: Sequence[Prompt], size: int, check: Callable[[], None]
    ) -> tuple[list[Any], Rewards]:
        artifacts = self.domain.artifacts(rows)
        prompts_N = [prompts[int(s) // size] for s in rows.sample_ids_N]
        samples = len(prompts) * size
        with watchdog.patience(longest_wait(self.rewards)):
            with self.engine.sampling(*sharded_models(self.rewards)):
                rewards_NR = reward_block(
                    self.rewards, artifacts, prompts_N, samples, self.chunk, check
                )
            rewards_NR[~self.domain.is_sound(rows)] = torch.nan
            return artifacts, gather_rewards(rows, rewards_NR, self.rewards, prompts, size)

    def _divergences(
        self, policy: nn.Module, reference: Reference, rows: Rows, key: DrawKey
    ) -> dict[str, Tensor]:
        """This rank's `divergence_metrics`, float64 [N] each; {} without rows."""
        parts: dict[str, list[Tensor]] = {}
        for start in range(0, len(rows), self.chunk):
            part = rows.take(slice(start, start + self.chunk))
            terms = self.domain.terms(
                policy, reference, part, part.sample_ids_N, key, self.domain.gives[0]
            )
            for name, values in self.domain.divergence_metrics(terms).items():
                parts.setdefault(name, []).append(values.double().cpu())
        return {name: torch.cat(values) for name, values in parts.items()}


def numbers_of(results: Mapping[str, Result]) -> list[dict[str, Any]]:
    """The numbers of an evaluation as rows of eval.jsonl. results: by split."""
    return [
        {"split": split, "metric": metric, "value": value, "n": n}
        for split, result in results.items()
        for metric, (value, n) in result.metrics.items()
    ]


def gather_values(mine: dict[str, Tensor]) -> dict[str, Tensor]:
    """The values of all ranks by name. A rank without rows may lack names. Collective."""
    whole: dict[str, list[Tensor]] = {}
    for part in dist.gather_objects(mine):
        for name, values in part.items():
            whole.setdefault(name, []).append(values)
    return {name: torch.cat(parts) for name, parts in whole.items()}


def with_greedy(sampled: dict[str, Tensor], greedy: dict[str, Tensor]) -> dict[str, Tensor]:
    """The rewards of samples and of greedy completions under different names: `reward` and
    `reward_greedy`, and for other rewards `NAME_sampled` and `NAME_greedy`."""
    names = {name: name if name == "reward" else f"{name}_sampled" for name in sampled}
    found = {names[name]: plane for name, plane in sampled.items()}
    return found | {f"{name}_greedy": plane for name, plane in greedy.items()}


def reward_planes(rewards: Rewards, trained_on: set[str], every: bool = False) -> dict[str, Tensor]:
    """[P, G] by metric name: `reward`, the weighted sum of the rewards trained on, and each other
    reward by its label. Rewards trained on appear by label too where there are several, or with
    `every`. Where none is trained on there is no `reward`."""
    # A weight of 0 would not do: a failed evaluation-only reward is NaN, and 0 · NaN is NaN.
    trained = torch.tensor([name in trained_on for name in rewards.names], dtype=torch.bool)
    given_RPG = rewards.per_reward_RPG
    if rewards.abstained_RPG is not None:
        given_RPG = torch.where(rewards.abstained_RPG, ABSTAINED, given_RPG)
    total_PG = weighted_sum(rewards.weights_R[trained], given_RPG[trained])
    planes = {"reward": total_PG} if trained_on else {}
    for name, plane in zip(rewards.names, rewards.per_reward_RPG, strict=True):
        if every or len(trained_on) > 1 or name not in trained_on:
            planes[name] = plane
    return planes


def finite_mean(values: Tensor) -> tuple[float, int]:
    """(mean of the finite values, their number); (nan, 0) without any."""
    finite = values[values.isfinite()]
    return (float(finite.double().mean()), finite.numel()) if finite.numel() else (float("nan"), 0)
