"""`prepare avqa`: AVQA's rows and videos → clips in a few tar shards and `train.jsonl`.

    OUT/clips-00000.tar ...   the clips, each once however many questions ask about it
    OUT/journal.jsonl         their places, from which a stopped start resumes (see `shards`)
    OUT/train.jsonl           a row per usable question: id, question, choices, answer (the text of
                              the right option), audio (a reference), seconds, video, type
    OUT/skipped.jsonl         every row and clip that is left out, with the reason
    OUT/report.json           counts, seconds, versions of the decoders, SHA-256 of the rows

The order of clips is that of the rows; it and every byte are the same for any number of workers. A
clip in the journal is not read again; one that was missing or broken is tried again at the next
start, so that videos can be added later. All rows are read before anything is written. A wrong row,
a missing or a broken video costs its rows alone.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from adrpo_scale.core.console import console
from adrpo_scale.core.disk_space import disk_space, size_text
from adrpo_scale.core.errors import ClipError, ConfigError, DiskSpaceError
from adrpo_scale.core.folder_lock import RunLock
from adrpo_scale.core.paths import make_output_folder
from adrpo_scale.core.tensor_files import file_sha256
from adrpo_scale.data.clips import AUDIO_SUFFIXES, SAMPLE_RATE, optional
from adrpo_scale.data.foreign_rows import check_values
from adrpo_scale.data.formats import json_entries
from adrpo_scale.data.prepare.extract import Extracted, extract
from adrpo_scale.data.prepare.pool import in_order
from adrpo_scale.data.prepare.record import (
    DECODERS,
    REASON,
    SKIPPED,
    disk_is_full,
    say,
    versions,
    write_lines,
    write_record,
)
from adrpo_scale.data.prepare.shards import Entry, Shards
from adrpo_scale.data.prepare.sources import VIDEO_SUFFIXES, Source, find, index
from adrpo_scale.data.questions import Question, parse_question

ROWS = "train.jsonl"
CLIP_BYTES = 10 * 2 * SAMPLE_RATE  # AVQA's clips have ten seconds; FLAC saves a third to a half
LINE_EVERY = 30.0  # seconds between lines of progress where there is no terminal


@dataclass(frozen=True)
class AvqaOptions:
    """Arguments of the command. rows: AVQA's file. to: the folder of the results. videos, audio:
    folders of the media, at least one."""

    rows: Path
    to: Path
    videos: Path | None = None
    audio: Path | None = None
    shard_megabytes: int = 1024
    workers: int = 1


@dataclass
class Tally:
    """Progress of the command. faults: clip → ("missing" or "broken", reason), of clips that are
    left out; rows: lines of skipped.jsonl about wrong rows; done, reused: counts of clips."""

    faults: dict[str, tuple[str, str]] = field(default_factory=dict)
    rows: list[dict[str, Any]] = field(default_factory=list)
    done: int = 0
    reused: int = 0

    def counts(self) -> dict[str, int]:
        counts = Counter(what for what, _ in self.faults.values())
        found = {name: counts[name] for name in ("missing", "broken")}
        return {"done": self.done, **found, "reused": self.reused}


def prepare_avqa(options: AvqaOptions) -> dict[str, Any]:
    """The command; returns the content of report.json.

    Raises ConfigError for missing folders or packages, PromptError for a file that holds no rows,
    DiskSpaceError before the first clip or when the disk is full, RunFolderError while another
    process prepares the same folder, and ClipError, after everything is written, where no question
    is usable.
    """
    _check(options)
    tally = Tally()
    questions = list(_questions(options.rows, tally))
    sources = _sources(options, questions, tally)
    make_output_folder(options.to)
    with RunLock(options.to) as lock:
        try:
            entries = _extract_all(options, sources, tally, lock.check)
            lock.check()
            record = _write(options, questions, entries, tally)
        except OSError as error:
            raise disk_is_full(options.to, error) from error
    _show(options.to, record)
    if record["rows"]["usable"] == 0:
        raise ClipError(
            f"none of the {record['rows']['total']} questions has a clip; {options.to / SKIPPED} "
            "gives each reason: are the names of the files those of the column video_name?"
        )
    return record


def _check(options: AvqaOptions) -> None:
    if options.videos is None and options.audio is None:
        raise ConfigError("prepare avqa: neither --videos nor --audio; name the folder of one")
    for package in DECODERS if options.videos else DECODERS[:2]:
        optional(package)


def _questions(rows: Path, tally: Tally) -> Iterator[Question]:
    """The questions of all valid rows, in their order; the others go into the tally."""
    for where, entry in json_entries(rows):
        try:
            check_values(entry)
            yield parse_question(entry)
        except ValueError as error:
            tally.rows.append({"what": "row", "row": where, "reason": str(error)[:REASON]})


def _clip(question: Question) -> str:
    """The name of the clip that a question is about."""
    return question.video or question.clip or ""


def _sources(
    options: AvqaOptions, questions: Iterable[Question], tally: Tally
) -> dict[str, Source]:
    """Clip → source, in the order in which the rows first name the clips."""
    audio = index(options.audio, AUDIO_SUFFIXES) if options.audio else {}
    videos = index(options.videos, VIDEO_SUFFIXES) if options.videos else {}
    folders = [*([options.audio] if options.audio else []), options.rows.parent]
    found: dict[str, Source] = {}
    for question in questions:
        clip = _clip(question)
        if clip in found or clip in tally.faults:
            continue
        source = find(clip, question.clip, audio, videos, folders)
        if source is None:
            places = " or ".join(str(p) for p in (options.videos, options.audio) if p)
            tally.faults[clip] = ("missing", f"no file of this name in {places}")
        else:
            found[clip] = source
    return found


# ---- clips ---------------------------------------------------------------------------------------


def _extract_all(
    options: AvqaOptions,
    sources: Mapping[str, Source],
    tally: Tally,
    check_owner: Callable[[], None],
) -> Mapping[str, Entry]:
    """Extracts the sources that are not in the shards; returns all clips of the shards by name.
    check_owner: as of `Shards`."""
    with Shards(options.to, options.shard_megabytes * 10**6, check_owner) as shards:
        tally.reused = sum(clip in shards.entries for clip in (*sources, *tally.faults))
        for clip in shards.entries:
            tally.faults.pop(clip, None)  # extracted earlier; its video was deleted since
        todo = [source for clip, source in sources.items() if clip not in shards.entries]
        _check_room(options.to, len(todo))
        with _progress(len(todo), tally) as show:
            for result in in_order(extract, todo, options.workers, _died):
                if result.flac is None:
                    tally.faults[result.clip] = ("broken", str(result.fault))
                else:
                    shards.append(result.clip, result.flac, result.samples)
                    tally.done += 1
                show()
    return shards.entries


def _died(source: Source) -> Extracted:
    reason = f"{source.path}: the decoder crashed; download it again or take it out"
    return Extracted(source.clip, fault=reason)


def _check_room(to: Path, clips: int) -> None:
    needed, free = clips * CLIP_BYTES, disk_space(to).free_bytes
    if free < needed:
        raise DiskSpaceError(
            f"no room for {clips} clips in {to}: they need up to {size_text(needed)}, and "
            f"{size_text(free)} are free. Make room, or choose another --to"
        )


@contextmanager
def _progress(total: int, tally: Tally) -> Iterator[Callable[[], None]]:
    """A function to call after every clip: it shows a live line on a terminal, and a line every
    LINE_EVERY seconds in a job's log."""
    is_live = console.is_terminal
    bar = Progress(
        TextColumn("clips {task.completed}/{task.total}"),
        BarColumn(bar_width=20),
        TextColumn("{task.fields[line]}", markup=False),
        TimeRemainingColumn(),
        console=console,
        disable=not is_live,
        refresh_per_second=2,
    )
    task = bar.add_task("", total=total, line="")
    shown, seen = time.monotonic(), 0

    def show() -> None:
        nonlocal shown, seen
        seen += 1
        line = ", ".join(f"{count} {name}" for name, count in tally.counts().items())
        bar.update(task, completed=seen, line=line)
        if not is_live and time.monotonic() - shown > LINE_EVERY:
            shown = time.monotonic()
            say(f"clips {seen}/{total}: {line}")

    with bar:
        yield show


