"""A table of several runs: one line for runs that differ only in their seed.

A line is labelled by its algorithm, the number of its runs, and the settings that differ between
lines. Settings come from each run's `config.json`, with defaults for settings added since. Where it
names a component that cannot be imported here, they are taken from the file unchanged.
"""

from __future__ import annotations

import contextlib
import json
import re
import statistics
import warnings
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from adrpo_scale.core.errors import ConfigError
from adrpo_scale.core.settings import leaves
from adrpo_scale.run.folder import read_settings
from adrpo_scale.run.load import parse_config
from adrpo_scale.run.tables import COLUMNS, Row, after, before, read_rows

Settings = Mapping[str, Any]  # dotted path → value
_SECTION = re.compile(r"(algorithm|domain|engine|rewards\.\d+)\.")  # of a component
_ABSENT = object()


@dataclass(frozen=True)
class Evaluated:
    """A run with the rows of its `eval.jsonl`."""

    settings: Settings
    rows: Sequence[Row]


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


def read_run(folder: Path) -> Evaluated:
    """The run in a folder. RunFolderError without evaluations, or where config.json is not JSON."""
    rows = read_rows(folder)
    config = folder / "config.json"
    if not config.is_file():  # a benchmark, or eval.jsonl copied without its run
        first: Row = rows[0] if rows else {}
        return Evaluated({"algorithm.name": first.get("algorithm"), "run": first.get("run")}, rows)
    return Evaluated(_settings(read_settings(folder)), rows)


def _settings(document: Mapping[str, Any]) -> Settings:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the run has shown them
        # A user's component may not be importable here, and a setting may be refused by now.
        with contextlib.suppress(ConfigError):
            document = parse_config(document).resolved()
    return dict(leaves(document))


def comparison(runs: Sequence[Evaluated]) -> list[list[str]]:
    """The lines of a table: a header, the base model, then `after` as mean ± half the range over
    seeds, ordered by algorithm and then as the runs were given."""
    runs = [run for run in runs if run.rows]
    known = {(row["split"], row["metric"]) for run in runs for row in run.rows}
    columns = [column for column in COLUMNS if column in known]
    lines = [["", *(f"{metric} ({split})" for split, metric in columns)]]
    models = list(dict.fromkeys(run.settings.get("domain.model") for run in runs))
    for model in models:
        same = [run for run in runs if run.settings.get("domain.model") == model]
        values = [[before(run.rows, *column) for run in same] for column in columns]
        label = "base" if len(models) == 1 else f"base {model}"
        lines.append([label, *(_mean_range(each) for each in values)])
    groups = by_seed(runs)
    for label, group in zip(labels(groups), groups, strict=True):
        values = [[after(run.rows, *column) for run in group] for column in columns]
        lines.append([label, *(_mean_range(each) for each in values)])
    return lines


def by_seed(runs: Sequence[Evaluated]) -> list[list[Evaluated]]:
    """Groups of runs that differ only in their seed, by algorithm and then in the given order."""
    groups: dict[str, list[Evaluated]] = {}
    for run in runs:
        others = {path: value for path, value in run.settings.items() if path != "seed"}
        groups.setdefault(json.dumps(others, sort_keys=True), []).append(run)
    return sorted(groups.values(), key=lambda group: str(group[0].settings.get("algorithm.name")))


def labels(groups: Sequence[Sequence[Evaluated]]) -> list[str]:
    """One label per group: its algorithm, its size, and `key = value` of each setting that differs
    in another group.

    A component's own settings are compared only between groups with that component. A key is
    shortened to its last part where no other key of the labels has the same one.
    """
    lines = [group[0].settings for group in groups]
    found = [{path: line[path] for path in line if _differs(path, line, lines)} for line in lines]
    ends = {path: path.rpartition(".")[2] for differing in found for path in differing}
    uses = Counter(ends.values())
    short = {path: end if uses[end] == 1 else path for path, end in ends.items()}
    return [
        f"{line.get('algorithm.name')} ×{len(group)}"
        + "".join(f", {short[path]} = {_text(value)}" for path, value in differing.items())
        for group, line, differing in zip(groups, lines, found, strict=True)
    ]


def _differs(path: str, line: Settings, lines: Sequence[Settings]) -> bool:
    if path in ("seed", "algorithm.name"):
        return False
    tag = _tag(path)
    peers = [
        other
        for other in lines
        if ("run" in other) == ("run" in line) and (tag is None or other.get(tag) == line.get(tag))
    ]
    return any(other.get(path, _ABSENT) != line[path] for other in peers)


def _tag(path: str) -> str | None:
    """The path of the setting that names the component of `path`; None outside of components."""
    section = _SECTION.match(path)
    if section is None:
        return None
    tag = section[0] + ("kind" if section[0].startswith("rewards") else "name")
    return None if path == tag else tag


def _text(value: Any) -> str:
    return "–" if value is None else str(value).lower() if isinstance(value, bool) else str(value)


def _mean_range(values: Sequence[float | None]) -> str:
    numbers = [value for value in values if value is not None]
    if not numbers:
        return "–"
    mean, half = statistics.fmean(numbers), (max(numbers) - min(numbers)) / 2
    digits = 1 if abs(mean) >= 10 else 2
    return f"{mean:.{digits}f} ± {half:.{digits}f}" if half else f"{mean:.{digits}f}"
