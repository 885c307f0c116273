"""`prepare drawbench` and its likes: published sets of prompts for pictures → a prompt file.

    OUT/NAME.jsonl      a row per prompt, in the published order: prompt, category, and the set's
                        own columns
    OUT/report.json     counts, of each category too, warnings, SHA-256 of what was read

Nothing is downloaded: each set is read from files as they are published. `SETS` says which ones,
and how many prompts a whole set has; another number is a warning, because figures on it are not
comparable.
"""

from __future__ import annotations

import csv
import hashlib
import io
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from adrpo_scale.core.errors import PromptError
from adrpo_scale.core.paths import make_output_folder
from adrpo_scale.core.tensor_files import file_sha256
from adrpo_scale.data.lines import lines, read_text, row_error
from adrpo_scale.data.prepare.record import (
    disk_is_full,
    say,
    versions,
    write_lines,
    write_record,
)
from adrpo_scale.data.prompt_files import load_prompts
from adrpo_scale.data.tables import LONGEST_FIELD

NONE = "none"  # the category of a prompt without one
COMPBENCH = ["color", "shape", "texture", "spatial", "3d_spatial", "non_spatial"]
COMPBENCH += ["numeracy", "complex"]
_DPG = ("item_id", "text", "proposition_id", "dependency", "question_natural_language")

Rows = list[dict[str, Any]]


@dataclass(frozen=True)
class PromptSet:
    """A published set. count: of its prompts. read: (file or folder, split) → (rows, files that
    were read)."""

    title: str
    count: int
    read: Callable[[Path, str], tuple[Rows, list[Path]]]


@dataclass(frozen=True)
class PromptSetOptions:
    """Arguments of the command. name: a key of `SETS`. source: the published file or folder. to:
    the folder of the results. split: of T2I-CompBench."""

    name: str
    source: Path
    to: Path
    split: str = "val"


def prepare_prompts(options: PromptSetOptions) -> dict[str, Any]:
    """The command; returns the content of report.json. Raises PromptError for files that are not
    those of the set, DiskSpaceError when the disk is full."""
    chosen = SETS[options.name]
    rows, files = chosen.read(options.source, options.split)
    record = _record(options, chosen, rows, files)
    make_output_folder(options.to)
    path = options.to / f"{options.name}.jsonl"
    try:
        write_lines(path, rows)
        write_record(options.to, record)
    except OSError as error:
        raise disk_is_full(options.to, error) from error
    say(f"{chosen.title}: {len(rows):,} prompts → {path}")
    if [*record["categories"]] != [NONE]:
        say("  " + ", ".join(f"{count} {name}" for name, count in record["categories"].items()))
    for warning in record["warnings"]:
        say(f"warning: {warning}")
    return record


def _record(
    options: PromptSetOptions, chosen: PromptSet, rows: Rows, files: list[Path]
) -> dict[str, Any]:
    return {
        "set": chosen.title,
        "split": options.split if options.name == "t2i-compbench" else None,
        "source": {"path": str(options.source), "sha256": _sha256(files)},
        "rows": {"total": len(rows), "usable": len(rows)},
        "categories": dict(Counter(str(row["category"]) for row in rows)),
        "warnings": list(_warnings(options, chosen, rows)),
        "versions": versions(),
    }


def _sha256(files: list[Path]) -> str:
    """The hash of a file; of several, that of a line for each: its name and its hash."""
    hashes = [file_sha256(file) for file in files]
    if len(files) == 1:
        return hashes[0]
    told = "".join(f"{file.name} {one}\n" for file, one in zip(files, hashes, strict=True))
    return hashlib.sha256(told.encode()).hexdigest()


def _warnings(options: PromptSetOptions, chosen: PromptSet, rows: Rows) -> Iterator[str]:
    is_published = options.name != "t2i-compbench" or options.split == "val"
    if is_published and len(rows) != chosen.count:
        yield (
            f"{len(rows):,} prompts, and {chosen.title} has {chosen.count:,}: figures will not be "
            "comparable"
        )
    if options.name == "t2i-compbench":
        missing = [name for name in COMPBENCH if name not in {row["category"] for row in rows}]
        if missing:
            yield f"{options.source} has no file of {', '.join(missing)}"
    twice = len(rows) - len({row["prompt"] for row in rows})
    if twice:
        yield f"{twice} of the prompts equal an earlier one; all are kept, as published"


