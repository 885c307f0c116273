"""The samples that an evaluation kept of one row: pictures or completions, with their scores.

`row_folder` has the names of the files. Two rows are compared on the same prompt with the same
noise: the sampling seed and the sample's number. A path that leads out of the folder, and a line
without what it needs, are left out.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from adrpo_scale.core.json_files import read_lines
from adrpo_scale.evaluation.row_folder import COMPLETIONS, MANIFEST, SCORES


@dataclass(frozen=True)
class Asked:
    """A prompt of a set. id: tells prompts of one text apart, where it is known."""

    set: str
    prompt: str
    category: str = ""
    id: int | None = None

    @property
    def group(self) -> str:
        """Set and category, as far as they are named."""
        return ": ".join(name for name in (self.set, self.category) if name)


@dataclass(frozen=True, order=True)
class Noise:
    """What a sample was drawn from: the same for all models of one shape."""

    seed: int
    number: int


@dataclass(frozen=True)
class Kept:
    """file: a picture inside the row's folder; text: a completion, length: its tokens, finished:
    False where it was cut off; None where a file does not say it. scores: by name of the scorer.
    """

    asked: Asked
    noise: Noise
    file: Path | None
    text: str | None
    scores: Mapping[str, float]
    length: int | None = None
    finished: bool | None = None


def read_samples(folder: Path) -> list[Kept]:
    """The samples of a row's folder, in the order of the manifest; [] where it kept none."""
    scores = _scores(folder)
    lines = read_lines(folder / MANIFEST) or read_lines(folder / COMPLETIONS)
    written = {_id(line): line for line in read_lines(folder / COMPLETIONS)}
    found: dict[tuple[Asked, Noise], Kept] = {}
    for line in lines:
        sample = _sample(line, folder, written.get(_id(line), {}), scores.get(_id(line), {}))
        if sample is not None:
            found[sample.asked, sample.noise] = sample
    return [*found.values()]


def _sample(
    line: Mapping[str, Any], folder: Path, written: Mapping[str, Any], scores: Mapping[str, float]
) -> Kept | None:
    prompt, seed, number = (line.get(name) for name in ("prompt", "seed", "sample"))
    if not isinstance(prompt, str) or type(seed) is not int or type(number) is not int:
        return None
    name = line.get("file")
    file = _inside(folder, name) if isinstance(name, str) else None
    text, length, finished = (written.get(name) for name in ("text", "length", "finished"))
    text = text if isinstance(text, str) else None
    if file is None and text is None:
        return None
    number_of = line.get("prompt_id")
    key = number_of if type(number_of) is int else None
    asked = Asked(_text(line.get("set")), prompt, _text(line.get("category")), key)
    return Kept(
        asked,
        Noise(seed, number),
        file,
        text,
        scores,
        length if type(length) is int else None,
        finished if isinstance(finished, bool) else None,
    )


def _text(value: Any) -> str:
    return value if isinstance(value, str) else ""


def _inside(folder: Path, name: str) -> Path | None:
    """The file of this name where it lies in the folder itself, links followed."""
    try:
        path = (folder / name).resolve()
        is_there = path.is_relative_to(folder.resolve()) and path.is_file()
    except (OSError, ValueError):  # ValueError: a NUL
        return None
    return path if is_there else None


def _scores(folder: Path) -> dict[str, dict[str, float]]:
    """By sample, then by scorer."""
    found: dict[str, dict[str, float]] = {}
    for path in sorted((folder / SCORES).glob("*.jsonl")):
        for key, score in _scored(path):
            found.setdefault(key, {})[path.stem] = score
    return found


def _scored(path: Path) -> Iterator[tuple[str, float]]:
    for line in read_lines(path):
        if type(line.get("score")) in (int, float):
            yield _id(line), float(line["score"])


def _id(line: Mapping[str, Any]) -> str:
    return str(line.get("id"))
