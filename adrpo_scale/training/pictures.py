"""Grids of pictures (a row per prompt, its text above, the reward below each picture), and the
diversity of a prompt's samples: the mean distance over all pairs. Pure functions."""

from __future__ import annotations

import json
import textwrap
from collections.abc import Sequence

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor
from torch.nn.functional import normalize

CELL = 128  # pixels per side; smaller pictures are enlarged without smoothing
GAP = 4
LINE = 14
LAYOUT = "adrpo_scale grid"  # in the picture's info: prompts, and the top of each row of pictures
THUMBNAIL = 64  # pixels per side; pixel diversity is measured on pictures of this size


def picture_grid(
    images_PG: Sequence[Sequence[np.ndarray]],
    prompts_P: Sequence[str],
    rewards_PG: Sequence[Sequence[float]] | None = None,
) -> Image.Image:
    """A grid. images_PG: uint8 [H, W, 3] each. rewards_PG: numbers below the pictures, or None. Its
    `info` says as JSON where the pictures are: LAYOUT."""
    columns = max(len(row) for row in images_PG)
    width = columns * (CELL + GAP) + GAP
    per_line = max(10, width // 7)
    captions = [textwrap.wrap(prompt, per_line)[:2] or [""] for prompt in prompts_P]
    below = LINE if rewards_PG is not None else 0
    heights = [len(lines) * LINE + CELL + below + 2 * GAP for lines in captions]
    canvas = Image.new("RGB", (width, sum(heights)), "white")
    draw, font = ImageDraw.Draw(canvas), ImageFont.load_default(11)
    top, tops = 0, []
    for p, (row, lines) in enumerate(zip(images_PG, captions, strict=True)):
        draw.multiline_text((GAP, top), "\n".join(lines), fill="black", font=font, spacing=2)
        y = top + len(lines) * LINE + GAP
        tops.append(y)
        for g, image in enumerate(row):
            x = GAP + g * (CELL + GAP)
            canvas.paste(fitted(image), (x, y))
            if rewards_PG is not None:
                draw.text((x, y + CELL), f"{rewards_PG[p][g]:.1f}", fill="black", font=font)
        top += heights[p]
    layout = {"prompts": list(prompts_P), "tops": tops, "columns": columns, "cell": CELL}
    canvas.info[LAYOUT] = json.dumps(layout | {"gap": GAP})
    return canvas


def fitted(image: np.ndarray) -> Image.Image:
    """The picture in a CELL × CELL square."""
    picture = Image.fromarray(image)
    method = Image.Resampling.NEAREST if max(picture.size) < CELL else Image.Resampling.LANCZOS
    return picture.resize((CELL, CELL), method)


def pixels(images: Sequence[np.ndarray]) -> Tensor:
    """uint8 [N, h·w·3]: the pictures, reduced to at most THUMBNAIL pixels per side."""
    flat = []
    for image in images:
        picture = Image.fromarray(image)
        picture.thumbnail((THUMBNAIL, THUMBNAIL))
        flat.append(torch.from_numpy(np.asarray(picture).copy()).flatten())
    return torch.stack(flat)


def mean_pairwise_l2(features_PGD: Tensor) -> Tensor:
    """[P]: mean Euclidean distance over the G·(G - 1)/2 pairs of each group; G ≥ 2."""
    return torch.stack([torch.pdist(group).mean() for group in features_PGD.float()])


def mean_pairwise_cosine(features_PGD: Tensor) -> Tensor:
    """[P]: mean of 1 - cosine over the pairs of each group; G ≥ 2."""
    unit = normalize(features_PGD.double(), dim=2)
    size = unit.shape[1]
    # Σ over ordered pairs of a·b = |Σ a|² - Σ |a|²
    pair_sum = unit.sum(1).square().sum(1) - unit.square().sum((1, 2))
    return 1 - pair_sum / (size * (size - 1))
