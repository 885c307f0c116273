"""Partial credit for pictures of the image task, as GenEval's score that is not strict gives it.

A strict checker says yes or no. Where it seldom says yes, most groups of samples have equal rewards
and the gradient is noise; partial credit tells the better of two wrong pictures.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import numpy as np

from adrpo_scale.demo.image.task import Glyph, Spec, Thing, holds, parse_image, parse_prompt


def grade(image: np.ndarray, prompt_text: str) -> float:
    """0 to 1: the credit of an image, uint8 [20, 20, 3], for a prompt; 1 exactly where
    `task.check` is true, 0 where a cell is unreadable. Raises ValueError as `task.check`."""
    spec = parse_prompt(prompt_text)
    glyphs = parse_image(image)
    return 0.0 if glyphs is None else credit(glyphs, spec)


def credit(glyphs: Sequence[Glyph], spec: Spec) -> float:
    """.5 · max(0, 1 - |glyphs - n| / n) + .5 · match, with n the number of things in the spec.

    match: of the best assignment of glyphs to things, the mean over things of .5 · (right shape) +
    .5 · (right colour; an open one is always right), 0 for a thing without a glyph. With a
    relation: the mean of that and of whether the relation holds in the same assignment.
    """
    things = [thing for thing in spec.things for _ in range(thing.count)]
    wanted, found = len(things), len(glyphs)
    counted = max(0.0, 1.0 - abs(found - wanted) / wanted)
    padded = [*glyphs, *[None] * (wanted - found)]
    if len(spec.things) == 1:  # equal things: the best glyphs are the best assignment
        fits = sorted((_fit(glyph, things[0]) for glyph in padded), reverse=True)
        match = sum(fits[:wanted]) / wanted
    else:
        orders = itertools.permutations(padded, wanted)
        match = max(_match(order, things, spec.relation) for order in orders)
    return 0.5 * counted + 0.5 * match


def _match(order: Sequence[Glyph | None], things: Sequence[Thing], relation: str | None) -> float:
    fit = sum(map(_fit, order, things)) / len(things)
    if relation is None:
        return fit
    first, second = order[:2]
    places = [(glyph.row, glyph.col) for glyph in (first, second) if glyph is not None]
    return 0.5 * fit + 0.5 * (len(places) == 2 and holds(relation, *places))


def _fit(glyph: Glyph | None, thing: Thing) -> float:
    if glyph is None:
        return 0.0
    return 0.5 * (glyph.shape == thing.shape) + 0.5 * (thing.color in (None, glyph.color))
