"""The command `status`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from adrpo_scale.cli.options import JsonOption, SweepOption
from adrpo_scale.core.errors import ConfigError


def status(
    runs: Annotated[list[Path], typer.Argument(help="Folders of runs and evaluations.")] = [],  # noqa: B006
    sweep: SweepOption = None,
    as_json: JsonOption = False,
) -> None:
    """Show the state of runs: iteration, reward, time left, last checkpoint.

    Further: the work since that checkpoint, which a kill would undo; the starts; repeated work;
    GPU-hours; and the job's entry in Slurm's queue. Status only reads the run folders. The exit
    code is 2 where a folder is not that of a run. A sweep is one line: how many of its elements are
    done, run, or have ended, and why. Of an evaluation, or its file, status shows rows, samples and
    scores.

    Example:
        adrpo-scale status runs/*
        adrpo-scale status --sweep configs/sweeps/clip_range.toml
    """
    from adrpo_scale.cluster.status import view

    if sweep is not None:
        if runs:
            raise ConfigError("status RUNS with --sweep: give one of them")
        _show_sweep(sweep, as_json)
        return
    if not runs:
        raise ConfigError("status without a run: name folders of runs, or --sweep FILE")
    code = view.show([_folder(run) for run in runs], as_json)
    if code:
        raise typer.Exit(code)


def _folder(given: Path) -> Path:
    """A folder as it is; of an evaluation's file, the folder of its results."""
    if not given.is_file():
        return given
    import os

    from adrpo_scale.core.paths import usual_path
    from adrpo_scale.core.toml_text import read_toml
    from adrpo_scale.run.file_kinds import kind_of

    data = read_toml(given, "name folders of runs")
    kind, to = kind_of(data), data.get("to")
    if kind == "sweep":
        raise ConfigError(f"{given} is a sweep: `adrpo-scale status --sweep {given}` shows it")
    if kind != "evaluation":
        raise ConfigError(f"{given} is a file; name the folder of a run, e.g. runs/<config>-<hash>")
    if isinstance(to, str):
        return usual_path(to)
    return Path(os.environ.get("ADRPO_RUNS", "runs")) / "evaluations" / given.stem


def _show_sweep(file: Path, as_json: bool) -> None:
    from adrpo_scale.cluster.sweep import view
    from adrpo_scale.cluster.sweep.state import states_of
    from adrpo_scale.core.printable import one_line
    from adrpo_scale.run.sweep import read_sweep

    states = states_of(read_sweep(file))
    print(json.dumps(view.facts(states), indent=2) if as_json else one_line(view.line(states)))
