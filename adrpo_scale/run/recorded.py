"""A start without a checkpoint: whether its run may begin, and the place of lines recorded before.

A run that was killed before its first checkpoint begins anew by itself. One that has had a
checkpoint never does: its `checkpoints/` may lie on a disk that is not mounted.
"""

from __future__ import annotations

import os
from pathlib import Path

from adrpo_scale.checkpoint.shelf import CHECKPOINTS, FIRST_COMMIT
from adrpo_scale.core.errors import RunFolderError
from adrpo_scale.core.files import replace_json, sync_folder
from adrpo_scale.core.json_files import read_object
from adrpo_scale.core.run_rows import EVALUATIONS, METRICS, PROMPTS
from adrpo_scale.run.starts import records


def check_may_begin(run: Path, fresh: bool) -> None:
    """Raises RunFolderError where a run without a checkpoint has had one. fresh: the user asks to
    begin anew all the same."""
    evidence = None if fresh else _evidence(run)
    if evidence is not None:
        raise RunFolderError(
            f"{run / CHECKPOINTS} holds no checkpoint, but the run has had one ({evidence}): mount "
            "its disk or put the checkpoints back, and start again to resume. To begin anew, "
            "choose another --run-dir, or give --fresh, which keeps the lines recorded so far "
            f"beside {METRICS}"
        )


def _evidence(run: Path) -> str | None:
    """Why a checkpoint must have been there; None where nothing says so."""
    if os.path.lexists(run / FIRST_COMMIT):
        return f"{FIRST_COMMIT} was written when the first was committed"
    if any(run.glob(_aside_name(FIRST_COMMIT, "*"))):
        return None  # begun anew since, and without a commit
    for path in reversed(records(run)):  # runs of before have no such file
        record = read_object(path) or {}
        if record.get("resumed_from") is not None:
            return f"lives/{path.name} resumed from iteration {record['resumed_from']}"
        if record.get("outcome") == "done":
            return f"lives/{path.name} came to the end, where the last state is saved"
    return None


def set_lines_aside(run: Path) -> list[str]:
    """Renames JSONL files that hold something, for a start that begins at iteration 0, and returns
    their new names. No line is removed without a checkpoint that the run goes on from. What says
    that the run has had one counts no more: the user has asked to begin anew."""
    found, evidence = [], _evidence(run)
    for name in (METRICS, EVALUATIONS, PROMPTS):
        path = run / name
        if path.is_file() and path.stat().st_size:
            aside = _first_free(path)
            os.rename(path, aside)
            found.append(aside.name)
    if evidence is not None:
        aside = _first_free(run / FIRST_COMMIT)
        replace_json(aside, {"evidence": evidence})
        (run / FIRST_COMMIT).unlink(missing_ok=True)
    if found:
        sync_folder(run)
    return found


def _first_free(path: Path) -> Path:
    number = 1
    while os.path.lexists(aside := path.with_name(_aside_name(path.name, str(number)))):
        number += 1
    return aside


def _aside_name(name: str, number: str) -> str:
    """`metrics.before-1.jsonl` for metrics.jsonl and 1."""
    stem, _, ending = name.rpartition(".")
    return f"{stem}.before-{number}.{ending}"
