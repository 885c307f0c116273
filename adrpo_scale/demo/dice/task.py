"""The dice task: "three red rings" is three red rings in the places of a die's eyes.

A picture is 9×9 RGB uint8: 3×3 cells of 3×3 pixels. A prompt is one to four glyphs of one of four
shapes and one of four colours: 64 prompts. The base is pretrained on captions of which 82 % are
wrong in one of three known ways, as a careless writer's are: the colour's neighbour, the
shape's neighbour, or one glyph too many. So the base knows what each word means, draws clean
pictures, and seldom the one that was asked for; guidance sharpens right and wrong alike.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from adrpo_scale.demo.image.cells import COLORS, Sheet
from adrpo_scale.demo.image.task import (
    NUMBERS,
    ImagePrompt,
    Spec,
    Thing,
    prompt_text,
    satisfies,
)

SHEET = Sheet(
    grid=3,
    cell=3,
    glyphs=(
        ("ring", "### #.# ###"),
        ("diamond", ".#. ### .#."),
        ("star", "#.# .#. #.#"),
        ("tee", "### .#. .#."),
    ),
)
COUNTS = (1, 2, 3, 4)
RIGHT = 0.18  # share of the pretraining's pictures that show their caption
EYES = {1: (4,), 2: (0, 8), 3: (0, 4, 8), 4: (0, 2, 6, 8), 5: (0, 2, 4, 6, 8)}  # cells, by count
UNSEEN_PAIR = ("yellow", "ring")  # colour and shape that training never shows together
_HELD_OUT = {
    (1, "red", "star"), (1, "blue", "diamond"), (1, "green", "tee"), (2, "blue", "ring"),
    (2, "yellow", "diamond"), (3, "red", "ring"), (3, "yellow", "tee"), (4, "green", "star"),
}  # fmt: skip
_PROMPT = re.compile(
    rf"(a|two|three|four) ({'|'.join(COLORS)}) ({'|'.join(SHEET.shapes)})(s?)", re.IGNORECASE
)


def enumerate_prompts() -> tuple[ImagePrompt, ...]:
    """All 64 prompts, always in the same order."""
    specs = [
        Spec((Thing(shape, color, count),))
        for count, color, shape in itertools.product(COUNTS, COLORS, SHEET.shapes)
    ]
    return tuple(ImagePrompt(prompt_text(spec), spec) for spec in specs)


def parse_prompt(text: str) -> Spec:
    """The spec of a prompt's text, ignoring case, surrounding blanks and a final full stop.

    Raises ValueError, with an example of a valid prompt, if the text is not of this task.
    """
    match = _PROMPT.fullmatch(text.strip().lower().removesuffix("."))
    if match is None or (match[1] == "a") == bool(match[4]):
        raise ValueError(
            f"{text!r} is not a prompt of the dice task; expected something like 'a red ring' or "
            "'three green stars'"
        )
    count = {word: count for count, word in NUMBERS.items()}.get(match[1], 1)
    return Spec((Thing(match[3], match[2], count),))


def split_prompts() -> tuple[tuple[ImagePrompt, ...], tuple[ImagePrompt, ...]]:
    """(train, held out): 52 and 12 prompts. Every word is in training.

    Held out are combinations: four prompts of `UNSEEN_PAIR`, and eight triples of which training
    has every pair.
    """

    def is_held_out(prompt: ImagePrompt) -> bool:
        (thing,) = prompt.spec.things
        key = thing.count, thing.color, thing.shape
        return key[1:] == UNSEEN_PAIR or key in _HELD_OUT

    prompts = enumerate_prompts()
    train = tuple(prompt for prompt in prompts if not is_held_out(prompt))
    return train, tuple(prompt for prompt in prompts if is_held_out(prompt))


def render(spec: Spec, rng: np.random.Generator) -> np.ndarray:
    """A true picture of a spec, uint8 [9, 9, 3], RGB."""
    (thing,) = spec.things
    places = [divmod(cell, SHEET.grid) for cell in EYES[thing.count]]
    return SHEET.paint([(place, thing.shape, thing.color) for place in places], rng)


def mistakes(spec: Spec) -> tuple[Spec, Spec, Spec]:
    """The three wrong pictures of a spec: its colour's neighbour, its shape's, one glyph more."""
    (thing,) = spec.things
    wrong = (
        replace(thing, color=_after(COLORS, str(thing.color))),
        replace(thing, shape=_after(SHEET.shapes, thing.shape)),
        replace(thing, count=thing.count + 1),
    )
    first, second, third = (Spec((one,)) for one in wrong)
    return first, second, third


def _after(names: Sequence[str], name: str) -> str:
    return names[(names.index(name) + 1) % len(names)]


def draw(spec: Spec, rng: np.random.Generator) -> np.ndarray:
    """A picture of the pretraining: right with probability `RIGHT`, else one of the mistakes."""
    shown = spec if rng.random() < RIGHT else mistakes(spec)[rng.integers(3)]
    return render(shown, rng)


def check(image: np.ndarray, prompt_text: str) -> bool:
    """True where an image, uint8 [9, 9, 3], shows exactly the prompt's content, in any places.

    Raises ValueError for an image of another shape or dtype, and for a text that is not a prompt of
    the task.
    """
    spec = parse_prompt(prompt_text)
    glyphs = SHEET.read(image)
    return glyphs is not None and satisfies(glyphs, spec)
