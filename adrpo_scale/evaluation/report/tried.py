"""Runs that were tried and are not shown: the others beside the runs of a report, trials too.

A number that was chosen among several is not what one run gives; who reads it must know the others.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from adrpo_scale.core.json_files import read_object
from adrpo_scale.core.run_rows import METRICS, metric_rows
from adrpo_scale.core.settings import leaves
from adrpo_scale.evaluation.report.costs import cost_of
from adrpo_scale.evaluation.report.evaluated import Evaluated
from adrpo_scale.evaluation.report.given import Given
from adrpo_scale.evaluation.report.homes import without_home
from adrpo_scale.evaluation.report.origins import origin_of, run_folder
from adrpo_scale.run.past_starts import past_starts

MOST = 1000  # folders that are looked into
_NAMED = 4  # settings of a run that are named
_BESIDE = ("seed", "iterations", "logging.", "checkpoint.", "limits.", "evaluation.")


def with_tried(given: Given) -> Given:
    """What was given, with the runs that its rows are of, and those that lie beside these."""
    runs = tuple(replace(run, origin=run.origin or origin_of(run)) for run in given.runs)
    return replace(given, runs=runs, tried=(*given.tried, *tried_beside(runs)))


def tried_beside(runs: Sequence[Evaluated]) -> list[dict[str, Any]]:
    """What lies beside the runs in their folders, in order: name, settings that differ from the
    nearest run that is shown, iterations, the last start's end, and hours."""
    here = [run for run in runs if run.given is None]
    own = {folder: run for run in here if (folder := run_folder(run)) is not None}
    found = []
    for parent in dict.fromkeys(folder.parent for folder in own):
        for folder in sorted(parent.iterdir())[:MOST]:
            if folder.resolve() not in own and _is_run(folder):
                found.append(_facts(folder, list(own.values())))
    return found


def _is_run(folder: Path) -> bool:
    return (folder / "lives").is_dir() or any(
        (folder / name).is_file() for name in ("config.json", "trial.json")
    )


def _facts(folder: Path, shown: Sequence[Evaluated]) -> dict[str, Any]:
    is_trial = (folder / "trial.json").is_file()
    config = without_home(read_object(folder / "config.json") or {})
    rows, starts, cost = metric_rows(folder / METRICS), [*past_starts(folder)], cost_of(folder)
    settings = dict(leaves(config))
    ended = "" if not starts else _ending(starts[-1].outcome)
    return {
        "name": folder.name,
        "kind": "trial" if is_trial else "run",
        "algorithm": settings.get("algorithm.name"),
        "seed": settings.get("seed"),
        "differs": _differing(settings, shown),
        "iterations": rows[-1]["iteration"] if rows else 0,
        "of": settings.get("iterations"),
        "ended": "a trial" if is_trial else ended or "no start is recorded",
        "hours": cost.total,
        "on_gpus": cost.on_gpus > 0,
    }


def _ending(outcome: str | None) -> str:
    text = without_home((outcome or "no end is recorded").strip().partition("\n")[0])
    return text if len(text) <= 120 else f"{text[:119]}…"


def _differing(settings: Mapping[str, Any], shown: Sequence[Evaluated]) -> str:
    """The settings in which a run differs from the shown run that has the most in common."""
    if not settings or not shown:
        return ""
    each = [
        {
            key: value
            for key, value in settings.items()
            if not key.startswith(_BESIDE) and run.settings.get(key, value) != value
        }
        for run in shown
    ]
    nearest = min(each, key=len)
    texts = [f"{key} = {value}" for key, value in nearest.items()]
    more = f", and {len(texts) - _NAMED} more" if len(texts) > _NAMED else ""
    return ", ".join(texts[:_NAMED]) + more
