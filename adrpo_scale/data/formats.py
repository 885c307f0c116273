"""Prompt formats: one reader per format (path → rows), and the guess of a file's format.

Columns of tables become metadata under their name in lower case (`Category` → `category`), keys
of JSON under their own. Files are UTF-8 with or without a byte order mark; lines end in LF or CRLF.
A file that cannot be read raises a `PromptError` with file, line, value, expectation and remedy; a
row that cannot be read is a `Row` with that error, so that all of them can be named at once.

A new format is one reader and one entry of `READERS`; a new suffix, one of `SUFFIXES`.
"""

from __future__ import annotations

import csv
import json
import os
import re
from collections.abc import Callable, Iterator
from dataclasses import replace
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from adrpo_scale.core.errors import PromptError
from adrpo_scale.data import questions
from adrpo_scale.data.foreign_rows import parse_row
from adrpo_scale.data.lines import lines, read_text, row_error
from adrpo_scale.data.parquet_files import parquet_rows
from adrpo_scale.data.rows import AUTO, Reading, Row, RowReader
from adrpo_scale.data.tables import read_table, starts_with_csv_header

DATA_FILES = ("*.parquet", "*.jsonl")
MOST_NAMES = 300_000  # below a folder that is searched
QUOTED = re.compile(r'"([^"]+)"|“([^”]+)”')


Reader = Callable[[Path, Reading], Iterator[Row]]


def guess_format(path: Path) -> str:
    """The format of a file by suffix and first row. Raises PromptError for an unknown suffix."""
    if path.is_dir():
        return "folder"
    guess = SUFFIXES.get(path.suffix.lower())
    if guess is None:
        raise PromptError(
            f"{path}: got the suffix {path.suffix!r}, expected one of {', '.join(SUFFIXES)}; "
            f"rename the file or set format to one of {', '.join(READERS)}"
        )
    return guess(path)


# ---- text ----------------------------------------------------------------------------------------


def read_txt(path: Path, reading: Reading = AUTO) -> Iterator[Row]:
    """One prompt per line; its first text in double quotes becomes `target`, for an OCR reward."""
    for number, line in lines(path):
        quoted = QUOTED.search(line)
        metadata = {"target": quoted[1] or quoted[2]} if quoted else {}
        yield Row(f"line {number}", line, metadata)


# ---- tables --------------------------------------------------------------------------------------


def read_drawbench(path: Path, reading: Reading = AUTO) -> Iterator[Row]:
    """CSV with the header `Prompts,Category` (or `Prompt`); a .txt file without a header as txt."""
    if path.suffix.lower() == ".txt" and not starts_with_csv_header(path):
        yield from read_txt(path)
    else:
        yield from read_table(path, csv.QUOTE_MINIMAL, ",", "Prompts,Category", reading)


def read_partiprompts(path: Path, reading: Reading = AUTO) -> Iterator[Row]:
    """TSV with the header `Prompt, Category, Challenge, Note`; a quote stands for itself."""
    example = "Prompt\tCategory\tChallenge\tNote"
    yield from read_table(path, csv.QUOTE_NONE, "\t", example, reading)


# ---- JSON ----------------------------------------------------------------------------------------


Entries = Iterator[tuple[str, dict[str, Any] | PromptError]]


def _json_lines(path: Path) -> Entries:
    """(where, object, or the fault of the line) of every line."""
    for number, line in lines(path):
        where = f"line {number}"
        expected = "one JSON object a line, as in " + '{"prompt": "a red fox"}'
        try:
            entry = parse_row(line)
        except ValueError as error:
            remedy = _remedy(error)
            yield where, row_error(path, where, line, expected, remedy)
            continue
        if isinstance(entry, dict):
            yield where, entry
        else:
            remedy = "a JSON list over the whole file is the format imagereward, suffix .json"
            yield where, row_error(path, where, entry, expected, remedy)


def _remedy(error: ValueError) -> str:
    if isinstance(error, json.JSONDecodeError):
        return f"fix column {error.colno} ({error.msg})"
    return f"fix it ({error})"  # nested too deeply, or a number of thousands of digits


def _read(entries: Entries, row: Callable[[str, dict[str, Any]], Row]) -> Iterator[Row]:
    """The row of each entry. A fault, or a PromptError that `row` raises, becomes a row too."""
    for where, entry in entries:
        try:
            yield Row(where, fault=entry) if isinstance(entry, PromptError) else row(where, entry)
        except PromptError as fault:
            yield Row(where, fault=fault)


