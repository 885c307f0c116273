"""The folder of a run: its path, its creation, and cutting it back to a checkpoint."""

from __future__ import annotations

import json
import os
import stat
from contextlib import suppress
from datetime import datetime
from pathlib import Path
from typing import Any

from adrpo_scale.checkpoint.shelf import FIRST_COMMIT
from adrpo_scale.core.errors import RunFolderError
from adrpo_scale.core.files import replace_file, replace_json
from adrpo_scale.core.json_files import number_of, parse_object, read_regular
from adrpo_scale.core.run_rows import (
    EVALUATIONS,
    MEMORY,
    METRICS,
    PROMPTS,
    Row,
    evaluation_rows,
    metric_rows,
    prompt_rows,
)

# Names that may exist before `config.json`, which marks the folder of a run: those that a start
# creates first, and links to checkpoints on another filesystem.
EARLY = (
    *("lock.json", "config.json", "cut_prompts.json", "prompt_sets.json", "coverage.json"),
    *("logs", "lives", "origin", "checkpoints", "trajectory", "stacks", "verdicts", MEMORY),
)
# What a start writes into; `lives/` and `stacks/` are missed by nobody.
FOLDERS = ("checkpoints", "trajectory", "origin", "logs", "samples", "tensorboard")


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
    _check_names(run)
    if others and not (run / "config.json").is_file():
        raise RunFolderError(
            f"{run} is not empty and not the folder of a run; choose another --run-dir"
        )


def _check_names(run: Path) -> None:
    """Raises RunFolderError where something else has the name of a folder or of a file that grows:
    a run that began all the same would lose what is behind a link, or fail hours later."""
    for name in FOLDERS:
        if os.path.lexists(run / name) and not os.path.isdir(run / name):
            raise RunFolderError(
                f"{run / name} is expected to be a folder, and is none: mount its disk if it is a "
                "link; if nothing of it is needed, remove it"
            )
    for name in (METRICS, EVALUATIONS, PROMPTS):
        path = run / name
        if os.path.lexists(path) and not stat.S_ISREG(os.lstat(path).st_mode):
            raise RunFolderError(
                f"{path} is expected to be a regular file, and is none: nothing is written through "
                "a link; put the file itself in its place"
            )


def remove_temporaries(run: Path) -> None:
    """Removes files that `replace_file` had not yet renamed when a start was killed; for rank 0
    only, which holds the lock."""
    documents = ("config.json", "cut_prompts.json", "prompt_sets.json", "coverage.json")
    for name in (*documents, FIRST_COMMIT, METRICS, EVALUATIONS, PROMPTS):
        for path in run.glob(f"{name}.*.tmp"):
            with suppress(OSError):
                path.unlink()


def write_config(run: Path, resolved: dict[str, Any]) -> None:
    """Writes `config.json`; for rank 0 only."""
    try:
        replace_json(run / "config.json", resolved)
    except OSError as error:
        raise _not_writable(run, error) from error


def read_settings(run: Path) -> dict[str, Any]:
    """The document of `config.json`. RunFolderError where it cannot be read."""
    try:
        return parse_object(read_regular(run / "config.json"))
    except (OSError, ValueError) as error:
        raise RunFolderError(
            f"{run / 'config.json'} is not JSON ({error}); was it copied completely?"
        ) from None


def _not_writable(run: Path, error: OSError) -> RunFolderError:
    return RunFolderError(
        f"run folder {run} cannot be written ({error}); choose another --run-dir or set ADRPO_RUNS"
    )


def cut_back(run: Path, iteration: int, evaluated: int) -> None:
    """Removes the lines after a checkpoint from the JSONL files, because the run repeats them, and
    with them lines that no reader takes; for rank 0 only. Raises RunFolderError for a file that
    cannot be read.

    iteration: of the checkpoint. evaluated: the last evaluated iteration at the checkpoint.
    """
    _keep(run / METRICS, metric_rows(run / METRICS), iteration)
    last = min(iteration, evaluated)
    _keep(run / EVALUATIONS, evaluation_rows(run / EVALUATIONS), last)
    _keep(run / PROMPTS, prompt_rows(run / PROMPTS), last)


def left_behind(run: Path, iteration: int) -> dict[str, Any] | None:
    """A summary of the lines of metrics.jsonl after a checkpoint, taken before `cut_back`: the
    number of iterations, their seconds, and the time of the last line. None without the file.
    Raises RunFolderError for a JSONL file that cannot be read."""
    path = run / METRICS
    if [_content(run / name) for name in (PROMPTS, EVALUATIONS, METRICS)][-1] is None:
        return None
    after = [row for row in metric_rows(path) if row["iteration"] > iteration]
    seconds = sum(number_of(row, n) for row in after for n in ("seconds", "seconds_between"))
    written = datetime.fromtimestamp(path.stat().st_mtime).astimezone()
    last_line = written.isoformat(timespec="seconds")
    return {"iterations": len(after), "seconds": round(seconds, 3), "last_line": last_line}


def _keep(path: Path, rows: list[Row], last: int) -> None:
    """Leaves in a file of `rows` those up to iteration `last`."""
    kept = "".join(json.dumps(row) + "\n" for row in rows if row["iteration"] <= last).encode()
    if _content(path) not in (None, kept):
        replace_file(path, kept)


def _content(path: Path) -> bytes | None:
    """The content of a JSONL file; None where there is none. A file that is there and cannot be
    read must not be taken for an empty one."""
    try:
        return read_regular(path)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise RunFolderError(
            f"{path} cannot be read ({error.strerror}), and the run would go on writing there; "
            "move it away, or start again when the filesystem works"
        ) from error
