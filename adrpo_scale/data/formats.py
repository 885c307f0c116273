"""Prompt formats: one reader per format (path → rows), and the guess of a file's format.

Columns of tables become metadata under their name in lower case (`Category` → `category`), keys
of JSON under their own. Files are UTF-8 with or without a byte order mark; lines end in LF or CRLF.
A file that cannot be read raises a `PromptError` with file, line, value, expectation and remedy.

A new format is one reader and one entry of `READERS`; a new suffix, one of `SUFFIXES`.
"""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from adrpo_scale.core.errors import PromptError
from adrpo_scale.data import questions
from adrpo_scale.data.lines import lines, read_text, row_error

PROMPT_COLUMNS = ("prompts", "prompt")
MESSAGES = ("context_messages", "messages", "prompt")
DATA_FILES = ("*.parquet", "*.jsonl")
QUOTED = re.compile(r'"([^"]+)"|“([^”]+)”')


@dataclass(frozen=True)
class Row:
    """One row before it is checked. where: "line 7" or "entry 7"; prompt: its value, None if there
    is none; messages: the value of a key that holds a conversation, None if there is none."""

    where: str
    prompt: Any
    metadata: Mapping[str, Any] = field(default_factory=dict)
    messages: Any = None


Reader = Callable[[Path], Iterator[Row]]


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


def read_txt(path: Path) -> Iterator[Row]:
    """One prompt per line; its first text in double quotes becomes `target`, for an OCR reward."""
    for number, line in lines(path):
        quoted = QUOTED.search(line)
        metadata = {"target": quoted[1] or quoted[2]} if quoted else {}
        yield Row(f"line {number}", line, metadata)


# ---- tables --------------------------------------------------------------------------------------


def _is_header(cells: list[str]) -> bool:
    return any(cell.strip().lower() in PROMPT_COLUMNS for cell in cells)


def _table(path: Path, quoting: Any, delimiter: str, example: str) -> Iterator[Row]:
    """The rows of a table with a header; `where` is the last line of a row."""
    # strict: otherwise one quote that is never closed swallows the rest of the file as one prompt.
    lines = io.StringIO(read_text(path), newline="")
    reader = csv.reader(
        lines, delimiter=delimiter, quoting=quoting, strict=True, skipinitialspace=delimiter == ","
    )
    header: list[str] | None = None
    try:
        for cells in reader:
            where = f"line {reader.line_num}"
            if not cells:
                continue
            if header is None:
                header = [cell.strip().lower() for cell in cells]
                if not _is_header(header):
                    expected = f"a header with the column Prompt or Prompts, as in {example!r}"
                    remedy = "add the header, or set format = 'txt' if this is one prompt a line"
                    raise row_error(path, where, delimiter.join(cells), expected, remedy)
                continue
            if len(cells) > len(header):
                expected = f"at most {len(header)} fields, as the header has"
                remedy = "put a prompt with commas into double quotes, and no tab inside a field"
                raise row_error(path, where, delimiter.join(cells), expected, remedy)
            row = dict(zip(header, (cell.strip() for cell in cells), strict=False))
            column = next(name for name in PROMPT_COLUMNS if name in header)
            prompt = row.pop(column, None)
            yield Row(where, prompt, {name: value for name, value in row.items() if name})
    except csv.Error as error:
        remedy = "write a quote inside a quoted field twice, and close every quoted field"
        raise row_error(path, f"line {reader.line_num}", str(error), "a CSV row", remedy) from None


def read_drawbench(path: Path) -> Iterator[Row]:
    """CSV with the header `Prompts,Category` (or `Prompt`); a .txt file without a header as txt."""
    if path.suffix.lower() == ".txt" and not _starts_with_csv_header(path):
        yield from read_txt(path)
    else:
        yield from _table(path, csv.QUOTE_MINIMAL, ",", "Prompts,Category")


def read_partiprompts(path: Path) -> Iterator[Row]:
    """TSV with the header `Prompt, Category, Challenge, Note`; a quote stands for itself."""
    yield from _table(path, csv.QUOTE_NONE, "\t", "Prompt\tCategory\tChallenge\tNote")


def _starts_with_csv_header(path: Path) -> bool:
    cells = next((line.split(",") for _, line in lines(path)), [])
    # One word, "prompts", may be a prompt; "Prompts,Category" is a header.
    return len(cells) > 1 and _is_header(cells)


# ---- JSON ----------------------------------------------------------------------------------------


