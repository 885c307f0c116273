"""A grid of pictures: a row a prompt, a column a method, every row of it from the same noise."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from typing import Any

from adrpo_scale.evaluation.report.evaluated import Evaluated
from adrpo_scale.evaluation.report.figures.base import Figure, LeftOut
from adrpo_scale.evaluation.report.figures.shown_pictures import common_prompts, shown_pictures
from adrpo_scale.evaluation.report.figures.style import INK, WIDTH, bare, drawing, finished, label

NAME = "picture_grid"
TITLE = "Pictures of the same prompts and noise"
MOST = 8  # columns
LEFT, LINE, GAP = 1.35, 0.14, 0.06  # inches, inches a line, share of a picture
LARGEST = 1.2  # inches of a picture


def picture_grids(runs: Sequence[Evaluated]) -> Figure | LeftOut:
    """The last pictures of each row, the first seed and sample, of the first prompts."""
    columns = shown_pictures(runs)[:MOST]
    prompts = common_prompts(columns) if columns else []
    if not prompts:
        return LeftOut(
            NAME,
            "no two rows have pictures of the same prompts and noise (evaluations of pictures; "
            "grids of earlier versions do not say where their pictures are)",
        )
    size = min(LARGEST, (WIDTH - LEFT) / len(columns))
    across = max(8, int(size * 15))  # characters of a column's name
    names = [textwrap.wrap(label(column.label), across)[:3] for column in columns]
    top = LINE * (0.6 + max(map(len, names)))
    width, height = LEFT + size * len(columns), top + size * len(prompts)
    with drawing():
        picture = bare(width, height)
        panel = picture.add_axes((0, 0, 1, 1))
        panel.set_axis_off()
        for x, column in enumerate(columns):
            name = "\n".join(names[x])
            panel.text(x + 0.5, -0.05, name, ha="center", va="bottom", fontsize=7.5)
            for y, prompt in enumerate(prompts):
                box = (x + GAP / 2, x + 1 - GAP / 2, y + 1 - GAP / 2, y + GAP / 2)
                panel.imshow(column.pictures[prompt], extent=box, interpolation="none")
        for y, prompt in enumerate(prompts):
            lines = textwrap.wrap(label(prompt, 110), 22)[:6]
            place: Any = {"ha": "right", "va": "center", "fontsize": 7, "color": INK}
            panel.text(-0.08, y + 0.5, "\n".join(lines), **place)
        panel.set_xlim(-LEFT / size, len(columns))
        panel.set_ylim(len(prompts), -top / size)
        panel.set_aspect("auto")
        return finished(picture, NAME, TITLE, _CAPTION)


_CAPTION = (
    "Rows are prompts, columns rows of the table (of several seeds the first). Pictures of one "
    "prompt begin from the same noise wherever models share their latent shape: the first sample, "
    "of the first prompts, not chosen."
)
