"""Training from Python, as the command `train` does it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from adrpo_scale.cluster.plan.choice import choose_apart
from adrpo_scale.run import train as running
from adrpo_scale.run.api import Run
from adrpo_scale.run.load import LoadedConfig, load_config


def train(
    config: str | Path | LoadedConfig,
    *,
    run_dir: str | Path | None = None,
    overrides: Sequence[str] = (),
    fresh: bool = False,
    allow_change: Sequence[str] = (),
) -> Run:
    """Trains a run as the command `train` does, from the newest checkpoint of its folder.

    Under torchrun or srun, every process calls it. config: a TOML file, or the result of
    `load_config`. overrides: "section.key=value", for a file only. The other arguments are the
    options of the command. Raises ConfigError before anything is loaded, LimitReached at a limit,
    and StopRequested after a signal, with everything saved that could be.
    """
    if isinstance(config, LoadedConfig):
        if overrides:
            raise TypeError("overrides with a loaded config: give them to load_config instead")
        loaded = config
    else:
        loaded = load_config(Path(config), overrides)
    folder = Path(run_dir) if run_dir is not None else None
    options = running.TrainOptions(folder, fresh, allow_change, choose_apart)
    return Run(running.train(loaded, options))
