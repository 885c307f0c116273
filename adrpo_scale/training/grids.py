"""Picture grids: one row a prompt, the prompt above the row, the reward below each picture."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFont

CELL = 128  # pixels; smaller pictures are enlarged without smoothing
GAP = 4
LINE = 14


def picture_grid(
    images_PG: Sequence[Sequence[np.ndarray]],
    prompts_P: Sequence[str],
    rewards_PG: Sequence[Sequence[float]] | None = None,
) -> Image.Image:
    """images_PG: uint8 [H, W, 3] each; rewards_PG: a number below each picture, or None."""
    columns = max(len(row) for row in images_PG)
    width = columns * (CELL + GAP) + GAP
    per_line = max(10, width // 7)
    captions = [textwrap.wrap(prompt, per_line)[:2] or [""] for prompt in prompts_P]
    below = LINE if rewards_PG is not None else 0
    heights = [len(lines) * LINE + CELL + below + 2 * GAP for lines in captions]
    canvas = Image.new("RGB", (width, sum(heights)), "white")
    draw, font = ImageDraw.Draw(canvas), ImageFont.load_default(11)
    top = 0
    for p, (row, lines) in enumerate(zip(images_PG, captions, strict=True)):
        draw.multiline_text((GAP, top), "\n".join(lines), fill="black", font=font, spacing=2)
        y = top + len(lines) * LINE + GAP
        for g, image in enumerate(row):
            x = GAP + g * (CELL + GAP)
            canvas.paste(fitted(image), (x, y))
            if rewards_PG is not None:
                draw.text((x, y + CELL), f"{rewards_PG[p][g]:.1f}", fill="black", font=font)
        top += heights[p]
    return canvas


def fitted(image: np.ndarray) -> Image.Image:
    """The picture in a CELL × CELL square."""
    picture = Image.fromarray(image)
    method = Image.Resampling.NEAREST if max(picture.size) < CELL else Image.Resampling.LANCZOS
    return picture.resize((CELL, CELL), method)
