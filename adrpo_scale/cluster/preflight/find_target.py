"""Finds the target of a preflight that a file stands for."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from adrpo_scale.cluster.preflight.asked import AskedTarget
from adrpo_scale.cluster.preflight.mmau import mmau_target
from adrpo_scale.cluster.preflight.run_targets import RunTarget, SweepTarget
from adrpo_scale.cluster.preflight.target import Target
from adrpo_scale.core.errors import ConfigError
from adrpo_scale.core.toml_text import read_toml
from adrpo_scale.evaluation.file import load_evaluation, results_folder
from adrpo_scale.evaluation.mmau.base import MmauConfig
from adrpo_scale.run.file_kinds import kind_of
from adrpo_scale.run.folder import default_folder
from adrpo_scale.run.load import load_config
from adrpo_scale.run.sweep import read_sweep
from adrpo_scale.run.sweep_record import runs_folder
from adrpo_scale.run.sweep_runs import checked


def find_target(
    file: Path, overrides: Sequence[str], folder: Path | None, model: str | None
) -> Target:
    """The target that a file stands for. folder: of `--run-dir`. Raises ConfigError."""
    kind = kind_of(read_toml(file, "see configs/ for the shipped ones"))
    if kind == "evaluation":
        return _of_evaluation(file, overrides, folder, model)
    if model is not None:
        raise ConfigError(f"--model {model} goes with an evaluation, and {file} is none")
    if kind != "sweep":
        loaded = load_config(file, overrides)
        run = folder or default_folder(loaded.name, loaded.config.digest())
        return RunTarget(loaded.config, run.absolute())
    if overrides or folder is not None:
        option = f"--set {overrides[0]}" if overrides else f"--run-dir {folder}"
        raise ConfigError(f"{option} with the sweep {file}: the file alone says what its runs are")
    return SweepTarget(checked(read_sweep(file)), runs_folder().absolute())


def _of_evaluation(
    file: Path, overrides: Sequence[str], folder: Path | None, model: str | None
) -> Target:
    config = load_evaluation(file, overrides)
    if isinstance(config, MmauConfig):
        return mmau_target(config, folder, model)
    if model is not None:
        raise ConfigError(f"--model {model}: the models of {file} are its [models.NAME]")
    return AskedTarget(config, (folder or results_folder(config, file)).absolute())
