"""The completions of two rows of an evaluation side by side: one prompt, one noise, two models.

Noise is a function of sampling seed, prompt and number of the sample, so the two completions of a
pair differ by their models alone.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from adrpo_scale.evaluation.report.kept_samples import Asked, Kept, Noise, read_samples


@dataclass(frozen=True)
class Pair:
    """Two completions of one prompt, from one noise."""

    asked: Asked
    noise: Noise
    one: Kept
    other: Kept

    def gap(self, scorer: str) -> float | None:
        """The score of `one` less that of `other`; None where one of them has none."""
        first, second = self.one.scores.get(scorer), self.other.scores.get(scorer)
        return None if first is None or second is None else first - second


def paired_completions(
    one: Path, other: Path, *, prompt: str | None = None, set: str | None = None
) -> list[Pair]:
    """The pairs of two row folders, in the order of the first; a sample that one of them lacks is
    in no pair. prompt, set: of that prompt or prompt set alone."""
    first, second = _written(one), _written(other)
    return [
        Pair(asked, noise, kept, second[asked, noise])
        for (asked, noise), kept in first.items()
        if (asked, noise) in second and prompt in (None, asked.prompt) and set in (None, asked.set)
    ]


def _written(row: Path) -> dict[tuple[Asked, Noise], Kept]:
    return {(kept.asked, kept.noise): kept for kept in read_samples(row) if kept.text is not None}
