"""Scorers of single parts of a prompt: what the strict checker asks for, part by part."""

from __future__ import annotations

import numpy as np

from adrpo_scale.core.types import Prompt
from adrpo_scale.demo.image.parts import colors, count, readable, shapes
from adrpo_scale.demo.image.task import SHEET, check, enumerate_prompts, render

PARTS = (readable, count, shapes, colors)


def drawn(*glyphs):
    rng = np.random.default_rng(0)
    places = [(0, 0), (0, 2), (2, 1)]
    return SHEET.paint([(p, *g) for p, g in zip(places, glyphs, strict=False)], rng)


def scores(image, text):
    return [part([image], [Prompt(0, text)])[0] for part in PARTS]


def test_a_picture_of_its_prompt_is_right_in_every_part():
    rng = np.random.default_rng(1)
    for prompt in enumerate_prompts()[::7]:
        assert scores(render(prompt.spec, rng), prompt.text) == [1, 1, 1, 1]


def test_each_part_is_asked_alone():
    two, red, blue = "a red ring and a blue square", ("ring", "red"), ("square", "blue")
    assert scores(drawn(red), two) == [1, 0, 0, 0]
    assert scores(drawn(red, ("triangle", "blue")), two) == [1, 1, 0, 1]
    assert scores(drawn(red, ("square", "green")), two) == [1, 1, 1, 0]
    assert scores(drawn(red, blue, blue), two) == [1, 0, 0, 0]


def test_an_open_colour_is_any_and_colours_of_exchanged_shapes_are_right():
    assert scores(drawn(("ring", "red"), ("square", "green")), "a ring and a square")[3] == 1
    exchanged = drawn(("ring", "blue"), ("square", "red"))
    assert scores(exchanged, "a red ring and a blue square") == [1, 1, 1, 1]
    assert not check(exchanged, "a red ring and a blue square")


def test_a_picture_with_an_unreadable_cell_has_no_part_right():
    image = drawn(("ring", "red"))
    image[5:9, 5:9] = np.random.default_rng(2).integers(0, 256, (4, 4, 3), np.uint8)
    assert scores(image, "a red ring") == [0, 0, 0, 0]
