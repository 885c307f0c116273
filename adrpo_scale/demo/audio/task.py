"""The sounds task: clips of three different sounds, and the question which of them comes first,
second or last.

A clip is made by code: three of six short sounds, each a little different in pitch and loudness
every time, with short silences between them, over faint noise. A question has four options, the
three sounds of its clip and one that is not in it. Completions name the right one inside
`<answer>`, optionally after all three in their order inside `<think>`:

    <answer> hiss </answer>
    <think> first beep , second hiss , last rise </think> <answer> hiss </answer>
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import permutations
from typing import Any

import numpy as np
from numpy.typing import NDArray

SAMPLE_RATE = 16_000  # Hz
SECONDS = 0.2  # of a sound
GAPS = (0.02, 0.08)  # seconds before, between and after the sounds
PITCH = 0.06  # largest share by which a sound is higher or lower than it usually is
HELD_OUT = 24  # of the 120 orders of three of six sounds
POSITIONS = ("first", "second", "last")
QUESTION = "Which sound comes {} in the audio?"
THINK, END_THINK, ANSWER, END_ANSWER = TAGS = ("<think>", "</think>", "<answer>", "</answer>")
WORD = r"</?\w+>|\w+|[^\w\s]"  # a tag, a word or a mark: one token each

Samples = NDArray[np.floating[Any]]
Order = tuple[str, str, str]


@dataclass(frozen=True)
class Question:
    """One question about a clip of the sounds `order`. place: 0 … 2, which of them is asked for."""

    order: Order
    place: int
    choices: tuple[str, ...]

    @property
    def text(self) -> str:
        return QUESTION.format(POSITIONS[self.place])

    @property
    def answer(self) -> str:
        return self.order[self.place]


# ---- sounds --------------------------------------------------------------------------------------


def _tone(time: Samples, hertz: float) -> Samples:
    return np.sin(2 * np.pi * hertz * time)


def _hum(time: Samples, hertz: float) -> Samples:
    return np.sum([_tone(time, n * hertz) / n for n in range(1, 6)], axis=0)


def _sweep(time: Samples, begin: float, end: float) -> Samples:
    """From one pitch to another, evenly in octaves."""
    octaves = np.log2(end / begin)
    return np.sin(
        2 * np.pi * begin * SECONDS / octaves / np.log(2) * 2 ** (octaves * time / SECONDS)
    )


def _clicks(time: Samples, hertz: float) -> Samples:
    return 2.0 * (np.modf(time * hertz)[0] < 0.002 * hertz)


# Name → samples by time in seconds, what multiplies all pitches, and the source of randomness.
SOUNDS: dict[str, Callable[[Samples, float, np.random.Generator], Samples]] = {
    "beep": lambda time, pitch, rng: _tone(time, 1000 * pitch),
    "hum": lambda time, pitch, rng: _hum(time, 120 * pitch),
    "rise": lambda time, pitch, rng: _sweep(time, 500 * pitch, 3000 * pitch),
    "fall": lambda time, pitch, rng: _sweep(time, 3000 * pitch, 500 * pitch),
    "hiss": lambda time, pitch, rng: 0.5 * rng.standard_normal(len(time)),
    "click": lambda time, pitch, rng: _clicks(time, 30 * pitch),
}


def draw_clip(order: Order, rng: np.random.Generator) -> Samples:
    """float32 samples at 16 kHz within [-1, 1], .7 to .95 s: the sounds in their order."""
    parts = [_silence(rng)]
    for name in order:
        parts += [_sound(name, rng), _silence(rng)]
    clip = np.concatenate(parts)
    noise = 0.003 * rng.standard_normal(len(clip))
    return np.clip(clip + noise, -1, 1).astype(np.float32)


def _silence(rng: np.random.Generator) -> Samples:
    return np.zeros(round(SAMPLE_RATE * rng.uniform(*GAPS)), np.float32)


def _sound(name: str, rng: np.random.Generator) -> Samples:
    time = np.arange(round(SAMPLE_RATE * SECONDS)) / SAMPLE_RATE
    wave = SOUNDS[name](time, 1 + rng.uniform(-PITCH, PITCH), rng)
    edges = np.minimum(1, np.minimum(time, SECONDS - time) / 0.01)  # else both ends are clicks
    return rng.uniform(0.15, 0.3) * edges * wave


# ---- questions and completions -------------------------------------------------------------------


def draw_question(order: Order, place: int, rng: np.random.Generator) -> Question:
    absent = [name for name in SOUNDS if name not in order]
    choices = [*order, absent[rng.integers(len(absent))]]
    return Question(order, place, tuple(str(name) for name in rng.permutation(choices)))


def split_orders(seed: int = 0) -> tuple[list[Order], list[Order]]:
    """(train, held out): all orders of three different sounds, in a random sequence."""
    orders: list[Order] = list(permutations(SOUNDS, 3))  # type: ignore[arg-type]
    shuffled = [orders[i] for i in np.random.default_rng(seed).permutation(len(orders))]
    return shuffled[HELD_OUT:], shuffled[:HELD_OUT]


def completion_of(question: Question) -> str:
    """The right answer after reasoning: what is heard, in order."""
    heard = " , ".join(map(" ".join, zip(POSITIONS, question.order, strict=True)))
    return f"{THINK} {heard} {END_THINK} {ANSWER} {question.answer} {END_ANSWER}"


def draw_demonstration(question: Question, rng: np.random.Generator, *, reasons: bool) -> str:
    """What the base policy learns from: right where it reasons, else any of the sounds it hears.

    Answers without reasoning that are right would be learnt too, all at once and a little earlier
    or later by mere rounding, and leave reinforcement learning nothing to find.
    """
    if reasons:
        return completion_of(question)
    return f"{ANSWER} {question.order[rng.integers(3)]} {END_ANSWER}"


def words(instructions: Sequence[str]) -> list[str]:
    """Every word and mark of questions, instructions and completions, sorted. instructions: the
    texts that prompts are made with."""
    texts = [*instructions, QUESTION.format(""), *POSITIONS, *SOUNDS, *TAGS, "[ ' , ' ] ."]
    return sorted({word for text in texts for word in re.findall(WORD, text)})