# ---- rows ----------------------------------------------------------------------------------------


def _write(
    options: AvqaOptions, questions: list[Question], entries: Mapping[str, Entry], tally: Tally
) -> dict[str, Any]:
    """Writes the rows, the list of everything left out, and the record, which it returns."""
    rows = [_row(place, q, entries) for place, q in enumerate(questions) if _clip(q) in entries]
    write_lines(options.to / ROWS, rows)
    asking: dict[str, list[Any]] = {clip: [] for clip in tally.faults}
    for question in questions:
        if _clip(question) in asking:
            asking[_clip(question)].append(question.id)
    left_out = [
        {"what": what, "clip": clip, "rows": asking[clip], "reason": reason}
        for clip, (what, reason) in sorted(tally.faults.items())
    ]
    write_lines(options.to / SKIPPED, [*tally.rows, *left_out])
    used = {_clip(question) for question in questions} & entries.keys()
    total = len(questions) + len(tally.rows)
    record = {
        "source": {"file": str(options.rows), "sha256": file_sha256(options.rows)},
        "rows": {"total": total, "usable": len(rows), "wrong": len(tally.rows)},
        "clips": tally.counts(),
        "sample_rate": SAMPLE_RATE,
        "seconds": round(sum(entries[clip].samples for clip in used) / SAMPLE_RATE, 2),
        "shards": {p.name: p.stat().st_size for p in sorted(options.to.glob("clips-*.tar"))},
        "versions": versions(),
    }
    write_record(options.to, record)
    return record


def _row(place: int, question: Question, entries: Mapping[str, Entry]) -> dict[str, Any]:
    entry = entries[_clip(question)]
    return {
        "id": place if question.id is None else question.id,
        "question": question.text,
        "choices": list(question.choices),
        "answer": question.answer,
        "audio": entry.reference,
        "seconds": round(entry.samples / SAMPLE_RATE, 3),
        "video": question.video,
        "type": question.others.get("type"),
    }


def _show(to: Path, record: Mapping[str, Any]) -> None:
    rows, clips, shards = record["rows"], record["clips"], record["shards"]
    say("clips: " + ", ".join(f"{count:,} {name}" for name, count in clips.items()))
    say(
        f"       {record['seconds'] / 3600:.2f} hours at {SAMPLE_RATE} Hz, "
        f"{size_text(sum(shards.values()))} in {len(shards)} shards"
    )
    say(f"rows:  {rows['usable']:,} of {rows['total']:,} usable → {to / ROWS}")
    if rows["usable"] < rows["total"]:
        say(f"       {to / SKIPPED} names everything that is left out, with its reason")
