"""Runs as `report` reads them: settings, evaluated numbers, and the numbers of each prompt.

A folder that `evaluate` wrote inside a run counts as that run, judged on the benchmark: it has the
run's settings, and a question is a prompt. Settings come from `config.json`, with defaults for
settings added since. Where it names a component that cannot be imported here, they are taken from
the file unchanged.
"""

from __future__ import annotations

import contextlib
import json
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from adrpo_scale.checkpoint.named import BEST, EVALUATED, EVERY, LAST, RAW, best_iteration, named
from adrpo_scale.core.errors import ConfigError, RunFolderError
from adrpo_scale.core.json_files import read_lines, read_object
from adrpo_scale.core.run_rows import PROMPTS, prompt_rows
from adrpo_scale.core.settings import leaves
from adrpo_scale.evaluation.report.homes import without_home
from adrpo_scale.evaluation.row_folder import (
    IDENTITY,
    is_evaluation,
    is_row,
    row_folders,
)
from adrpo_scale.run.folder import read_settings
from adrpo_scale.run.load import parse_config
from adrpo_scale.run.tables import Row, read_rows

Settings = Mapping[str, Any]  # dotted path → value
QUESTIONS = "questions.jsonl"  # of MMAU's folder
ROW, MODEL = "row", "model"  # settings of an evaluation's row: its name, and how it was sampled
MEASURES = ("strict", "strict_untagged", "benchmark")
TASKS = ("sound", "music", "speech")
_ASKED = ("benchmark", "variant", "max_new_tokens", "domain", "iteration", "set")


@dataclass(frozen=True)
class Evaluated:
    """A run with its evaluations. rows: of `eval.jsonl`, and by_prompt: of `eval_prompts.jsonl`,
    those of `weights` and of iteration 0. which: an iteration, LAST, or None for the last few.
    is_benchmark: from a folder that `evaluate` wrote. given: the folder's path as tables show it,
    where that is another one: on the machine that made a bundle. origin: the run's own folder,
    where this is a row of an evaluation and somebody has looked."""

    settings: Settings
    rows: Sequence[Row]
    folder: Path = Path()
    by_prompt: Sequence[Row] = ()
    weights: str = RAW
    which: int | str | None = None
    is_benchmark: bool = False
    given: str | None = None
    origin: Path | None = None

    @property
    def path(self) -> str:
        """The folder's path, for tables."""
        return without_home(str(self.folder)) if self.given is None else self.given

    @property
    def seed(self) -> Any:
        return self.settings.get("seed")

    @property
    def seed_text(self) -> str:
        """The seed as JSON: a damaged config.json may hold anything."""
        return json.dumps(self.seed)

    @property
    def is_trained(self) -> bool:
        """False for a published model, which the benchmark alone has."""
        return not self.is_benchmark or "seed" in self.settings


def unevaluated(folders: Sequence[Path]) -> list[Path]:
    """The folders of trials, and of runs that ended before their first evaluation, among others:
    `runs/mine-*` names those too. [] where there is nothing else, so that reading them says what
    is missing."""
    found = [
        folder
        for folder in folders
        if ((folder / "trial.json").is_file() or (folder / "lives").is_dir())
        and not (folder / "eval.jsonl").is_file()
    ]
    return found if len(found) < len(folders) else []


def read_runs(name: str, weights: str = EVALUATED) -> list[Evaluated]:
    """What RUN, RUN@120, RUN@last, RUN@best or RUN@* names: one run, or of @* one for each of its
    evaluations after training began; all rows of an evaluation's folder. weights: a word of
    `named.WEIGHTS`. Raises RunFolderError for a run without such an evaluation."""
    found = named(name)
    if is_evaluation(found.folder):
        return [read_run(folder, weights) for folder in row_folders(found.folder)]
    run, which = read_run(found.folder, weights), found.which
    there = sorted({row["iteration"] for row in run.rows if row["iteration"] > 0})
    if which == BEST:
        which = best_iteration(found.folder)
    if which in (None, LAST) or run.is_benchmark:
        return [replace(run, which=which if which == LAST else None)]
    chosen = there if which == EVERY else [which for _ in [0] if which in there]
    if not chosen:
        known = ", ".join(map(str, there)) or "none"
        raise RunFolderError(f"{name} has no such evaluation; evaluated iterations: {known}")
    return [replace(run, which=iteration) for iteration in chosen]


