"""The numbers of a run's first iterations that say whether it can learn: range, key, evidence.

One table, which docs/guide/tuning.md shows and `status` applies. The module imports no torch:
`status` answers at once.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean, variance
from typing import Any

FIRST, ENOUGH = (
    20,
    10,
)  # values of a number that count, the first ones; fewer than these say nothing
FLOW, TOKENS = "flow", "tokens"
SIGNED = ("adrpo", "grpo")  # A of the others is a weight, or the place in a pair
SIGNAL = "gradient_signal"
DEMO = "demos only"
NOISE = 0.03  # a gradient signal below it: half signal would take 32 times the samples
_LARGEST = 1e300
SMALL = 0.05  # a mean |A| below it

MORE_SAMPLES = "raise prompts.per_iteration or prompts.group_size"
MORE_DRAWS = "raise optimizer.draws_per_sample"
FINER_REWARD = (
    "give a graded reward, partial credit instead of yes or no (glyph_checker: graded = true)"
)
SLOWER = (
    "lower optimizer.learning_rate, or raise algorithm.beta0 (beta, where that is its name; "
    "regulariser.beta0 of raft; where beta0 is steered, lower regulariser.controller.target)"
)


@dataclass(frozen=True)
class Guide:
    """A number of metrics.jsonl, its range, and what to change outside. low, high: None where it
    has no such end. of: flow, tokens, or "" for both. algorithms: () for all. source: of the
    range."""

    metric: str
    meaning: str
    low: float | None
    high: float | None
    below: str
    above: str
    source: str
    of: str = ""
    algorithms: tuple[str, ...] = ()

    def advice(self, value: float) -> str | None:
        """What to change at a value; None inside the range."""
        if self.low is not None and value < self.low:
            return self.below
        if self.high is not None and value > self.high:
            return self.above
        return None

    def is_for(self, kind: str, algorithm: str) -> bool:
        return self.of in ("", kind) and (not self.algorithms or algorithm in self.algorithms)

    @property
    def range(self) -> str:
        if self.low is None:
            return f"at most {self.high:g}"
        if self.high is None:
            return f"at least {self.low:g}"
        return f"{self.low:g} to {self.high:g}"


GUIDES = (
    Guide(
        "advantage_clip_fraction",
        "clipped share",
        None,
        0.9,
        "",
        'set algorithm.scale = "group_std": where all are clipped, only signs are left',
        "demos only; one learns at .97, by signs",
        FLOW,
        SIGNED,
    ),
    Guide(
        "advantage_abs_mean",
        "mean size of A",
        SMALL,
        None,
        'set algorithm.scale = "group_std", or give rewards on a scale of 0 to 100',
        "",
        DEMO,
        algorithms=SIGNED,
    ),
    Guide(
        "divergence",
        "squared velocity per element",
        1e-6,
        0.02,
        "raise optimizer.learning_rate",
        SLOWER,
        "demos only, at most .013 where one learned",
        FLOW,
    ),
    Guide(
        "divergence",
        "KL per token",
        1e-5,
        0.2,
        "raise optimizer.learning_rate",
        SLOWER,
        "demos only, at most .15 where one learned",
        TOKENS,
    ),
    Guide(
        "grad_norm",
        "before clipping",
        1e-4,
        1.0,
        "raise the weights of the rewards: elements come near optimizer.eps",
        "raise optimizer.max_grad_norm, or lower optimizer.learning_rate where the norm grows",
        "optimizer.eps and max_grad_norm at their defaults; demos .002 to .7",
    ),
    Guide(
        "entropy",
        "nats per token",
        0.03,
        3.0,
        "set algorithm.entropy_coef, e.g. 0.01, or raise domain.rollout.temperature",
        "lower domain.rollout.temperature",
        "demos only, .04 to .6",
        TOKENS,
    ),
    Guide(
        SIGNAL,
        "0 is noise, 1 none",
        NOISE,
        None,
        f"{MORE_SAMPLES}; {MORE_DRAWS}; {FINER_REWARD}",
        "",
        "demos only; not judged where the reward has risen",
        FLOW,
    ),
    Guide(
        SIGNAL,
        "0 is noise, 1 none",
        NOISE,
        None,
        f"{MORE_SAMPLES}; {FINER_REWARD}",
        "",
        "demos only; not judged where the reward has risen",
        TOKENS,
    ),
)


def has_risen(rewards: Sequence[float]) -> bool:
    """Whether the mean of the last `FIRST` rewards is above that of the first `ENOUGH` by more than
    two standard errors. rewards: means of iterations, in order. A gradient without a signal is then
    that of a run which has learned what there was."""
    first, last = rewards[:ENOUGH], rewards[ENOUGH:][-FIRST:]
    if min(len(first), len(last)) < ENOUGH:
        return False
    error = math.sqrt(variance(first) / len(first) + variance(last) / len(last))
    return fmean(last) - fmean(first) > 2 * error


def outside(rows: Iterable[Mapping[str, Any]], algorithm: str) -> list[str]:
    """A line for each number whose mean over its first values is outside its range. rows: lines of
    metrics.jsonl, in order. algorithm: its name."""
    lines, known = [], list(rows)
    rewards = [row["reward"] for row in known if _is_number(row.get("reward"))]
    kind = TOKENS if any("entropy" in row for row in known) else FLOW
    for guide in GUIDES:
        first = [row[guide.metric] for row in known if _is_number(row.get(guide.metric))][:FIRST]
        if len(first) < ENOUGH or not guide.is_for(kind, algorithm):
            continue
        mean = fmean(first)
        advice = guide.advice(mean)
        if advice is not None and not (guide.metric == SIGNAL and has_risen(rewards)):
            found = f"{guide.metric} of the first {len(first)} is {mean:.2g}"
            lines.append(f"{found}, expected {guide.range}: {advice}")
    return lines


def _is_number(value: Any) -> bool:
    return type(value) in (int, float) and abs(value) < _LARGEST  # not nan either


def table() -> list[list[str]]:
    """The guides as the lines of a table in Markdown, its head first."""
    head = ["number", "of", "range", "below it", "above it", "the range comes from"]
    return [head] + [
        [
            f"`{guide.metric}`, {guide.meaning}",
            ", ".join(filter(None, [guide.of, " and ".join(guide.algorithms)])) or "all",
            guide.range,
            guide.below or "–",
            guide.above or "–",
            guide.source,
        ]
        for guide in GUIDES
    ]
