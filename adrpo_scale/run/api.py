"""Runs from Python: train one as the command does, and read what a run left."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from adrpo_scale.checkpoint.shelf import CHECKPOINTS, TRAJECTORY, committed
from adrpo_scale.core.errors import RunFolderError
from adrpo_scale.run import train as running
from adrpo_scale.run.config import RunConfig
from adrpo_scale.run.folder import rows_of
from adrpo_scale.run.load import LoadedConfig, load_config, parse_config
from adrpo_scale.run.starts import records


@dataclass(frozen=True)
class Run:
    """The folder of a run, read anew at every call: the run may still be going on."""

    folder: Path

    @property
    def name(self) -> str:
        return self.folder.name

    @property
    def config(self) -> RunConfig:
        """The settings of the run's newest start."""
        return parse_config(json.loads((self.folder / "config.json").read_text()))

    def metrics(self) -> list[dict[str, Any]]:
        """A row an iteration, in order: `pandas.DataFrame(run.metrics())`."""
        return rows_of(self.folder / "metrics.jsonl")

    def evaluations(self) -> list[dict[str, Any]]:
        """A row a measured value: run, algorithm, seed, iteration, split, metric, value, n."""
        return rows_of(self.folder / "eval.jsonl")

    def checkpoints(self) -> dict[int, Path]:
        """Folder by iteration of every committed checkpoint, oldest first."""
        found = committed(self.folder / TRAJECTORY) | committed(self.folder / CHECKPOINTS)
        return dict(sorted(found.items()))

    def starts(self) -> list[dict[str, Any]]:
        """The record of every start: code, versions, hardware, and how it ended."""
        return [json.loads(path.read_text()) for path in records(self.folder)]


def open_run(folder: str | Path) -> Run:
    """RunFolderError where the folder is not that of a run."""
    run = Run(Path(folder))
    if not (run.folder / "config.json").is_file():
        raise RunFolderError(
            f"{folder} is not the folder of a run: it has no config.json, which `train` writes "
            "when the model is loaded; give the folder that `train` printed"
        )
    return run


def train(
    config: str | Path | LoadedConfig,
    *,
    run_dir: str | Path | None = None,
    overrides: Sequence[str] = (),
    fresh: bool = False,
    allow_change: Sequence[str] = (),
) -> Run:
    """Trains as the command `train` does: in this process or, under torchrun or srun, in all of
    them, resuming from the newest checkpoint of the run's folder.

    config: a TOML file, or one that `load_config` has read. overrides: "section.key=value", of a
    file. The rest are the options of the command. Raises StopRequested after a signal, with
    everything saved that could be, LimitReached at a limit, and ConfigError before anything is
    loaded.
    """
    if isinstance(config, LoadedConfig):
        if overrides:
            raise TypeError("overrides of a loaded config: give them to load_config instead")
        loaded = config
    else:
        loaded = load_config(Path(config), overrides)
    folder = Path(run_dir) if run_dir is not None else None
    return Run(running.train(loaded, running.TrainOptions(folder, fresh, allow_change)))