def read_jsonl(path: Path, reading: Reading = AUTO) -> Iterator[Row]:
    """JSON lines `{"prompt": ..., ...}`, or of another shape; the other keys are metadata."""
    return _read(_json_lines(path), RowReader(reading).row)


def read_geneval(path: Path, reading: Reading = AUTO) -> Iterator[Row]:
    """GenEval's JSON lines `{tag, include: [{class, count, color?}, ...], exclude?, prompt}`."""
    rows = RowReader(reading)

    def row(where: str, entry: dict[str, Any]) -> Row:
        remedy = "correct the row, or set format = 'jsonl' if it is not GenEval's"
        if not isinstance(entry.get("tag"), str):
            raise row_error(path, where, entry.get("tag"), "a string under 'tag'", remedy)
        for key in ("include", "exclude"):
            objects = entry.get(key, [] if key == "exclude" else None)
            if not (isinstance(objects, list) and all(_is_object(o) for o in objects)):
                expected = f"a list of {{class: str, count: int}} under {key!r}"
                raise row_error(path, where, objects, expected, remedy)
        return rows.row(where, entry)

    return _read(_json_lines(path), row)


def _is_object(entry: Any) -> bool:
    return (
        isinstance(entry, dict)
        and isinstance(entry.get("class"), str)
        and type(entry.get("count")) is int
    )


def _json_list(path: Path, expected: str, is_of_texts: bool = False) -> Entries:
    """(where, object, or its fault) of a JSON list. is_of_texts: a list that begins with a text may
    hold texts in place of objects."""
    text = read_text(path)
    if not text.strip():
        return  # an empty file, which load_prompts refuses
    try:
        entries = parse_row(text)
    except ValueError as error:
        number = error.lineno if isinstance(error, json.JSONDecodeError) else 1
        line = text.split("\n")[number - 1]
        remedy = f"{_remedy(error)}, or set format = 'jsonl' if it is that"
        raise row_error(path, f"line {number}", line, expected, remedy) from None
    if not isinstance(entries, list):
        remedy = "wrap it into a list, or set format = 'jsonl' for one object a line"
        raise row_error(path, "line 1", entries, expected, remedy)
    takes_texts = is_of_texts and bool(entries) and isinstance(entries[0], str)
    for number, entry in enumerate(entries, start=1):
        where = f"entry {number}"
        if takes_texts and isinstance(entry, str):
            yield where, {"prompt": entry}
        elif isinstance(entry, dict):
            yield where, entry
        else:
            yield where, row_error(path, where, entry, expected, "put the prompt into an object")


def read_imagereward(path: Path, reading: Reading = AUTO) -> Iterator[Row]:
    """A JSON list of `{id, prompt}`, or of texts; the file's own id is kept as metadata["id"]."""
    entries = _json_list(path, "a JSON list of {id, prompt}", is_of_texts=True)
    return _read(entries, RowReader(reading).row)


def _entries(path: Path) -> Entries:
    """(where, object or fault) of a JSON list or of JSON lines, with any suffix."""
    if read_text(path).lstrip().startswith("["):
        return _json_list(path, "a JSON list of objects")
    return _json_lines(path)


