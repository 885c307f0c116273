"""The run behind a row of an evaluation, where it is on this machine: its starts and its metrics
are in no row's folder.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from adrpo_scale.core.json_files import read_object, section_of
from adrpo_scale.evaluation.report.evaluated import Evaluated
from adrpo_scale.evaluation.row_folder import CONFIG, IDENTITY
from adrpo_scale.run.sweep_record import runs_folder

_CHANGING = ("iterations", "checkpoint", "limits", "logging", "evaluation", "engine")


def run_folder(run: Evaluated) -> Path | None:
    """The folder of the run itself: a judged one lies in it, or in an evaluation elsewhere. None
    where it is not here."""
    if run.origin is not None:
        return run.origin
    folder = run.folder.resolve()
    if (folder / IDENTITY).is_file():
        folder = folder.parent
    return folder if (folder / CONFIG).is_file() else None


def config_folder(run: Evaluated) -> Path | None:
    """The folder with the run's config: its own, or the row's, which has a copy."""
    own = run_folder(run)
    return run.folder if own is None and (run.folder / CONFIG).is_file() else own


def origin_of(run: Evaluated) -> Path | None:
    """The folder of the run that a row is of; None where no folder of its name, where the
    evaluation's file or ADRPO_RUNS leads, has the same settings."""
    identity = read_object(run.folder / IDENTITY) or {}
    config = read_object(run.folder / CONFIG)
    name = identity.get("run", section_of(identity, "model").get("run"))
    if run.given is not None or config is None or not isinstance(name, str):
        return None
    for parent in (*_stated(run, str(identity.get("row"))), runs_folder()):
        folder = (parent / name).resolve()
        there = read_object(folder / CONFIG) if folder.name == name else None
        if there is not None and _lasting(there) == _lasting(config):
            return folder
    return None


def _lasting(config: dict[str, Any]) -> dict[str, Any]:
    """The settings that a run keeps while it goes on."""
    return {key: value for key, value in config.items() if key not in _CHANGING}


def _stated(run: Evaluated, row: str) -> Iterator[Path]:
    """Where the evaluation's file says that the run lies."""
    document = read_object(run.folder.resolve().parent.parent / IDENTITY) or {}
    models = section_of(section_of(document, "config"), "models")
    key = row.partition(",")[0].partition("@")[0]
    stated: Any = section_of(models, key).get("run")
    if isinstance(stated, str):
        yield Path(stated).expanduser().parent
