"""Prompt files: `load_prompts` over the readers of `formats`.

Contract: the order of the file is kept, and a prompt's id is its place among the prompts of the
file, so ids are the same on every rank, at every start and at any number of processes. Only blank
lines are dropped; equal prompts stay, each with its own id. The other fields of a row go into
`Prompt.metadata`. Rows that cannot be read are refused together: the first ones and their number.

A prompt may be a conversation: `[{"role": "user", "content": ...}, ...]` under `context_messages`,
`messages` or `prompt`, in JSON lines or in parquet. It ends with a message of the user. `rows` has
the other shapes of public sets.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from adrpo_scale.core.console import ON_SCREEN
from adrpo_scale.core.errors import PromptError
from adrpo_scale.core.paths import DEMO_PREFIX, resolve_path
from adrpo_scale.core.types import Prompt
from adrpo_scale.data.formats import DATA_FILES, READERS, guess_format, read_folder
from adrpo_scale.data.lines import all_refused, row_error
from adrpo_scale.data.messages import read_messages, shown
from adrpo_scale.data.rows import AUTO, Reading, Row
from adrpo_scale.hub.needs import HubNeed
from adrpo_scale.hub.weights import find_model

log = logging.getLogger(__name__)

HUB = "hub:"
_SPLIT = re.compile(r"(?P<place>.+):(?P<split>[A-Za-z0-9_]+)")
_TABLES = (".parquet", ".jsonl", ".json", ".csv", ".tsv", ".txt")


@dataclass(frozen=True)
class Place:
    """The place that a name stands for. repository: of the hub, None for a path; path: inside the
    repository, or of this machine; split: of a folder, None for all its files."""

    repository: str | None
    path: str
    split: str | None


def place_of(name: str) -> Place:
    """The meaning of a name: a path, FOLDER:SPLIT, or hub:OWNER/DATASET, which may go on with the
    /FOLDER or /FILE to read and end with a :SPLIT."""
    is_hub = name.startswith(HUB)
    found = None if name.startswith(DEMO_PREFIX) else _SPLIT.fullmatch(name.removeprefix(HUB))
    if found is None or not (is_hub or is_folder(found["place"])):
        place, split = name.removeprefix(HUB), None
    else:
        place, split = found["place"], found["split"]
    if not is_hub:
        return Place(None, place, split)
    owner, _, rest = place.partition("/")
    dataset, _, inside = rest.partition("/")
    return Place(f"{owner}/{dataset}" if dataset else owner, inside, split)


def is_folder(name: str) -> bool:
    """Whether a name is that of a folder of this machine."""
    return resolve_path(name).is_dir()


def load_prompts(path: str | Path, format: str = "auto", reading: Reading = AUTO) -> list[Prompt]:
    """Every prompt of the file, in its order, with ids 0 .. n-1.

    path: a Path, or a name as `place_of` takes it. format: a key of `READERS`, or "auto" to decide
    by the suffix and the first row. reading: the keys of prompt and answer. The log says how rows
    were read that have other keys than `prompt` or `messages`. Raises PromptError if the file is
    missing, empty, not text, or has rows that are no prompts of that format; all of them at once.
    """
    split = None
    if isinstance(path, str):
        path, split = found(path)
    if format == "auto":
        format = guess_format(path)
    if format not in READERS:
        raise PromptError(
            f"{path}: unknown prompt format {format!r}; set format to one of "
            f"{', '.join(['auto', *READERS])}"
        )
    rows = read_folder(path, reading, split) if split else READERS[format](path, reading)
    prompts, notes = _checked(path, rows)
    if not prompts:
        raise PromptError(
            f"{path}: the file holds no prompt, expected at least one; was it copied completely?"
        )
    for note in notes:
        log.info("%s: %s", path, note, extra=ON_SCREEN)
    return prompts


def found(name: str) -> tuple[Path, str | None]:
    """(the file or folder of a name, its split)."""
    place = place_of(name)
    if place.repository is None:
        return resolve_path(place.path), place.split
    folder = find_model(_need(place, "the prompt file"))
    path = folder / place.path
    if not path.exists():
        there = sorted({p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file()})
        raise PromptError(
            f"{name}: {place.repository} has no {place.path!r} in {folder}; it has "
            f"{', '.join(there[:6]) or 'no file'}"
        )
    return path, place.split


def needs_from_hub(name: str, what: str) -> list[HubNeed]:
    """The dataset on the hub that `load_prompts` reads for `name`, if it is one. what: the setting
    of the name."""
    place = place_of(name)
    return [_need(place, what)] if place.repository is not None else []


def _need(place: Place, what: str) -> HubNeed:
    files: tuple[str, ...] = DATA_FILES
    if place.path.endswith(_TABLES):
        files = (place.path,)
    elif place.path:
        files = tuple(f"{place.path.rstrip('/')}/{pattern}" for pattern in DATA_FILES)
    return HubNeed(place.repository or "", what, files, type="dataset")


# ---- rows → prompts ------------------------------------------------------------------------------


def _checked(path: Path, rows: Iterable[Row]) -> tuple[list[Prompt], list[str]]:
    """(the prompts, how they were read). Raises PromptError that names the rows that are none."""
    prompts: list[Prompt] = []
    faults: list[PromptError] = []
    count = 0
    notes: dict[str, None] = {}
    for row in rows:
        count += 1
        try:
            prompts.append(_prompt(path, len(prompts), row))
        except PromptError as fault:
            faults.append(fault)
            continue
        if row.note:
            notes[row.note] = None
    if faults:
        raise all_refused(faults, count, f"{path}, ")
    return prompts, list(notes)


def _prompt(path: Path, index: int, row: Row) -> Prompt:
    if row.fault is not None:
        raise row.fault
    messages: tuple[dict[str, Any], ...] = ()
    if row.messages is None:
        text = _prompt_text(path, row)
    else:
        messages, fault = read_messages(row.messages)
        if fault is not None:
            expected = 'a list of {"role": ..., "content": ...}, the last one of the user\'s'
            remedy = "fix the row or delete it: the model writes the answer"
            raise row_error(path, row.where, row.messages, f"{expected} ({fault})", remedy)
        text = shown(messages)
    _check_characters(path, row, text)
    return Prompt(index, text, row.metadata, messages, row.derived, f"{path}, {row.where}")


def _check_characters(path: Path, row: Row, text: str) -> None:
    """Raises PromptError for half of a surrogate pair: no tokenizer takes such a text."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        half = text[max(0, error.start - 20) : error.end]
        expected = "text; the last character shown is half of a surrogate pair, which is no text"
        remedy = "the text was cut inside a character: delete that half"
        raise row_error(path, row.where, half, expected, remedy) from None


def _prompt_text(path: Path, row: Row) -> str:
    if not isinstance(row.prompt, str) or not row.prompt.strip():
        value = row.metadata if row.prompt is None else row.prompt
        expected = "a row with a prompt that is a non-empty string"
        remedy = "add the prompt, name its key as prompts.column, or delete the row"
        raise row_error(path, row.where, value, expected, remedy)
    return row.prompt.strip()
