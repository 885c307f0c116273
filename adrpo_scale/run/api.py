"""The folder of a run, read from Python."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from adrpo_scale.checkpoint.shelf import CHECKPOINTS, TRAJECTORY, committed
from adrpo_scale.core.errors import RunFolderError
from adrpo_scale.core.json_files import read_object
from adrpo_scale.core.run_rows import EVALUATIONS, METRICS, evaluation_rows, metric_rows
from adrpo_scale.run.config import RunConfig
from adrpo_scale.run.folder import read_settings
from adrpo_scale.run.load import parse_config
from adrpo_scale.run.starts import records


@dataclass(frozen=True)
class Run:
    """The folder of a run. Every call reads it again, because the run may still be training."""

    folder: Path

    @property
    def name(self) -> str:
        return self.folder.name

    @property
    def config(self) -> RunConfig:
        """The settings of the run's newest start. RunFolderError where they cannot be read."""
        return parse_config(read_settings(self.folder))

    def metrics(self) -> list[dict[str, Any]]:
        """One row per iteration, in order: `pandas.DataFrame(run.metrics())`."""
        return metric_rows(self.folder / METRICS)

    def evaluations(self) -> list[dict[str, Any]]:
        """One row per measured value: run, algorithm, seed, iteration, split, metric, value, n."""
        return evaluation_rows(self.folder / EVALUATIONS)

    def checkpoints(self) -> dict[int, Path]:
        """Folders of all committed checkpoints by iteration, oldest first."""
        found = committed(self.folder / TRAJECTORY) | committed(self.folder / CHECKPOINTS)
        return dict(sorted(found.items()))

    def starts(self) -> list[dict[str, Any]]:
        """The records of all starts that can be read: code, versions, hardware and outcome."""
        return [found for path in records(self.folder) if (found := read_object(path))]


def open_run(folder: str | Path) -> Run:
    """The run in a folder. RunFolderError where the folder is not that of a run."""
    run = Run(Path(folder))
    if not (run.folder / "config.json").is_file():
        raise RunFolderError(
            f"{folder} is not the folder of a run: it has no config.json, which `train` writes "
            "when the model is loaded; give the folder that `train` printed"
        )
    return run
