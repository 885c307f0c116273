"""The rows of an evaluation: each model of its file as runs with an iteration, or a pipeline.

The newest checkpoint of a run is looked up once: a run that goes on training does not move beneath
its evaluation. On rank 0 alone, but for `require_whole_rows`.
"""

from __future__ import annotations

import glob
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from adrpo_scale.checkpoint.locate import every_checkpoint, open_checkpoint
from adrpo_scale.checkpoint.named import EVERY, RAW, named, weights_of
from adrpo_scale.checkpoint.reader import Reader
from adrpo_scale.checkpoint.shelf import CHECKPOINTS, TRAJECTORY
from adrpo_scale.checkpoint.whole import require_whole
from adrpo_scale.core.errors import AdrpoError, ConfigError
from adrpo_scale.core.json_files import read_object
from adrpo_scale.core.paths import usual_path
from adrpo_scale.evaluation.asked import AskedModel
from adrpo_scale.evaluation.row_folder import row_name
from adrpo_scale.run.sweep import read_sweep
from adrpo_scale.run.sweep_record import read_record, runs_folder

_PATTERN = re.compile(r"[*?\[]")


@dataclass(frozen=True)
class Row:
    """A row. name: of its folder; key: of its model in the file. run: the checkpoint as
    RUN@iteration, None for a pipeline. of: run, algorithm, seed, iteration and weights, as rows of
    eval.jsonl have them. config: of the run, as plain data; sha256: of its checkpoint."""

    name: str
    key: str
    model: AskedModel
    run: str | None
    of: Mapping[str, Any]
    config: Mapping[str, Any] | None = None
    sha256: str = ""

    @property
    def is_published(self) -> bool:
        return self.run is None


def rows_of(models: Mapping[str, AskedModel]) -> list[Row]:
    """Every row, in the order of the file. Raises ConfigError, one line a model, where a run is not
    there."""
    found: list[Row] = []
    faults: list[str] = []
    for key, model in models.items():
        try:
            found += _rows(key, model)
        except AdrpoError as error:
            faults.append(f"models.{key}: {error}")
    if faults:
        raise ConfigError("\n".join(faults))
    return found


def require_whole_rows(rows: Sequence[Row]) -> None:
    """Raises CheckpointError where a file of a row's checkpoint has not its manifest's hash: better
    now than after the rows before it. Collective."""
    for row in rows:
        if row.run is not None:
            require_whole(open_checkpoint(row.run))


def _rows(key: str, model: AskedModel) -> Iterator[Row]:
    if model.pipeline is not None:
        of = {"run": key, "algorithm": "none", "seed": None, "iteration": 0, "weights": RAW}
        yield Row(key, key, model, None, of)
        return
    is_several, names = _runs(model)
    seen: dict[str, str] = {}
    for name in names:
        row = _run_row(key, model, name, is_several)
        if row.name in seen:
            raise ConfigError(f"{seen[row.name]} and {name} are both the row {row.name}: name one")
        seen[row.name] = name
        yield row


def _run_row(key: str, model: AskedModel, name: str, is_several: bool) -> Row:
    reader = open_checkpoint(name)
    is_in_run = reader.folder.parent.name in (CHECKPOINTS, TRAJECTORY)
    run = reader.folder.parent.parent if is_in_run else reader.folder
    config = read_object(run / "config.json") if is_in_run else None
    config = config or dict(reader.manifest.document["config"])
    of = {
        "run": run.resolve().name,
        "algorithm": (config.get("algorithm") or {}).get("name"),
        "seed": config.get("seed"),
        "iteration": reader.iteration,
        "weights": weights_of(reader, model.weights),
    }
    stated = named(name).which
    at = reader.iteration if type(stated) is int else None
    full = row_name(key, str(of["run"]), at) if is_several else key
    return Row(full, key, model, _pinned(reader, run, is_in_run), of, config, reader.sha256)


def _pinned(reader: Reader, run: Path, is_in_run: bool) -> str:
    """The name of this checkpoint alone."""
    return f"{run}@{reader.iteration}" if is_in_run else str(reader.folder)


def _runs(model: AskedModel) -> tuple[bool, list[str]]:
    """(whether the model may name several runs, their names)."""
    if model.sweep is not None:
        return True, _begun(Path(model.sweep))
    name = str(model.run)
    which = named(name).which
    folder, at = (name, "") if which is None else _parted(name)
    if usual_path(folder).exists() or not _PATTERN.search(folder):
        return which == EVERY, every_checkpoint(name)
    there = sorted(path for path in glob.glob(str(usual_path(folder))) if _has_weights(Path(path)))
    if not there:
        raise ConfigError(f"run = {name!r}: no folder of that name has a checkpoint")
    return True, [one for path in there for one in every_checkpoint(f"{path}{at}")]


def _parted(name: str) -> tuple[str, str]:
    folder, _, which = name.rpartition("@")
    return folder, f"@{which}"


def _begun(file: Path) -> list[str]:
    """The folders of a sweep's runs that have a checkpoint."""
    record = read_record(read_sweep(file))
    runs = [] if record is None else [runs_folder() / one.run for one in record.elements]
    there = [str(run) for run in runs if _has_weights(run)]
    if not there:
        raise ConfigError(f"sweep = {str(file)!r}: no run of it has a checkpoint yet")
    return there


def _has_weights(run: Path) -> bool:
    return any((run / name).is_dir() and any((run / name).iterdir()) for name in _SHELVES)


_SHELVES: Sequence[str] = (CHECKPOINTS, TRAJECTORY)
