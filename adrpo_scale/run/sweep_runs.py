"""A sweep's elements as runs: their configs, checked, and the folders that they train in."""

from __future__ import annotations

import json
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from adrpo_scale.core.errors import ConfigError
from adrpo_scale.core.python_warnings import SettingsWarning
from adrpo_scale.run.load import LoadedConfig, load_config
from adrpo_scale.run.sweep import Element, Sweep, run_name
from adrpo_scale.run.sweep_record import (
    Planned,
    Recorded,
    keep_record,
    read_record,
    refuse_other_runs,
    runs_folder,
)

_LISTED = 4  # faults in an error


@dataclass(frozen=True)
class SweepRun:
    """An element with its config and its run folder."""

    element: Element
    loaded: LoadedConfig
    folder: Path


def runs_of(sweep: Sweep) -> list[SweepRun]:
    """Every element's run. Raises ConfigError for settings that a config refuses, with the element,
    and for two elements that are one run."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        found: list[SweepRun] = []
        faults: dict[str, str] = {}
        for element in sweep.elements:
            try:
                found.append(run_of(sweep, element))
            except ConfigError as error:
                faults.setdefault(str(error).partition(": ")[2], str(error))
    if faults:
        more = [f"and {len(faults) - _LISTED} more"] if len(faults) > _LISTED else []
        raise ConfigError("\n".join([*list(faults.values())[:_LISTED], *more]))
    for text in dict.fromkeys(str(one.message) for one in caught):
        warnings.warn(text, category=SettingsWarning, stacklevel=2)
    _refuse_equal(sweep, found)
    return found


def run_of(sweep: Sweep, element: Element) -> SweepRun:
    """One element's run. Raises ConfigError."""
    try:
        loaded = load_config(Path(element.base), element.overrides)
    except ConfigError as error:
        raise ConfigError(f"{sweep.file}, element {element}: {error}") from error
    folder = runs_folder() / run_name(sweep, element, loaded.config.digest())
    return SweepRun(element, loaded, folder)


def _refuse_equal(sweep: Sweep, runs: Sequence[SweepRun]) -> None:
    names: dict[str, SweepRun] = {}
    configs: dict[str, SweepRun] = {}
    for run in runs:
        config = json.dumps(run.loaded.config.resolved(), sort_keys=True)
        same = names.setdefault(run.folder.name, run)
        same = same if same is not run else configs.setdefault(config, run)
        if same is not run:
            raise ConfigError(
                f"{sweep.file}: elements {same.element} and {run.element} are one run, "
                f"{run.folder.name}; let their settings differ"
            )


def recorded(runs: Sequence[SweepRun]) -> Recorded:
    """What is kept of a sweep's runs."""
    elements = [
        Planned(
            run.element.base,
            run.element.settings,
            run.folder.name,
            run.loaded.config.iterations,
        )
        for run in runs
    ]
    first: dict[str, SweepRun] = {}
    for run in runs:
        first.setdefault(run.element.base, run)
    return Recorded(elements, {base: run.loaded.config.identity() for base, run in first.items()})


def begun(sweep: Sweep) -> list[SweepRun]:
    """Every element's run, with the record kept: from now on they are what they are. Raises
    ConfigError where the sweep has begun otherwise."""
    runs = runs_of(sweep)
    keep_record(sweep, recorded(runs))
    return runs


def checked(sweep: Sweep) -> list[SweepRun]:
    """As `begun`, and nothing is written."""
    there, runs = read_record(sweep), runs_of(sweep)
    if there is not None:
        refuse_other_runs(sweep, there, recorded(runs))
    return runs


def element_run(sweep: Sweep, number: int, is_main: bool) -> SweepRun:
    """The run of one element, for its start. is_main: whether this process is rank 0, which writes
    the record where there is none. Raises ConfigError as `begun`."""
    element = sweep.element(number)
    there = read_record(sweep)
    if there is None and is_main:
        return begun(sweep)[number]
    run = run_of(sweep, element)
    if there is not None and there.elements[number].run != run.folder.name:
        refuse_other_runs(sweep, there, recorded(runs_of(sweep)))
    return run
