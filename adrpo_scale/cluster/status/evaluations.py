"""The progress of an evaluation of pictures or completions, from its folder alone; no torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from adrpo_scale.cluster.status import base
from adrpo_scale.cluster.status.base import Holder
from adrpo_scale.cluster.status.read import holder_of
from adrpo_scale.core.json_files import number_in, read_lines, read_object, section_of
from adrpo_scale.core.printable import one_line
from adrpo_scale.core.run_rows import EVALUATIONS
from adrpo_scale.evaluation.row_folder import IDENTITY, MANIFEST, ROWS, SCORES


@dataclass(frozen=True)
class RowProgress:
    """scores: how many there are, by scorer."""

    name: str
    samples: int
    scores: Mapping[str, int]
    has_numbers: bool


@dataclass(frozen=True)
class EvaluationStatus:
    """each: samples that a row is to have; None where that is not known."""

    folder: str
    state: str
    why: str
    each: int | None
    rows: Sequence[RowProgress]


def is_evaluation(folder: Path) -> bool:
    """Whether a folder is that of an evaluation of pictures or completions."""
    return (folder / ROWS).is_dir() and (folder / IDENTITY).is_file()


def evaluations_in(folder: Path) -> list[EvaluationStatus]:
    """The evaluation in a folder, or those in its subfolders where it is no run; [] without any."""
    if is_evaluation(folder):
        return [read_evaluation(folder)]
    if not folder.is_dir() or (folder / "config.json").is_file():
        return []
    return [read_evaluation(path) for path in sorted(folder.iterdir()) if is_evaluation(path)]


def read_evaluation(folder: Path) -> EvaluationStatus:
    """The progress of an evaluation, which may be under way."""
    asked = read_object(folder / IDENTITY) or {}
    names = [str(name) for name in asked.get("rows") or []]
    scorers = [str(name) for name in section_of(asked, "scorers")]
    rows = [_row(folder / ROWS / name, scorers) for name in names]
    each = _each(asked)
    is_done = bool(rows) and all(_is_done(row, each) for row in rows)
    state, why = _state(holder_of(folder, {}), is_done)
    return EvaluationStatus(str(folder), state, why, each, rows)


def _each(asked: Mapping[str, Any]) -> int | None:
    sampling = section_of(section_of(asked, "config"), "sampling")
    per_prompt, seeds = number_in(sampling.get("per_prompt"), int), sampling.get("seeds")
    sets = section_of(asked, "prompt_sets")
    prompts = sum(number_in(section_of(sets, name).get("prompts"), int) or 0 for name in sets)
    if per_prompt is None or not isinstance(seeds, list):
        return None
    return per_prompt * len(seeds) * prompts


def _row(folder: Path, scorers: Sequence[str]) -> RowProgress:
    scores = {name: _count(folder / SCORES / f"{name}.jsonl") for name in scorers}
    has_numbers = (folder / EVALUATIONS).is_file()
    return RowProgress(folder.name, _count(folder / MANIFEST), scores, has_numbers)


def _count(path: Path) -> int:
    """Samples with a line in a file or in the parts that ranks are writing."""
    parts = sorted(path.parent.glob(f"{path.stem}-rank-[0-9]*{path.suffix}"))
    lines = (line.get("id") for file in (path, *parts) for line in read_lines(file))
    return len({number for number in lines if type(number) is int})


def _is_done(row: RowProgress, each: int | None) -> bool:
    counts = (row.samples, *row.scores.values())
    return row.has_numbers and (each is None or all(count >= each for count in counts))


def _state(holder: Holder | None, is_done: bool) -> tuple[str, str]:
    if holder is not None and holder.is_alive:
        return base.RUNNING, holder.text
    if is_done:
        return base.DONE, ""
    if holder is None:
        return base.STOPPED, "the same command goes on"
    ended = "has ended without a word" if holder.has_ended else "shows no heartbeat"
    return base.KILLED, f"the process {ended} ({holder.text}); the same command goes on"


def block(status: EvaluationStatus) -> list[tuple[str, str]]:
    """(heading, text) of each line about an evaluation."""
    done = sum(_is_done(row, status.each) for row in status.rows)
    lines = [
        ("evaluation", status.folder),
        ("state", f"{status.state}: {status.why}" if status.why else status.state),
        ("rows", f"{done} of {len(status.rows)} done"),
    ]
    of_all = None if status.each is None else status.each * len(status.rows)
    lines.append(("samples", _of(sum(row.samples for row in status.rows), of_all)))
    scorers = dict.fromkeys(name for row in status.rows for name in row.scores)
    for name in scorers:
        count = sum(row.scores.get(name, 0) for row in status.rows)
        lines.append(("scorer", f"{name}: {_of(count, of_all)}"))
    for row in status.rows:
        if not _is_done(row, status.each):
            scored = ", ".join(f"{name} {count:,}" for name, count in row.scores.items())
            lines.append(("row", f"{row.name}: {_of(row.samples, status.each)} samples; {scored}"))
    return [(heading, one_line(text)) for heading, text in lines]


def _of(count: int, all_: int | None) -> str:
    return f"{count:,} of {'?' if all_ is None else f'{all_:,}'}"
