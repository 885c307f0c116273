"""The image task: prompts about coloured glyphs on a grid, their pictures, and an exact checker.

An image is 20×20 RGB uint8: a 4×4 grid of 5×5 cells on a random grey background. A cell is empty or
holds one glyph (ring, square, triangle) in one of four colours, slightly jittered. The prompts are
small versions of those of DrawBench and GenEval: one object, two objects with colours, left of,
above, counting, open colour. The checker reads the glyphs back, so it decides exactly whether an
image shows its prompt; reward models of natural images cannot.

All functions are pure: the same generator state gives the same image.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from adrpo_scale.demo.image.cells import COLORS, Glyph, Sheet

SHEET = Sheet(
    grid=4,
    cell=5,
    glyphs=(
        ("ring", ".###. #...# #...# #...# .###."),
        ("square", "##### ##### ##### ##### #####"),
        ("triangle", "..#.. ..#.. .###. .###. #####"),
    ),
)
SHAPES = SHEET.shapes
NUMBERS = {2: "two", 3: "three", 4: "four"}
RELATIONS = ("left of", "above")
KINDS = ("single_object", "two_objects", "left_of", "above", "counting", "color_open")

_PROMPT = re.compile(
    r"(?P<number>a|two|three|four)(?: (?P<color>{c}))? (?P<shape>{s})(?P<plural>s?)"
    r"(?: (?P<link>and|left of|above) a(?: (?P<color2>{c}))? (?P<shape2>{s}))?".format(
        c="|".join(COLORS), s="|".join(SHAPES)
    )
)


@dataclass(frozen=True)
class Thing:
    """`count` glyphs of one shape; `color` None means any colour, each glyph its own."""

    shape: str
    color: str | None = None
    count: int = 1


@dataclass(frozen=True)
class Spec:
    """The required content of an image: exactly these things and nothing else.

    `relation` ("left of" or "above") holds from the first thing to the second.
    Example: `Spec((Thing("ring", "red"), Thing("square", "blue")), "left of")`.
    """

    things: tuple[Thing, ...]
    relation: str | None = None

    @property
    def kind(self) -> str:
        """One of `KINDS`; a prompt that leaves any colour open is of the kind color_open."""
        if any(thing.color is None for thing in self.things):
            return "color_open"
        if self.relation is not None:
            return self.relation.replace(" ", "_")
        if len(self.things) == 2:
            return "two_objects"
        return "single_object" if self.things[0].count == 1 else "counting"


@dataclass(frozen=True)
class ImagePrompt:
    """A prompt as plain text and as a structure; `parse_prompt(text) == spec`."""

    text: str
    spec: Spec


def prompt_text(spec: Spec) -> str:
    """The text of a spec, e.g. "a red ring left of a blue square" or "three yellow triangles"."""
    phrases = []
    for thing in spec.things:
        number = "a" if thing.count == 1 else NUMBERS[thing.count]
        plural = "" if thing.count == 1 else "s"
        color = f" {thing.color}" if thing.color else ""
        phrases.append(f"{number}{color} {thing.shape}{plural}")
    return f" {spec.relation or 'and'} ".join(phrases)


def parse_prompt(text: str) -> Spec:
    """The spec of a prompt's text, ignoring case, surrounding blanks and a final full stop.

    Raises ValueError, with an example of a valid prompt, if the text is not of this task.
    """
    match = _PROMPT.fullmatch(text.strip().lower().removesuffix("."))
    single = match is not None and match["number"] == "a"
    if match is None or single == bool(match["plural"]) or (match["link"] and not single):
        raise ValueError(
            f"{text!r} is not a prompt of the image task; expected something like 'a red ring', "
            "'two green squares', 'a red ring left of a blue square' or 'a ring and a triangle'"
        )
    counts = {"a": 1} | {word: count for count, word in NUMBERS.items()}
    first = Thing(match["shape"], match["color"], counts[match["number"]])
    if not match["link"]:
        return Spec((first,))
    relation = None if match["link"] == "and" else match["link"]
    return Spec((first, Thing(match["shape2"], match["color2"])), relation)


def enumerate_prompts() -> tuple[ImagePrompt, ...]:
    """All 444 prompts, always in the same order.

    12 single objects, 66 pairs, 132 "left of", 132 "above", 36 countings, 66 with a colour open.
    """
    colored = [Thing(shape, color) for color in COLORS for shape in SHAPES]
    anything = [Thing(shape) for shape in SHAPES]
    specs = [Spec((thing,)) for thing in colored]
    specs += [Spec(pair) for pair in itertools.combinations(colored, 2)]
    for relation in RELATIONS:
        specs += [Spec(pair, relation) for pair in itertools.permutations(colored, 2)]
    specs += [Spec((Thing(t.shape, t.color, n),)) for n in NUMBERS for t in colored]
    specs += [Spec((thing,)) for thing in anything]
    specs += [Spec((Thing(t.shape, None, n),)) for n in NUMBERS for t in anything]
    specs += [Spec((thing, other)) for thing in colored for other in anything]
    for link in (None, *RELATIONS):
        specs += [Spec(pair, link) for pair in itertools.permutations(anything, 2)]
    return tuple(ImagePrompt(prompt_text(spec), spec) for spec in specs)


def split_prompts(
    seed: int = 0, held_out: int = 60
) -> tuple[tuple[ImagePrompt, ...], tuple[ImagePrompt, ...]]:
    """(train, held_out): all prompts, each kind in proportion, in their order.

    Largest remainders decide which kinds get the last places. Raises ValueError if `held_out` is
    not between 0 and the number of prompts.
    """
    prompts = enumerate_prompts()
    if not 0 <= held_out <= len(prompts):
        raise ValueError(f"held_out = {held_out}; expected 0 to {len(prompts)}")
    members = {k: [i for i, p in enumerate(prompts) if p.spec.kind == k] for k in KINDS}
    shares = {kind: held_out * len(rows) / len(prompts) for kind, rows in members.items()}
    quota = {kind: int(share) for kind, share in shares.items()}
    by_remainder = sorted(KINDS, key=lambda kind: quota[kind] - shares[kind])
    for kind in by_remainder[: held_out - sum(quota.values())]:
        quota[kind] += 1
    rng = np.random.default_rng(seed)
    chosen: set[int] = set()
    for kind in KINDS:
        picks = rng.choice(len(members[kind]), size=quota[kind], replace=False)
        chosen.update(members[kind][i] for i in picks)
    train = tuple(p for i, p in enumerate(prompts) if i not in chosen)
    return train, tuple(p for i, p in enumerate(prompts) if i in chosen)


def to_geneval(prompt: ImagePrompt) -> dict[str, Any]:
    """A prompt as a line of a GenEval jsonl file: tag, include, prompt.

    As in GenEval, the object that a position refers to comes first in `include`, and the other one
    has the position: "a red ring left of a blue square" includes the square, then the ring with
    `"position": ["left of", 0]`. An open colour has no `color` key.
    """
    include: list[dict[str, Any]] = []
    for thing in prompt.spec.things:
        entry: dict[str, Any] = {"class": thing.shape, "count": thing.count}
        if thing.color is not None:
            entry["color"] = thing.color
        include.append(entry)
    if prompt.spec.relation is not None:
        include[0]["position"] = [prompt.spec.relation, 0]
        include.reverse()
    return {"tag": prompt.spec.kind, "include": include, "prompt": prompt.text}


def holds(relation: str | None, first: tuple[int, int], second: tuple[int, int]) -> bool:
    """True where `relation` holds from the first (row, col) to the second; None always holds."""
    if relation is None:
        return True
    axis = 1 if relation == "left of" else 0
    return first[axis] < second[axis]


def _in_line(relation: str, first: tuple[int, int], second: tuple[int, int]) -> bool:
    """True where `relation` holds within one row ("left of") or one column ("above")."""
    across = 0 if relation == "left of" else 1
    return holds(relation, first, second) and first[across] == second[across]


def render(spec: Spec, rng: np.random.Generator) -> np.ndarray:
    """A picture of a spec, uint8 [20, 20, 3], RGB, with random places and open colours.

    "left of" is drawn within a row and "above" within a column; the checker does not require that.
    """
    things = [thing for thing in spec.things for _ in range(thing.count)]
    while True:
        cells = rng.choice(SHEET.grid**2, size=len(things), replace=False)
        places = [divmod(int(cell), SHEET.grid) for cell in cells]
        if spec.relation is None or _in_line(spec.relation, places[0], places[1]):
            break
    drawn = [(place, thing.shape, thing.color) for thing, place in zip(things, places, strict=True)]
    return SHEET.paint(drawn, rng)


def parse_image(image: np.ndarray) -> list[Glyph] | None:
    """The glyphs of an image, uint8 [20, 20, 3], in reading order; None where one is unreadable.

    Raises ValueError for another shape or dtype.
    """
    return SHEET.read(image)


def satisfies(glyphs: Sequence[Glyph], spec: Spec) -> bool:
    """True where the glyphs are exactly the things of the spec, including its relation."""
    things = [thing for thing in spec.things for _ in range(thing.count)]
    if len(glyphs) != len(things):
        return False
    for order in itertools.permutations(glyphs):
        fits = all(
            glyph.shape == thing.shape and thing.color in (None, glyph.color)
            for glyph, thing in zip(order, things, strict=True)
        )
        places = [(glyph.row, glyph.col) for glyph in order]
        if fits and (spec.relation is None or holds(spec.relation, places[0], places[1])):
            return True
    return False


def check(image: np.ndarray, prompt_text: str) -> bool:
    """True where an image, uint8 [20, 20, 3], shows exactly the prompt's content.

    False where a cell holds anything else than a glyph. Raises ValueError for an image of another
    shape or dtype, and for a text that is not a prompt of the task.
    """
    spec = parse_prompt(prompt_text)
    glyphs = parse_image(image)
    return glyphs is not None and satisfies(glyphs, spec)
