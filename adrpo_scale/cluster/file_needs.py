"""What the files of runs, sweeps and evaluations read from the hub, for `prefetch`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from adrpo_scale.core.errors import ConfigError
from adrpo_scale.evaluation.file import load_evaluation
from adrpo_scale.evaluation.needs import needs_so_far
from adrpo_scale.hub.needs import HubNeed
from adrpo_scale.run.config import RunConfig
from adrpo_scale.run.file_kinds import kind_of_file, require_no_options
from adrpo_scale.run.load import load_config
from adrpo_scale.run.sweep import read_sweep
from adrpo_scale.run.sweep_runs import runs_of


@dataclass(frozen=True)
class FileNeeds:
    """quota_command: the first that a config states. notes: a line for each model of an evaluation
    that is not known yet."""

    needs: list[HubNeed]
    quota_command: str | None
    notes: list[str]


def needs_of_files(
    files: Sequence[Path], overrides: Sequence[str], model: str | None = None
) -> FileNeeds:
    """What all files read together. overrides: "section.key=value", of runs and evaluations. model:
    of `--model`, of an evaluation of MMAU. Raises ConfigError."""
    needs: list[HubNeed] = []
    notes: list[str] = []
    configs: list[RunConfig] = []
    asks_model = False
    for file in files:
        kind = kind_of_file(file)
        if kind == "evaluation":
            found = needs_so_far(load_evaluation(file, overrides), model)
            needs, notes, asks_model = [*needs, *found.needs], [*notes, *found.notes], True
        elif kind == "sweep":
            require_no_options("sweep", file, {"--set": list(overrides)})
            configs += [run.loaded.config for run in runs_of(read_sweep(file))]
        else:
            configs.append(load_config(file, overrides).config)
    if model is not None and not asks_model:
        raise ConfigError(f"--model {model} goes with an evaluation, and no file is one")
    needs += [need for config in configs for need in config.needs_from_hub()]
    quotas = (config.checkpoint.quota_command for config in configs)
    return FileNeeds(needs, next((command for command in quotas if command), None), notes)
