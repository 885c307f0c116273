"""The files of a folder that a bundle keeps: those that tables, figures and texts are made from.

Kept by name, so that nothing comes along by chance: no weights, no logs, no TensorBoard. Records
are texts of this machine: in them the home folder is `~`. Rows hold numbers, prompts and answers,
and are kept to the byte: hashes of prompts are made from them. Known keys are masked in both.
"""

from __future__ import annotations

import hashlib
import logging
import re
from collections.abc import Iterator, Mapping
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
_PICTURE = re.compile(r"(\w+)-(\d+)\.png")  # samples/NAME-ITERATION.png of a run


@dataclass(frozen=True)
class Kept:
    """A file of a bundle. place: inside its folder, with `/`."""

    place: str
    source: Path
    is_record: bool = False
    is_picture: bool = False

    def content(self) -> bytes:
        """Its bytes, as a bundle has them. Raises OSError."""
        found = read_regular(self.source)
        if self.is_picture:
            return found
        text = masked(found.decode("utf-8", "surrogateescape"))
        if self.is_record:
            text = str(without_home(text))
        return text.encode("utf-8", "surrogateescape")


def kept_files(folder: Path, pictures: int) -> list[Kept]:
    """What is kept of a folder, in order. pictures: at most so many of them."""
    found: dict[str, Kept] = {}
    for patterns, is_record in ((RECORDS, True), (ROWS, False)):
        for pattern in patterns:
            for path in folder.glob(pattern):
                place = path.relative_to(folder).as_posix()
                if path.is_file():
                    found.setdefault(place, Kept(place, path, is_record))
    for kept in _pictures(folder, pictures):
        found.setdefault(kept.place, kept)
    return [found[place] for place in sorted(found)]


def _pictures(folder: Path, most: int) -> Iterator[Kept]:
    """The pictures that are chosen: of a row of an evaluation the first sample of each prompt, then
    the second of each, in the order of its manifest, the same ones in every row; of a run the last
    grid of each kind."""
    lines = read_lines(folder / MANIFEST)
    if lines:
        for line in _first_of_each(lines)[:most]:
            path = folder / str(line["file"])
            if _is_whole(path, line, folder):
                yield Kept(str(line["file"]), path, is_picture=True)
        return
    newest: dict[str, tuple[int, Path]] = {}
    for path in sorted((folder / "samples").glob("*.png")):
        named = _PICTURE.fullmatch(path.name)
        if named:
            newest[named[1]] = max(newest.get(named[1], (-1, path)), (int(named[2]), path))
    for _, path in sorted(newest.values(), key=lambda pair: pair[1].name)[:most]:
        yield Kept(f"samples/{path.name}", path, is_picture=True)


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


def _is_whole(path: Path, line: Mapping[str, object], folder: Path) -> bool:
    """Whether a picture is the one that the manifest names, inside its folder."""
    try:
        is_inside = path.resolve().is_relative_to(folder.resolve())
        digest = hashlib.sha256(read_regular(path)).hexdigest() if is_inside else None
    except OSError as error:
        log.warning("%s is left out of the bundle: %s", path, error.strerror)
        return False
    if digest != line.get("sha256"):
        log.warning("%s is left out of the bundle: it is not the picture of %s", path, MANIFEST)
    return digest == line.get("sha256")
