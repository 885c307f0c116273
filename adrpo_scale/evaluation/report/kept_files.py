"""The files of a folder that a bundle keeps: those that tables, figures and texts are made from.

Kept by name, so that nothing comes along by chance: no weights, no logs, no TensorBoard. Records
are texts of this machine: in them the home folder is `~`. Rows hold numbers, prompts and answers,
and are kept to the byte: hashes of prompts are made from them. Known keys are masked in both, but
for pictures and completions of training.
"""

from __future__ import annotations

import hashlib
import logging
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from adrpo_scale.core.json_files import read_lines, read_regular
from adrpo_scale.core.secrets import masked
from adrpo_scale.evaluation.report.homes import without_home

log = logging.getLogger(__name__)

RECORDS = (
    *("config.json", "evaluation.json", "prompt_sets.json", "cut_prompts.json", "coverage.json"),
    *(
        "first-checkpoint.json",
        "out-of-memory.jsonl",
        "timing.json",
        "lives/*.json",
        "trained.json",
    ),
    *(
        f"{place}/manifest.json"
        for place in ("checkpoints/*", "trajectory/*", "origin", "origin/*")
    ),
)
ROWS = (
    *("metrics.jsonl", "eval.jsonl", "eval_prompts.jsonl", "*.before-*.jsonl"),
    *("questions.jsonl", "predictions.json", "table.md"),  # of MMAU
    *("manifest.jsonl", "completions.jsonl", "scores/*.jsonl"),  # of a row of an evaluation
)
MANIFEST = "manifest.jsonl"
_COMPLETIONS = re.compile(r"completions-(\d+)\.parquet")


@dataclass(frozen=True)
class Kept:
    """A file of a bundle. place: inside its folder, with `/`."""

    place: str
    source: Path
    is_record: bool = False
    is_binary: bool = False

    def content(self) -> bytes:
        """Its bytes, as a bundle has them. Raises OSError."""
        found = read_regular(self.source)
        if self.is_binary:
            return found
        text = masked(found.decode("utf-8", "surrogateescape"))
        if self.is_record:
            text = str(without_home(text))
        return text.encode("utf-8", "surrogateescape")


def kept_files(
    folder: Path, pictures: int, grids: Sequence[int] = (), completions: Sequence[int] = ()
) -> list[Kept]:
    """What is kept of a folder, in order. pictures: at most so many of them. grids, completions: of
    a run, the iterations whose grids, and whose completions of training, are shown."""
    found: dict[str, Kept] = {}
    for patterns, is_record in ((RECORDS, True), (ROWS, False)):
        for pattern in patterns:
            for path in folder.glob(pattern):
                place = path.relative_to(folder).as_posix()
                if path.is_file():
                    found.setdefault(place, Kept(place, path, is_record))
    samples = [f"samples/{completions_name(n)}" for n in completions]
    for place in (*_pictures(folder, pictures, grids), *samples):
        if (folder / place).is_file():
            found[place] = Kept(place, folder / place, is_binary=True)
    return [found[place] for place in sorted(found)]


def completions_name(iteration: int) -> str:
    """The file of a run's completions of training, in `samples/`."""
    return f"completions-{iteration:06d}.parquet"


def recorded_completions(folder: Path) -> set[int]:
    """The iterations whose completions a run has kept."""
    names = [_COMPLETIONS.fullmatch(path.name) for path in (folder / "samples").glob("*.parquet")]
    return {int(name[1]) for name in names if name}


def _pictures(folder: Path, most: int, grids: Sequence[int]) -> list[str]:
    """The pictures that are chosen: of a row of an evaluation the first sample of each prompt, then
    the second of each, in the order of its manifest, the same ones in every row; of a run the grids
    of its evaluations, held-out prompts first."""
    lines = read_lines(folder / MANIFEST)
    if not lines:
        names = [f"samples/{split}-{n:06d}.png" for split in ("held_out", "train") for n in grids]
        return [name for name in names if (folder / name).is_file()][:most]
    chosen = _first_of_each(lines)[:most]
    return [str(line["file"]) for line in chosen if _is_whole(line, folder)]


def _first_of_each(lines: list[dict[str, object]]) -> list[Mapping[str, object]]:
    """The lines of pictures, by their number among those of their prompt, then in order."""
    count: dict[str, int] = {}
    places = []
    for number, line in enumerate(lines):
        if isinstance(line.get("file"), str):
            asked = str([line.get("set"), line.get("prompt_id"), line.get("prompt")])
            count[asked] = count.get(asked, 0) + 1
            places.append((count[asked], number, line))
    return [line for _, _, line in sorted(places, key=lambda place: place[:2])]


def _is_whole(line: Mapping[str, object], folder: Path) -> bool:
    """Whether a picture is the one that the manifest names, inside its folder."""
    path = folder / str(line["file"])
    try:
        is_inside = path.resolve().is_relative_to(folder.resolve())
        digest = hashlib.sha256(read_regular(path)).hexdigest() if is_inside else None
    except OSError as error:
        log.warning("%s is left out of the bundle: %s", path, error.strerror)
        return False
    if digest != line.get("sha256"):
        log.warning("%s is left out of the bundle: it is not the picture of %s", path, MANIFEST)
    return digest == line.get("sha256")
