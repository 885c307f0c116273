"""The folder of a run: where it is, what is in it, and what happens when it is there already."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from adrpo_scale.errors import RunFolderError

OUTPUTS = (
    "config.json",
    "metrics.jsonl",
    "eval.jsonl",
    "tensorboard",
    "samples",
    "logs",
    "weights",
    "curves.png",
)


def default_folder(name: str, digest: str) -> Path:
    """$ADRPO_RUNS/<config name>-<digest of the settings>; ADRPO_RUNS is `runs` by default."""
    return Path(os.environ.get("ADRPO_RUNS", "runs")) / f"{name}-{digest}"


def open_folder(run: Path, resolved: dict[str, Any]) -> None:
    """Makes `run` ready for a new start and writes `config.json`; call it on rank 0 alone.

    What an earlier start left is moved to `attempts/NN`, never overwritten. Raises RunFolderError
    if the folder holds something else, or cannot be written.
    """
    if run.is_dir() and any(run.iterdir()) and not (run / "config.json").is_file():
        raise RunFolderError(
            f"{run} is not empty and not the folder of a run; choose another --run-dir"
        )
    try:
        run.mkdir(parents=True, exist_ok=True)
        earlier = [run / name for name in OUTPUTS if (run / name).exists()]
        if earlier:
            attempts = run / "attempts"
            attempts.mkdir(exist_ok=True)
            place = attempts / f"{len(list(attempts.iterdir())) + 1:02d}"
            place.mkdir()
            for path in earlier:
                path.rename(place / path.name)
        (run / "config.json").write_text(json.dumps(resolved, indent=2) + "\n")
    except OSError as error:
        raise RunFolderError(
            f"run folder {run} cannot be written ({error}); choose another --run-dir "
            "or set ADRPO_RUNS"
        ) from error