def read_run(folder: Path, weights: str = EVALUATED) -> Evaluated:
    """The run in a folder. RunFolderError without evaluations of these weights, or where
    config.json is not JSON."""
    rows = read_rows(folder)
    if is_row(folder):
        return _row(folder, rows)
    if (folder / IDENTITY).is_file() and (folder / QUESTIONS).is_file():
        return _benchmark(folder, rows)
    config = folder / "config.json"
    if not config.is_file():  # eval.jsonl copied without its run
        first: Row = rows[0] if rows else {}
        named_by = {"algorithm.name": first.get("algorithm"), "run": first.get("run")}
        return Evaluated(named_by, rows, folder)
    settings = _settings(read_settings(folder))
    measured = str(settings.get("evaluation.weights", RAW))  # rows of before do not say it
    of = {id(row): str(row.get("weights", measured)) for row in rows}
    if weights == EVALUATED:
        weights = of[id(rows[-1])] if rows else measured
    kept = [row for row in rows if row["iteration"] == 0 or of[id(row)] == weights]
    if any(row["iteration"] > 0 for row in rows) and not any(row["iteration"] > 0 for row in kept):
        raise RunFolderError(
            f"--weights {weights}, but {folder} has evaluated "
            f"{' and '.join(sorted(set(of.values())))} weights alone"
        )
    by_prompt = [
        row
        for row in prompt_rows(folder / PROMPTS)
        if row["iteration"] == 0 or row["weights"] == weights
    ]
    return Evaluated(settings, kept, folder, by_prompt, weights)


def _settings(document: Mapping[str, Any]) -> Settings:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the run has shown them
        # A user's component may not be importable here, and a setting may be refused by now.
        with contextlib.suppress(ConfigError):
            document = parse_config(document).resolved()
    return dict(leaves(without_home(document)))


def _row(folder: Path, rows: Sequence[Row]) -> Evaluated:
    """A judged model: the settings of its run, if it is one, and how its samples were made."""
    identity = without_home(read_object(folder / IDENTITY) or {})
    settings: Settings = {"algorithm.name": identity.get("algorithm"), "run": identity.get("row")}
    if (folder / "config.json").is_file():
        settings = _settings(read_settings(folder))
    stated = identity.get("model")
    model = dict(stated) if isinstance(stated, Mapping) else {}
    weights = str(model.get("weights", RAW))
    of_run = ("run", "path", "sha256")  # runs of seeds differ in their names and weights
    asked = dict(leaves({MODEL: {k: v for k, v in model.items() if k not in of_run}}))
    key = str(identity.get("row", folder.name)).partition(",")[0]
    by_prompt = prompt_rows(folder / PROMPTS)
    return Evaluated({**settings, **asked, ROW: key}, rows, folder, by_prompt, weights, None, True)


def _benchmark(folder: Path, rows: Sequence[Row]) -> Evaluated:
    identity = without_home(read_object(folder / IDENTITY) or {})
    asked = {f"mmau.{key}": identity[key] for key in _ASKED if key in identity}
    run = folder.resolve().parent
    if (run / "config.json").is_file() and identity.get("run") == run.name:
        settings = _settings(read_settings(run))
    else:
        settings = {"algorithm.name": identity.get("algorithm"), "run": identity.get("run")}
        if identity.get("seed") is not None:  # its folder was moved out of its run
            settings |= {"seed": identity["seed"]}
    iteration = rows[0]["iteration"] if rows else 0
    weights = str(identity.get("set", RAW))
    by_prompt = _questions(folder, iteration, weights)
    return Evaluated({**settings, **asked}, rows, folder, by_prompt, weights, None, True)


def _questions(folder: Path, iteration: int, weights: str) -> list[Row]:
    """The judged questions as rows of `eval_prompts.jsonl`, one a task and one of all."""
    lines = [line for line in read_lines(folder / QUESTIONS) if isinstance(line.get("id"), str)]
    parts = {task: [line for line in lines if line.get("task") == task] for task in TASKS}
    found: list[Row] = []
    for split, part in {**parts, "total": lines}.items():
        columns = {name: [_right(line.get(name)) for line in part] for name in MEASURES}
        found.append(
            {
                "iteration": iteration,
                "split": f"mmau:{split}",
                "weights": weights,
                "prompts": [line["id"] for line in part],
                "metrics": {name: {"mean": values} for name, values in columns.items()},
            }
        )
    return found


def _right(value: Any) -> float | None:
    return float(value) if isinstance(value, bool) else None
