"""The folder of a run: its path, its creation, and cutting it back to a checkpoint."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Any

from adrpo_scale.core.errors import RunFolderError
from adrpo_scale.core.files import replace_file, replace_json

# Names that may exist before `config.json`, which marks the folder of a run: those that a start
# creates first, and links to checkpoints on another filesystem.
EARLY = (
    *("lock.json", "config.json", "cut_prompts.json"),
    *("logs", "lives", "origin", "checkpoints", "trajectory"),
)


def default_folder(name: str, digest: str) -> Path:
    """$ADRPO_RUNS/<config name>-<digest of the run>; ADRPO_RUNS is `runs` by default."""
    return Path(os.environ.get("ADRPO_RUNS", "runs")) / f"{name}-{digest}"


def make_folder(run: Path) -> None:
    """Creates the folder; for rank 0 only. Raises RunFolderError where it cannot be created, or
    holds something that is not a run."""
    try:
        run.mkdir(parents=True, exist_ok=True)
        others = [path for path in run.iterdir() if not path.name.startswith(EARLY)]
    except OSError as error:
        raise _not_writable(run, error) from error
    if others and not (run / "config.json").is_file():
        raise RunFolderError(
            f"{run} is not empty and not the folder of a run; choose another --run-dir"
        )


def write_config(run: Path, resolved: dict[str, Any]) -> None:
    """Writes `config.json`; for rank 0 only."""
    try:
        replace_json(run / "config.json", resolved)
    except OSError as error:
        raise _not_writable(run, error) from error


def _not_writable(run: Path, error: OSError) -> RunFolderError:
    return RunFolderError(
        f"run folder {run} cannot be written ({error}); choose another --run-dir or set ADRPO_RUNS"
    )


def cut_back(run: Path, iteration: int, evaluated: int) -> None:
    """Removes the lines after a checkpoint from the JSONL files, because the run repeats them; for
    rank 0 only.

    iteration: of the checkpoint. evaluated: the last evaluated iteration at the checkpoint.
    """
    _keep(run / "metrics.jsonl", lambda row: row["iteration"] <= iteration)
    _keep(run / "eval.jsonl", lambda row: row["iteration"] <= min(iteration, evaluated))


def left_behind(run: Path, iteration: int) -> dict[str, Any] | None:
    """A summary of the lines of metrics.jsonl after a checkpoint, taken before `cut_back`: the
    number of iterations, their seconds, and the time of the last line. None without the file."""
    path = run / "metrics.jsonl"
    try:
        written, rows = path.stat().st_mtime, rows_of(path)
    except OSError:
        return None
    after = [row for row in rows if row["iteration"] > iteration]
    seconds = sum(row.get("seconds", 0.0) + row.get("seconds_between", 0.0) for row in after)
    last_line = datetime.fromtimestamp(written).astimezone().isoformat(timespec="seconds")
    return {"iterations": len(after), "seconds": round(seconds, 3), "last_line": last_line}


def rows_of(path: Path) -> list[dict[str, Any]]:
    """The rows of a JSONL file, without incomplete lines; [] where there is no file."""
    lines = path.read_text(errors="replace").splitlines() if path.is_file() else []
    return [json.loads(line) for line in lines if _is_whole(line)]


def _keep(path: Path, wanted: Callable[[dict[str, Any]], bool]) -> None:
    if not path.is_file():
        return
    text = path.read_text(errors="replace")
    lines = [line for line in text.splitlines() if _is_whole(line) and wanted(json.loads(line))]
    kept = "".join(line + "\n" for line in lines)
    if kept != text:
        replace_file(path, kept.encode())


def _is_whole(line: str) -> bool:
    """False for a line that a killed process left incomplete."""
    try:
        json.loads(line)
    except ValueError:
        return False
    return True
