"""The sounds task: clips of three different sounds, and questions for the first, second or last of
them.

A clip is synthesised: three of six short sounds with random pitch and loudness, short silences
between them, and faint noise. A question has four options: the three sounds of its clip and one
other. Completions name the right one inside `<answer>`, optionally after all three in order inside
`<think>`:

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
SECONDS = 0.2  # length of a sound
GAPS = (0.02, 0.08)  # seconds before, between and after the sounds
PITCH = 0.06  # largest relative change of a sound's pitch
HELD_OUT = 24  # held-out orders, of the 120 of three out of six sounds
POSITIONS = ("first", "second", "last")
QUESTION = "Which sound comes {} in the audio?"
THINK, END_THINK, ANSWER, END_ANSWER = TAGS = ("<think>", "</think>", "<answer>", "</answer>")
WORD = r"</?\w+>|\w+|[^\w\s]"  # a tag, a word or a mark: one token each

Samples = NDArray[np.floating[Any]]
Order = tuple[str, str, str]


@dataclass(frozen=True)
class Question:
    """A question about a clip of the sounds `order`. place: 0 … 2, the place of the answer in
    it."""

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
    """A sweep from one pitch to another, linear in octaves."""
    octaves = np.log2(end / begin)
    return np.sin(
        2 * np.pi * begin * SECONDS / octaves / np.log(2) * 2 ** (octaves * time / SECONDS)
    )


def _clicks(time: Samples, hertz: float) -> Samples:
    return 2.0 * (np.modf(time * hertz)[0] < 0.002 * hertz)


# Name → samples, a function of (times in seconds, factor on all pitches, random generator).
SOUNDS: dict[str, Callable[[Samples, float, np.random.Generator], Samples]] = {
    "beep": lambda time, pitch, rng: _tone(time, 1000 * pitch),
    "hum": lambda time, pitch, rng: _hum(time, 120 * pitch),
    "rise": lambda time, pitch, rng: _sweep(time, 500 * pitch, 3000 * pitch),
    "fall": lambda time, pitch, rng: _sweep(time, 3000 * pitch, 500 * pitch),
    "hiss": lambda time, pitch, rng: 0.5 * rng.standard_normal(len(time)),
    "click": lambda time, pitch, rng: _clicks(time, 30 * pitch),
}


def draw_clip(order: Order, rng: np.random.Generator) -> Samples:
    """A clip of the sounds in order: float32 samples at 16 kHz in [-1, 1], 0.7 to 0.95 s."""
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
    edges = np.minimum(
        1, np.minimum(time, SECONDS - time) / 0.01
    )  # without the fades, both ends would click
    return rng.uniform(0.15, 0.3) * edges * wave


# ---- questions and completions -------------------------------------------------------------------


def draw_question(order: Order, place: int, rng: np.random.Generator) -> Question:
    absent = [name for name in SOUNDS if name not in order]
    choices = [*order, absent[rng.integers(len(absent))]]
    return Question(order, place, tuple(str(name) for name in rng.permutation(choices)))


def split_orders(seed: int = 0) -> tuple[list[Order], list[Order]]:
    """(train, held out): all orders of three different sounds, shuffled."""
    orders: list[Order] = list(permutations(SOUNDS, 3))  # type: ignore[arg-type]
    shuffled = [orders[i] for i in np.random.default_rng(seed).permutation(len(orders))]
    return shuffled[HELD_OUT:], shuffled[:HELD_OUT]


def completion_of(question: Question) -> str:
    """The right answer after reasoning, which lists the sounds in order."""
    heard = " , ".join(map(" ".join, zip(POSITIONS, question.order, strict=True)))
    return f"{THINK} {heard} {END_THINK} {ANSWER} {question.answer} {END_ANSWER}"


def draw_demonstration(question: Question, rng: np.random.Generator, *, reasons: bool) -> str:
    """A demonstration for the base policy: the right answer with reasoning, else a random sound of
    the clip.

    Right answers without reasoning would be learnt abruptly, at a step that depends on rounding,
    and would leave nothing to learn for reinforcement learning.
    """
    if reasons:
        return completion_of(question)
    return f"{ANSWER} {question.order[rng.integers(3)]} {END_ANSWER}"


def words(instructions: Sequence[str]) -> list[str]:
    """Every word and punctuation mark of questions, instructions and completions, sorted.
    instructions: the fixed texts of prompts."""
    texts = [*instructions, QUESTION.format(""), *POSITIONS, *SOUNDS, *TAGS, "[ ' , ' ] ."]
    return sorted({word for text in texts for word in re.findall(WORD, text)})
