"""What the small models of a demo with pictures are built for: prompts, pictures and sizes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from adrpo_scale.demo.image.cells import Sheet
from adrpo_scale.demo.image.task import SHEET, ImagePrompt, Spec, enumerate_prompts, render

Draw = Callable[[Spec, np.random.Generator], np.ndarray]


@dataclass(frozen=True)
class World:
    """prompts: all of them. render: a true picture of a spec, for the CLIP. draw: the picture that
    the transformer is pretrained on. tokens, t5_tokens: positions of a prompt. heads, head: number
    and width of the transformer's attention heads; together at least the numbers of a cell."""

    prompts: tuple[ImagePrompt, ...]
    sheet: Sheet
    render: Draw
    draw: Draw
    tokens: int
    t5_tokens: int
    heads: int
    head: int


IMAGE = World(enumerate_prompts(), SHEET, render, render, tokens=12, t5_tokens=12, heads=3, head=32)
"""The image demo; its longest prompt has 10 tokens."""
