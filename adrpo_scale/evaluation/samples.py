"""The samples of an evaluation: their numbers, their noise, and the batches that they are made in.

Samples are numbered over prompt sets, prompts, sampling seeds and samples of a prompt, in this
order. A batch is a run of numbers of one length whatever the number of processes; the last one is
filled up with its own last sample.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

from adrpo_scale.core.types import DrawKey, Prompt
from adrpo_scale.evaluation.asked import SamplingConfig

T = TypeVar("T")


@dataclass(frozen=True)
class NamedSet:
    """A prompt set of an evaluation."""

    name: str
    prompts: tuple[Prompt, ...]


@dataclass(frozen=True)
class Sample:
    """A sample to be made. seed: the sampling seed; member: its number among those of its prompt
    and seed."""

    number: int
    set: str
    prompt: Prompt
    seed: int
    member: int

    @property
    def key(self) -> DrawKey:
        """The key of its noise: (sampling seed, prompt, number of the sample) alone."""
        return DrawKey(self.seed, self.prompt.id, 0, self.member)


def evenly(items: Sequence[T], limit: int | None) -> list[T]:
    """`limit` of the items (None: all), spread evenly: files are ordered by task or category."""
    count = len(items) if limit is None else min(limit, len(items))
    return [items[k * len(items) // count] for k in range(count)]


def planned(sets: Sequence[NamedSet], sampling: SamplingConfig) -> list[Sample]:
    """Every sample, in the order of its number."""
    places = [
        (one.name, prompt, seed, member)
        for one in sets
        for prompt in one.prompts
        for seed in sampling.seeds
        for member in range(sampling.per_prompt)
    ]
    return [Sample(number, *place) for number, place in enumerate(places)]


def batches(samples: Sequence[Sample], size: int) -> list[list[Sample]]:
    """The samples cut by their numbers, all of one length."""
    cut = [list(samples[k : k + size]) for k in range(0, len(samples), size)]
    return [batch + [batch[-1]] * (size - len(batch)) for batch in cut]