# ---- one reader a set ----------------------------------------------------------------------------


def _table(path: Path, format: str, category: str) -> tuple[Rows, list[Path]]:
    """A file that training reads as it is. category: the key that it has for that."""
    rows: Rows = []
    for prompt in load_prompts(path, format):
        found = prompt.metadata.get(category)
        rows.append({"prompt": prompt.text, **prompt.metadata, "category": found or NONE})
    if all(row["category"] == NONE for row in rows):
        raise PromptError(
            f"{path} has no {category} beside its prompts; give the file as it is published, with "
            "all its columns"
        )
    return rows, [path]


def _compbench(folder: Path, split: str) -> tuple[Rows, list[Path]]:
    """A folder with a file a category, one prompt a line: color_val.txt, ..."""
    files = {name: folder / f"{name}_{split}.txt" for name in COMPBENCH}
    there = {name: file for name, file in files.items() if file.is_file()}
    if not there:
        raise PromptError(
            f"{folder} has none of {', '.join(file.name for file in files.values())}; give the "
            "folder examples/dataset of T2I-CompBench"
        )
    rows = [
        {"prompt": line.strip(), "category": name}
        for name, file in there.items()
        for _, line in lines(file)
    ]
    return rows, [*there.values()]


def _dpg(path: Path, split: str) -> tuple[Rows, list[Path]]:
    """dpg_bench.csv, a line for each question about a prompt, or the folder of the prompts, each in
    a text file of its own."""
    if path.is_dir():
        files = sorted(path.glob("*.txt"))
        if not files:
            raise PromptError(f"{path} has no text file; give dpg_bench.csv or its folder prompts")
        rows = [
            {"prompt": " ".join(read_text(file).split()), "category": NONE, "id": file.stem}
            for file in files
        ]
        return rows, files
    items: dict[str, dict[str, Any]] = {}
    for where, entry in _dpg_lines(path):
        item = items.setdefault(
            entry["item_id"],
            {"prompt": entry["text"].strip(), "category": NONE, "id": entry["item_id"]},
        )
        item.setdefault("questions", []).append(_dpg_question(path, where, entry))
    return [*items.values()], [path]


def _dpg_lines(path: Path) -> Iterator[tuple[str, dict[str, str]]]:
    csv.field_size_limit(LONGEST_FIELD)
    reader = csv.DictReader(io.StringIO(read_text(path), newline=""))
    try:
        missing = [name for name in _DPG if name not in (reader.fieldnames or ())]
        if missing:
            raise PromptError(
                f"{path} has no column {', '.join(missing)}; give dpg_bench.csv as published"
            )
        for entry in reader:
            where = f"line {reader.line_num}"
            if not all(entry[name] for name in _DPG):
                expected = f"a value in each of {', '.join(_DPG)}"
                raise row_error(path, where, dict(entry), expected, "bring the file again")
            yield where, entry
    except csv.Error as error:
        raise PromptError(f"{path}: {error}; give dpg_bench.csv as published") from None


def _dpg_question(path: Path, where: str, entry: Mapping[str, str]) -> dict[str, Any]:
    """A question about a picture. dependency: the questions that must be answered with yes first;
    0 stands for none."""
    try:
        number = int(entry["proposition_id"])
        parents = [int(part) for part in entry["dependency"].split(",")]
    except ValueError:
        expected = "whole numbers in proposition_id and dependency"
        raise row_error(path, where, dict(entry), expected, "bring the file again") from None
    return {
        "id": number,
        "dependency": [parent for parent in parents if parent],
        "category": entry.get("category_broad") or NONE,
        "tuple": entry.get("tuple") or "",
        "question": entry["question_natural_language"],
    }


SETS = {
    "drawbench": PromptSet("DrawBench", 200, lambda p, _: _table(p, "drawbench", "category")),
    "parti": PromptSet("PartiPrompts", 1632, lambda p, _: _table(p, "partiprompts", "category")),
    "geneval": PromptSet("GenEval", 553, lambda p, _: _table(p, "geneval", "tag")),
    "t2i-compbench": PromptSet("T2I-CompBench", 2400, _compbench),
    "dpg": PromptSet("DPG-Bench", 1065, _dpg),
}
