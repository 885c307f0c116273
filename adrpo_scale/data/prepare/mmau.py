"""`prepare mmau`: MMAU test-mini's rows and audio → `mmau.jsonl`, checked, its revision stamped.

A quarter of the questions changed with revision v05.15.25, so a figure has no meaning without its
revision: `report.json` has it, and the SHA-256 of the file that was read. Rows: id, question,
choices, answer, audio, task, category, sub_category, difficulty, and original: the unchanged row,
in the form that is submitted to the benchmark. The audio stays in its place; `audio` is its path,
relative to the folder of the rows where it lies inside, absolute otherwise.

A row is left out, and named in `skipped.jsonl`, where it is wrong, repeats the id of an earlier
row, or its audio is missing or broken. A question whose answer is not among its choices, or that
has a choice twice, stays, because the benchmark asks it; `report.json` warns of it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from adrpo_scale.core.errors import ClipError
from adrpo_scale.core.pace import Pace
from adrpo_scale.core.paths import make_output_folder
from adrpo_scale.core.tensor_files import file_sha256
from adrpo_scale.data.clips import AUDIO_SUFFIXES, duration, optional
from adrpo_scale.data.foreign_rows import check_name, check_values, stays_in
from adrpo_scale.data.formats import json_entries
from adrpo_scale.data.prepare.record import (
    REASON,
    RECORD,
    SKIPPED,
    disk_is_full,
    say,
    versions,
    write_lines,
    write_record,
)
from adrpo_scale.data.prepare.sources import find, index
from adrpo_scale.data.questions import parse_question

ROWS = "mmau.jsonl"
EXPECTED = {"sound": 333, "music": 334, "speech": 333}  # questions of test-mini, by task


@dataclass(frozen=True)
class MmauOptions:
    """Arguments of the command. json: the benchmark's file. audio: the folder of its clips. to: the
    folder of the results. revision: of the benchmark's repository or release."""

    json: Path
    audio: Path
    to: Path
    revision: str


def prepare_mmau(options: MmauOptions) -> dict[str, Any]:
    """The command; returns the content of report.json.

    Raises PromptError for a file that holds no rows, ConfigError for a missing folder of audio,
    DiskSpaceError when the disk is full, ClipError where no row is usable.
    """
    optional("soundfile")
    rows, skipped, names = [], [], index(options.audio, AUDIO_SUFFIXES)
    seen: set[str] = set()
    entries = list(json_entries(options.json))
    pace = Pace("looking at clips", len(entries), "rows")
    for where, entry in entries:
        pace.step()
        try:
            rows.append(_row(options, entry, names, seen))
        except (ValueError, ClipError) as error:
            what = "clip" if isinstance(error, ClipError) else "row"
            name = entry.get("id")
            name = name if isinstance(name, str | int | None) else repr(name)[:REASON]
            reason = str(error)[:REASON]
            skipped.append({"what": what, "row": where, "id": name, "reason": reason})
    make_output_folder(options.to)
    record = _record(options, rows, skipped)
    try:
        write_lines(options.to / ROWS, rows)
        write_lines(options.to / SKIPPED, skipped)
        write_record(options.to, record)
    except OSError as error:
        raise disk_is_full(options.to, error) from error
    _show(options.to, record)
    if not rows:
        raise ClipError(
            f"no row of {options.json} is usable; {options.to / SKIPPED} gives each reason"
        )
    return record


def _row(
    options: MmauOptions, entry: Mapping[str, Any], names: dict[str, Path], seen: set[str]
) -> dict[str, Any]:
    """The row to write. Raises ValueError for a wrong row, ClipError for its audio."""
    check_values(entry)
    for key in ("id", "audio_id", "question", "answer", "task"):
        if not isinstance(entry.get(key), str) or not entry[key].strip():
            raise ValueError(f"{key!r} is {entry.get(key)!r}, expected a text")
    if entry["task"] not in EXPECTED:
        raise ValueError(f"'task' is {entry['task']!r}, expected one of {', '.join(EXPECTED)}")
    if entry["id"] in seen:
        raise ValueError("an earlier row has the same id")
    seen.add(entry["id"])
    row = {
        "id": entry["id"],
        "question": entry["question"],
        "choices": entry.get("choices"),
        "answer": entry["answer"],
        "audio": _audio(options, entry["audio_id"], names),
        "task": entry["task"],
        "category": entry.get("category"),
        "sub_category": entry.get("sub-category", entry.get("sub_category")),
        "difficulty": entry.get("difficulty"),
        "original": dict(entry),
    }
    parse_question(row)  # as `evaluate` does, which would refuse all rows for one
    return row


def _audio(options: MmauOptions, audio_id: str, names: dict[str, Path]) -> str:
    source = find(check_name(audio_id, "audio_id"), audio_id, names, {}, [options.audio])
    if source is None:
        raise ClipError(f"no audio of the name {audio_id!r} in {options.audio}")
    path, clips, folder = source.path.resolve(), options.audio.resolve(), options.to.resolve()
    if not stays_in(str(path), clips):  # a link, which stays one
        path = clips / source.path.relative_to(options.audio)
    duration(path.name, path.parent)
    return str(path.relative_to(folder) if path.is_relative_to(folder) else path)


def _record(
    options: MmauOptions, rows: list[dict[str, Any]], skipped: list[dict[str, Any]]
) -> dict[str, Any]:
    tasks = Counter(row["task"] for row in rows)
    return {
        "benchmark": "MMAU test-mini",
        "revision": options.revision,
        "audio": str(options.audio.resolve()),
        "source": {"file": str(options.json), "sha256": file_sha256(options.json)},
        "rows": {"total": len(rows) + len(skipped), "usable": len(rows)},
        "tasks": dict(tasks),
        "expected": EXPECTED,
        "warnings": list(_warnings(tasks, rows, skipped)),
        "versions": versions(),
    }


def _warnings(
    tasks: Mapping[str, int], rows: list[dict[str, Any]], skipped: list[dict[str, Any]]
) -> Iterator[str]:
    if tasks != EXPECTED:
        found = ", ".join(f"{count} {task}" for task, count in sorted(tasks.items())) or "none"
        wanted = ", ".join(f"{count} {task}" for task, count in sorted(EXPECTED.items()))
        yield f"usable questions: {found}; test-mini has {wanted}: figures will not be comparable"
    if skipped:
        yield f"{len(skipped)} rows are left out, {SKIPPED} names them"
    odd = [row["id"] for row in rows if row["answer"] not in row["choices"]]
    if odd:
        yield f"{len(odd)} answers are not among their choices: {', '.join(odd)}"
    twice = [row["id"] for row in rows if len(set(row["choices"])) < len(row["choices"])]
    if twice:
        yield f"{len(twice)} questions have a choice twice: {', '.join(twice)}"


def _show(to: Path, record: Mapping[str, Any]) -> None:
    rows = record["rows"]
    say(f"MMAU test-mini, revision {record['revision']}")
    say(f"rows:  {rows['usable']:,} of {rows['total']:,} usable → {to / ROWS}")
    say("       " + ", ".join(f"{count} {task}" for task, count in record["tasks"].items()))
    for warning in record["warnings"]:
        say(f"warning: {warning[:300]}{'…' if len(warning) > 300 else ''}")
    say(f"the revision and the SHA-256 of the source are in {to / RECORD}")