def _json_lines(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    for number, line in lines(path):
        where = f"line {number}"
        expected = "one JSON object a line, as in " + '{"prompt": "a red fox"}'
        try:
            entry = json.loads(line)
        except json.JSONDecodeError as error:
            remedy = f"fix column {error.colno} ({error.msg})"
            raise row_error(path, where, line, expected, remedy) from None
        if not isinstance(entry, dict):
            remedy = "a JSON list over the whole file is the format imagereward, suffix .json"
            raise row_error(path, where, entry, expected, remedy)
        yield where, entry


def _row(where: str, entry: Mapping[str, Any]) -> Row:
    key = "prompt"
    if not isinstance(entry.get("prompt"), str):
        key = next((k for k in MESSAGES if entry.get(k) is not None), "prompt")
    others = {name: value for name, value in entry.items() if name != key}
    value = entry.get(key)
    is_text = key == "prompt" and not isinstance(value, list)
    return Row(where, value, others) if is_text else Row(where, None, others, value)


def read_jsonl(path: Path) -> Iterator[Row]:
    """JSON lines `{"prompt": ..., ...}`, or with a conversation; the other keys are metadata."""
    for where, entry in _json_lines(path):
        yield _row(where, entry)


def read_geneval(path: Path) -> Iterator[Row]:
    """GenEval's JSON lines `{tag, include: [{class, count, color?}, ...], exclude?, prompt}`."""
    for where, entry in _json_lines(path):
        remedy = "correct the row, or set format = 'jsonl' if it is not GenEval's"
        if not isinstance(entry.get("tag"), str):
            raise row_error(path, where, entry.get("tag"), "a string under 'tag'", remedy)
        for key in ("include", "exclude"):
            objects = entry.get(key, [] if key == "exclude" else None)
            if not (isinstance(objects, list) and all(_is_object(o) for o in objects)):
                expected = f"a list of {{class: str, count: int}} under {key!r}"
                raise row_error(path, where, objects, expected, remedy)
        yield _row(where, entry)


def _is_object(entry: Any) -> bool:
    return (
        isinstance(entry, dict)
        and isinstance(entry.get("class"), str)
        and type(entry.get("count")) is int
    )


def _json_list(path: Path, expected: str) -> Iterator[tuple[str, dict[str, Any]]]:
    text = read_text(path)
    if not text.strip():
        return  # an empty file, which load_prompts refuses
    try:
        entries = json.loads(text)
    except json.JSONDecodeError as error:
        line = text.split("\n")[error.lineno - 1]
        remedy = f"fix column {error.colno} ({error.msg}), or set format = 'jsonl' if it is that"
        raise row_error(path, f"line {error.lineno}", line, expected, remedy) from None
    if not isinstance(entries, list):
        remedy = "wrap it into a list, or set format = 'jsonl' for one object a line"
        raise row_error(path, "line 1", entries, expected, remedy)
    for number, entry in enumerate(entries, start=1):
        if not isinstance(entry, dict):
            remedy = "put the prompt into an object"
            raise row_error(path, f"entry {number}", entry, expected, remedy)
        yield f"entry {number}", entry


def read_imagereward(path: Path) -> Iterator[Row]:
    """A JSON list of `{id, prompt}`; the file's own id is kept as metadata["id"]."""
    for where, entry in _json_list(path, "a JSON list of {id, prompt}"):
        yield _row(where, entry)


def json_entries(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """(where, object) of a JSON list or of JSON lines, with any suffix."""
    if read_text(path).lstrip().startswith("["):
        return _json_list(path, "a JSON list of objects")
    return _json_lines(path)


def read_avqa(path: Path, think: bool = False) -> Iterator[Row]:
    """Questions about audio, prepared or AVQA's own; the prompt asks for the answer alone."""
    for where, entry in json_entries(path):
        try:
            prompt, metadata = questions.prompt_row(entry, str(path.absolute().parent), think)
        except ValueError as error:
            expected = f"a question about audio: {error}"
            raise row_error(path, where, entry, expected, "fix the row or delete it") from None
        yield Row(where, prompt, metadata)


def read_avqa_think(path: Path) -> Iterator[Row]:
    """As `read_avqa`; the prompt asks for reasoning first, and then the answer."""
    return read_avqa(path, think=True)


# ---- parquet and folders -------------------------------------------------------------------------


def read_parquet(path: Path) -> Iterator[Row]:
    """Rows of a parquet file; its columns are the keys that a JSON line has."""
    import pyarrow
    from pyarrow import parquet

    try:
        table = parquet.read_table(path)
    except FileNotFoundError:
        raise PromptError(f"{path}: no such prompt file; correct the path") from None
    except (OSError, pyarrow.ArrowInvalid) as error:
        raise PromptError(
            f"{path}: cannot be read as parquet ({error}); was it copied completely?"
        ) from None
    for number, entry in enumerate(table.to_pylist(), start=1):
        yield _row(f"row {number}", entry)


def split_of(file: Path) -> str:
    """train, test or validation, if a word of the data file's path names it; else "unnamed"."""
    words = re.split(r"[^a-z]+", file.as_posix().lower())
    names = {"val": "validation", "valid": "validation", "dev": "validation", "eval": "test"}
    known = [names.get(word, word) for word in words]
    return next((w for w in known if w in ("train", "test", "validation")), "unnamed")


def read_folder(path: Path) -> Iterator[Row]:
    """Rows of every parquet and jsonl file below a folder, by name: a dataset as downloaded.

    Raises PromptError for files of several splits: the test set must not be trained on."""
    files = sorted(file for pattern in DATA_FILES for file in path.rglob(pattern))
    if not files:
        raise PromptError(f"{path}: no {' or '.join(DATA_FILES)} in this folder; name a file")
    splits = {split_of(file.relative_to(path)) for file in files}
    if len(splits) > 1:
        names = ", ".join(str(file.relative_to(path)) for file in files[:6])
        raise PromptError(
            f"{path}: its files are of several splits ({', '.join(sorted(splits))}): {names}; name "
            "one file, or a folder with one split"
        )
    for file in files:
        for row in READERS[guess_format(file)](file):
            yield replace(row, where=f"{file.relative_to(path)} {row.where}")


# ---- the tables ----------------------------------------------------------------------------------


def _guess_jsonl(path: Path) -> str:
    for _, entry in _json_lines(path):
        if questions.is_question(entry):
            return "avqa"
        return "geneval" if "tag" in entry and "include" in entry else "jsonl"
    return "jsonl"


def _guess_json(path: Path) -> str:
    try:
        first = next(json_entries(path), None)
    except PromptError:
        return "imagereward"  # its reader reports the fault of the file
    return "avqa" if first is not None and questions.is_question(first[1]) else "imagereward"


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
    ".txt": lambda path: "drawbench" if _starts_with_csv_header(path) else "txt",
    ".csv": lambda path: "drawbench",
    ".tsv": lambda path: "partiprompts",
    ".json": _guess_json,
    ".jsonl": _guess_jsonl,
    ".parquet": lambda path: "parquet",
}
