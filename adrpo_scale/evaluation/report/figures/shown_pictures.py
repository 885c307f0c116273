"""Pictures that several rows made of the same prompts from the same noise.

A run has them in the grid of its last evaluation, which says where each picture is. A row of an
evaluation has a file a picture, and a manifest.
"""

from __future__ import annotations

import io
import json
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from adrpo_scale.core.json_files import parse_object, read_lines, read_regular
from adrpo_scale.evaluation.report.comparison import by_seed, labels
from adrpo_scale.evaluation.report.evaluated import ROW, Evaluated
from adrpo_scale.evaluation.row_folder import MANIFEST
from adrpo_scale.training.pictures import LAYOUT

PROMPTS, SIZE = 6, 256  # prompts; pixels per side, at most
_LEAST = 128  # smaller pictures are enlarged without smoothing
_SPLITS = ("held_out", "train")

Asked = tuple[str, ...]  # what tells a picture's prompt and noise


@dataclass(frozen=True)
class Column:
    """A row's pictures. noise: two columns of one noise were made from the same numbers. pictures:
    prompt → uint8 [H, W, 3]."""

    label: str
    noise: Asked
    pictures: Mapping[str, np.ndarray]


def shown_pictures(runs: Sequence[Evaluated]) -> list[Column]:
    """A column a row of the table, the first seed of each, all of one noise; before them the base
    of runs. [] where fewer than two of a noise are there."""
    groups = by_seed([run for run in runs if run.rows])
    found: list[Column] = []
    for label, group in zip(labels(groups), groups, strict=True):
        run = group[0]
        if ROW in run.settings:
            found += _of_row(label, run)
        elif not run.is_benchmark:
            of_run = [_of_grid(label, run, _last(run)), _of_grid("base", run, 0)]
            found += [column for column in of_run if column is not None]
    kinds = [column.noise for column in found]
    for noise in dict.fromkeys(kinds):
        same = [column for column in found if column.noise == noise]
        bases = [column for column in same if column.label == "base"][:1]
        chosen = [*bases, *(column for column in same if column.label != "base")]
        if len(chosen) > 1:
            return chosen
    return []


def common_prompts(columns: Sequence[Column]) -> list[str]:
    """The first prompts that all columns have."""
    first, *others = columns
    return [p for p in first.pictures if all(p in one.pictures for one in others)][:PROMPTS]


# --- a run's grid ---------------------------------------------------------------------------------


def _last(run: Evaluated) -> int:
    return run.which if isinstance(run.which, int) else max(r["iteration"] for r in run.rows)


def _of_grid(label: str, run: Evaluated, iteration: int) -> Column | None:
    """The first sample of each prompt, of the grid that the evaluation left."""
    asked = [run.settings.get(f"evaluation.{key}") for key in ("seed", "samples_per_prompt")]
    for split in _SPLITS:
        found = grid_pictures(run.folder / "samples" / f"{split}-{iteration:06d}.png")
        if found:
            noise = ("run", split, *map(str, asked), *found)
            return Column(label, noise, found)
    return None


def grid_pictures(path: Path) -> dict[str, np.ndarray]:
    """Prompt → the first picture of its row in a grid; {} without a grid that says where it is."""
    picture = _opened(path)
    if picture is None:
        return {}
    layout = parse_layout(str(picture.info.get(LAYOUT, "")))
    found: dict[str, np.ndarray] = {}
    for prompt, top, left, cell in layout:
        if top + cell <= picture.height and left + cell <= picture.width and prompt not in found:
            found[prompt] = np.asarray(picture.crop((left, top, left + cell, top + cell)))
    return found


def parse_layout(text: str) -> list[tuple[str, int, int, int]]:
    """(prompt, top, left, size) of each row's first picture; [] of what is none."""
    try:
        layout = parse_object(text)
    except (ValueError, RecursionError):
        return []
    prompts, tops, cell, gap = (layout.get(k) for k in ("prompts", "tops", "cell", "gap"))
    if (
        type(cell) is not int
        or type(gap) is not int
        or not 0 < cell < 2**16
        or not 0 <= gap < 2**16
    ):
        return []
    if not isinstance(prompts, list) or not isinstance(tops, list):
        return []
    pairs = list(zip(prompts, tops, strict=False))
    if not all(isinstance(p, str) and type(top) is int and top >= 0 for p, top in pairs):
        return []
    return [(prompt, top, gap, cell) for prompt, top in pairs]


# --- an evaluation's row --------------------------------------------------------------------------


def _of_row(label: str, run: Evaluated) -> list[Column]:
    """The first sample of the first seed of each prompt, of the first prompts."""
    chosen: dict[str, tuple[str, str]] = {}
    for line in read_lines(run.folder / MANIFEST):
        prompt, file = line.get("prompt"), line.get("file")
        if isinstance(prompt, str) and isinstance(file, str) and prompt not in chosen:
            asked = [str(line.get(key)) for key in ("set", "prompt_id", "seed", "sample")]
            chosen[prompt] = (file, json.dumps(asked))
        if len(chosen) == PROMPTS:
            break
    pictures = {}
    for prompt, (file, _) in chosen.items():
        picture = _opened(run.folder / file) if _is_inside(file) else None
        if picture is not None:
            pictures[prompt] = np.asarray(_sized(picture))
    noise = ("row", *(asked for _, asked in chosen.values()))
    return [Column(label, noise, pictures)] if pictures else []


def _is_inside(file: str) -> bool:
    return not Path(file).is_absolute() and ".." not in Path(file).parts


def _opened(path: Path) -> Image.Image | None:
    """A PNG file as RGB; None where it is none."""
    with warnings.catch_warnings():
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        try:
            with Image.open(io.BytesIO(read_regular(path)), formats=["PNG"]) as file:
                found = file.convert("RGB")
                found.info = dict(file.info)
                return found
        except (OSError, ValueError, SyntaxError, Image.DecompressionBombWarning):
            return None


def _sized(picture: Image.Image) -> Image.Image:
    if max(picture.size) < _LEAST:
        factor = -(-_LEAST // max(picture.size))
        size = (picture.width * factor, picture.height * factor)
        return picture.resize(size, Image.Resampling.NEAREST)
    picture.thumbnail((SIZE, SIZE), Image.Resampling.LANCZOS)
    return picture