def json_entries(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """(where, object) of a JSON list or of JSON lines, with any suffix. Raises the first fault."""
    for where, entry in _entries(path):
        if isinstance(entry, PromptError):
            raise entry
        yield where, entry


def read_avqa(path: Path, reading: Reading = AUTO, think: bool = False) -> Iterator[Row]:
    """Questions about audio, prepared or AVQA's own; the prompt asks for the answer alone."""

    def row(where: str, entry: dict[str, Any]) -> Row:
        try:
            prompt, metadata = questions.prompt_row(entry, str(path.absolute().parent), think)
        except ValueError as error:
            expected = f"a question about audio: {error}"
            raise row_error(path, where, entry, expected, "fix the row or delete it") from None
        return Row(where, prompt, metadata)

    return _read(_entries(path), row)


def read_avqa_think(path: Path, reading: Reading = AUTO) -> Iterator[Row]:
    """As `read_avqa`; the prompt asks for reasoning first, and then the answer."""
    return read_avqa(path, reading, think=True)


# ---- parquet and folders -------------------------------------------------------------------------


def read_parquet(path: Path, reading: Reading = AUTO) -> Iterator[Row]:
    """Rows of a parquet file; its columns are the keys that a JSON line has."""
    rows = RowReader(reading)
    for number, entry in enumerate(parquet_rows(path), start=1):
        yield rows.row(f"row {number}", entry)


def split_of(file: Path) -> str:
    """train, test or validation, if a word of the data file's path names it; else "unnamed"."""
    words = re.split(r"[^a-z]+", file.as_posix().lower())
    names = {"val": "validation", "valid": "validation", "dev": "validation", "eval": "test"}
    known = [names.get(word, word) for word in words]
    return next((w for w in known if w in ("train", "test", "validation")), "unnamed")


def read_folder(path: Path, reading: Reading = AUTO, split: str | None = None) -> Iterator[Row]:
    """Rows of every parquet and jsonl file below a folder, by name: a dataset as downloaded.

    split: reads its files alone. Raises PromptError for files of several splits otherwise: the test
    set must not be trained on."""
    for file in data_files(path, split):
        for row in READERS[guess_format(file)](file, reading):
            yield replace(row, where=f"{file.relative_to(path)} {row.where}")


def data_files(path: Path, split: str | None) -> list[Path]:
    """The files that `read_folder` reads. Raises as it does."""
    files = sorted(file for file in _below(path) if file.is_file())
    if not files:
        raise PromptError(f"{path}: no {' or '.join(DATA_FILES)} in this folder; name a file")
    split_by_file = {file: split_of(file.relative_to(path)) for file in files}
    splits = ", ".join(sorted(set(split_by_file.values())))
    if split is not None:
        files = [file for file in files if split_by_file[file] == split]
        if not files:
            raise PromptError(f"{path}: no file of the split {split!r}; there are: {splits}")
        return files
    if len(set(split_by_file.values())) > 1:
        names = ", ".join(str(file.relative_to(path)) for file in files[:6])
        raise PromptError(
            f"{path}: its files are of several splits ({splits}): {names}; name one file, a folder "
            f"with one split, or the split: {path}:train"
        )
    return files


def _below(path: Path) -> Iterator[Path]:
    """The data files of a folder and its folders. Raises PromptError for a folder without an end: a
    whole disk takes minutes, and what it holds is no dataset."""
    count = 0
    for folder, folders, names in os.walk(path):
        count += len(folders) + len(names)
        if count > MOST_NAMES:
            raise PromptError(
                f"{path} holds more than {MOST_NAMES:,} files and folders; name the folder of the "
                "dataset alone, or one file"
            )
        matching = [name for name in names if any(fnmatchcase(name, p) for p in DATA_FILES)]
        yield from (Path(folder, name) for name in matching)


# ---- the tables ----------------------------------------------------------------------------------


def _guess_jsonl(path: Path) -> str:
    for _, entry in _json_lines(path):
        if isinstance(entry, PromptError):
            return "jsonl"  # its reader reports the fault
        if questions.is_question(entry):
            return "avqa"
        return "geneval" if "tag" in entry and "include" in entry else "jsonl"
    return "jsonl"


def _guess_json(path: Path) -> str:
    try:
        first = next(_entries(path), ("", {}))[1]
    except PromptError:
        return "imagereward"  # its reader reports the fault of the file
    is_avqa = isinstance(first, dict) and questions.is_question(first)
    return "avqa" if is_avqa else "imagereward"


READERS: dict[str, Reader] = {
    "txt": read_txt,
    "geneval": read_geneval,
    "drawbench": read_drawbench,
    "partiprompts": read_partiprompts,
    "imagereward": read_imagereward,
    "avqa": read_avqa,
    "avqa_think": read_avqa_think,
    "jsonl": read_jsonl,
    "parquet": read_parquet,
    "folder": read_folder,
}
SUFFIXES: dict[str, Callable[[Path], str]] = {
    ".txt": lambda path: "drawbench" if starts_with_csv_header(path) else "txt",
    ".csv": lambda path: "drawbench",
    ".tsv": lambda path: "partiprompts",
    ".json": _guess_json,
    ".jsonl": _guess_jsonl,
    ".parquet": lambda path: "parquet",
}
