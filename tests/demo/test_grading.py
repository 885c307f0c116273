"""The graded checker: partial credit that agrees with the strict one, and orders wrong pictures."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from adrpo_scale.core.types import Prompt
from adrpo_scale.demo.image.grading import credit, grade
from adrpo_scale.demo.image.rewards import GlyphChecker, GlyphCheckerConfig
from adrpo_scale.demo.image.task import (
    SHEET,
    Glyph,
    check,
    enumerate_prompts,
    parse_image,
    parse_prompt,
    render,
)

PROMPTS, CELL = enumerate_prompts(), SHEET.cell


def damaged(image, rng):
    """The picture with a cell emptied, copied to another place or ruined, two cells exchanged, or
    noise over all of it."""
    image, grey = image.copy(), np.median(image.reshape(-1, 3), axis=0)
    cells = [
        image[CELL * r : CELL * (r + 1), CELL * c : CELL * (c + 1)]
        for r in range(4)
        for c in range(4)
    ]
    full = [k for k, cell in enumerate(cells) if np.abs(cell - grey).max() > 40]
    if not full:
        return image
    one, other = cells[rng.choice(full)], cells[int(rng.integers(len(cells)))]
    way = int(rng.integers(5))
    if way == 0:
        one[:] = grey
    elif way == 1:
        other[:] = one.copy()
    elif way == 2:
        one[:] = rng.integers(0, 256, one.shape)
    elif way == 3:
        one[:], other[:] = other.copy(), one.copy()
    else:
        image = np.clip(image + rng.normal(0, 25, image.shape), 0, 255).astype(np.uint8)
    return image


def test_it_is_1_exactly_where_the_strict_checker_says_yes():
    rng = np.random.default_rng(0)
    others = [*PROMPTS[137:], *PROMPTS[:137]]
    seen = {True: 0, False: 0}
    partial = unreadable = 0
    for prompt, other in [*zip(PROMPTS, others, strict=True)][::3]:
        image = render(prompt.spec, rng)
        for picture in (image, damaged(image, rng), damaged(damaged(image, rng), rng)):
            for text in (prompt.text, other.text):
                strict, graded = check(picture, text), grade(picture, text)
                assert (graded == 1.0) is strict, (text, parse_image(picture))
                assert 0 <= graded <= 1
                seen[strict] += 1
                partial += 0 < graded < 1
                if parse_image(picture) is None:
                    unreadable += 1
                    assert graded == 0
    # Every side of the claim was tried.
    assert min(*seen.values(), partial, unreadable) > 50


RING, SQUARE = Glyph(1, 1, "ring", "red"), Glyph(1, 2, "square", "blue")
BELOW = Glyph(2, 0, "ring", "red")


@pytest.mark.parametrize(
    ("text", "glyphs", "expected"),
    [
        ("a red ring", [], 0.0),
        ("a red ring", [Glyph(0, 0, "ring", "blue")], 0.5 + 0.5 * 0.5),
        ("a red ring", [Glyph(0, 0, "square", "blue")], 0.5),
        ("a red ring", [RING, SQUARE], 0.0 + 0.5),  # one too many of one: no credit for the count
        ("a ring", [Glyph(0, 0, "ring", "blue")], 1.0),
        ("three red rings", [RING, BELOW], 0.5 * 2 / 3 + 0.5 * 2 / 3),
        ("two red rings", [RING, SQUARE, BELOW], 0.5 * 0.5 + 0.5),
        ("a red ring and a blue square", [RING], 0.5 * 0.5 + 0.5 * 0.5),
        ("a blue square and a red ring", [RING, SQUARE], 1.0),
        ("a red ring left of a blue square", [RING, SQUARE], 1.0),
        ("a blue square left of a red ring", [RING, SQUARE], 0.5 + 0.5 * 0.5),
        ("a red ring left of a blue square", [RING], 0.5 * 0.5 + 0.5 * 0.5 * 0.5),
        # The relation and the glyphs are judged in one assignment: exchanged glyphs keep the
        # relation, and lose both shapes and colours.
        ("a red ring above a blue square", [SQUARE, BELOW], 0.5 + 0.5 * 0.5),
    ],
)
def test_credit_by_hand(text, glyphs, expected):
    assert credit(glyphs, parse_prompt(text)) == pytest.approx(expected, abs=1e-12)


def test_a_full_grid_is_graded_at_once():
    full = [Glyph(r, c, "ring", "red") for r in range(4) for c in range(4)]
    assert credit(full, parse_prompt("four red rings")) == 0.5
    assert credit(full, parse_prompt("a red ring above a red ring")) == 0.5


def test_the_reward_is_strict_by_default_and_graded_where_that_is_set():
    rng = np.random.default_rng(3)
    images = [render(parse_prompt(text), rng) for text in ("a red ring", "a blue ring")]
    prompts = [Prompt(0, "a red ring"), Prompt(0, "a red ring")]
    strict = GlyphChecker(GlyphCheckerConfig(), torch.device("cpu"))
    graded = GlyphChecker(GlyphCheckerConfig(graded=True), torch.device("cpu"))
    assert strict(images, prompts).tolist() == [1.0, 0.0]
    assert graded(images, prompts).tolist() == [1.0, 0.75]
