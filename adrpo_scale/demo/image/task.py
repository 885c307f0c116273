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

GRID = 4  # cells per side
CELL = 5  # pixels per side of a cell
SIZE = GRID * CELL  # pixels per side of an image

SHAPES = ("ring", "square", "triangle")
COLORS = ("red", "green", "blue", "yellow")
NUMBERS = {2: "two", 3: "three", 4: "four"}
RELATIONS = ("left of", "above")
KINDS = ("single_object", "two_objects", "left_of", "above", "counting", "color_open")

_PALETTE_C3 = np.array(
    [[214, 48, 49], [39, 174, 96], [41, 98, 222], [240, 200, 40]], dtype=np.float64
)
_MASKS_S55 = np.array(
    [
        [[c == "#" for c in row] for row in glyph.split()]
        for glyph in (
            ".###. #...# #...# #...# .###.",
            "##### ##### ##### ##### #####",
            "..#.. ..#.. .###. .###. #####",
        )
    ]
)
_GREY_RANGE = (70, 190)  # of the background, grey levels of 0–255
_COLOR_JITTER = 18  # a glyph's colour moves by at most this in each channel
_PIXEL_NOISE = 3.0  # standard deviation in grey levels

# The checker's tolerances, in grey levels. With looser ones half-formed glyphs pass, and the
# checker could be fooled like the reward that it judges. With tighter ones a sampler's usual noise
# fails.
_EMPTY_RMS = 24.0
_GLYPH_RMS = 34.0
_COLOR_DISTANCE = 85.0

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


@dataclass(frozen=True)
class Glyph:
    """A glyph on the grid; row 0 is the top, column 0 the left."""

    row: int
    col: int
    shape: str
    color: str


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
        cells = rng.choice(GRID * GRID, size=len(things), replace=False)
        places = [divmod(int(cell), GRID) for cell in cells]
        if spec.relation is None or _in_line(spec.relation, places[0], places[1]):
            break
    image = np.full((SIZE, SIZE, 3), rng.uniform(*_GREY_RANGE))
    for thing, (row, col) in zip(things, places, strict=True):
        index = COLORS.index(thing.color) if thing.color else int(rng.integers(len(COLORS)))
        color = _PALETTE_C3[index] + rng.uniform(-_COLOR_JITTER, _COLOR_JITTER, size=3)
        cell = image[row * CELL : (row + 1) * CELL, col * CELL : (col + 1) * CELL]
        cell[_MASKS_S55[SHAPES.index(thing.shape)]] = color
    image += rng.normal(0.0, _PIXEL_NOISE, size=image.shape)
    return np.clip(np.rint(image), 0, 255).astype(np.uint8)


def _read_cell(cell_553: np.ndarray, grey_3: np.ndarray) -> tuple[str, str] | None:
    """(shape, color) of a cell [5, 5, 3], None for an empty one; ValueError for anything else."""
    if np.sqrt(np.mean((cell_553 - grey_3) ** 2)) < _EMPTY_RMS:
        return None
    best = (np.inf, 0, grey_3)
    for index, mask in enumerate(_MASKS_S55):
        color = cell_553[mask].mean(axis=0)
        model = np.where(mask[..., None], color, grey_3)
        rms = float(np.sqrt(np.mean((cell_553 - model) ** 2)))
        if rms < best[0]:
            best = (rms, index, color)
    rms, index, color = best
    distances = np.linalg.norm(_PALETTE_C3 - color, axis=1)
    if rms > _GLYPH_RMS or distances.min() > _COLOR_DISTANCE:
        raise ValueError(f"no glyph: best fit {SHAPES[index]}, rms {rms:.0f}, colour {color}")
    return SHAPES[index], COLORS[int(distances.argmin())]


def parse_image(image: np.ndarray) -> list[Glyph] | None:
    """The glyphs of an image, uint8 [20, 20, 3], in reading order; None where one is unreadable.

    Raises ValueError for another shape or dtype.
    """
    if image.shape != (SIZE, SIZE, 3) or image.dtype != np.uint8:
        raise ValueError(
            f"image is {image.dtype} {list(image.shape)}; expected uint8 [{SIZE}, {SIZE}, 3]"
        )
    pixels = image.astype(np.float64)
    grey_3 = np.median(pixels.reshape(-1, 3), axis=0)  # glyphs cover a quarter at most
    glyphs = []
    for row, col in itertools.product(range(GRID), repeat=2):
        cell = pixels[row * CELL : (row + 1) * CELL, col * CELL : (col + 1) * CELL]
        try:
            found = _read_cell(cell, grey_3)
        except ValueError:
            return None
        if found is not None:
            glyphs.append(Glyph(row, col, *found))
    return glyphs


def _satisfies(glyphs: Sequence[Glyph], spec: Spec) -> bool:
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
    return glyphs is not None and _satisfies(glyphs, spec)
