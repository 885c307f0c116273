"""Tables and figure of `token_regularisers`, and the rules by which they compare.

These rules were fixed before the first run:

* A family is a shape, a sign and an estimator, with or without a controller. Of each family, the
  strength (beta0, or the controller's target) with the highest mean gold score in the stage
  `choose` is its chosen one. Families have three strengths, those with a controller two; further
  constants are for the front alone.
* At equal divergence: of every seed by itself, the constants of the same stage, seed and estimator
  (controllers and shapes: of k3 too) are points (KL, value), joined by straight lines in log KL. A
  setting's difference is its value minus the line's at its own KL; None outside the line's ends.
* An interval is mean ± t · s / √n over seeds, 95 %. A difference counts where all five seeds have
  one, and its interval leaves out 0 in `report` and in `second`, on the same side.
"""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

from adrpo_scale.core.markdown import table
from benchmarks.cells import interval
from benchmarks.token_cells import SEEDS, SETTINGS, Setting

METRICS = ("reward", "gold", "other", "kl", "entropy")
TITLES = {
    "choose": "Choosing: the demo's reward model, seeds 0 to 4, prompts A",
    "report": "Report: the demo's reward model, seeds 5 to 9, prompts B",
    "second": "Report on a second reward model: seeds 5 to 9, prompts B",
}

Values = dict[str, float]  # of a run, by metric
Runs = dict[tuple[str, str, int], Values]  # by stage, setting's name and seed


def read(to: Path) -> list[dict[str, Any]]:
    """The documents of finished runs. ValueError where parts used different reward models: they
    were built on different machines, and one front would have points of both."""
    paths = sorted((to / "cells").glob("*.json"))
    found = [json.loads(path.read_text()) for path in paths]
    digests = sorted({document["second_reward_model"] for document in found})
    if len(digests) > 1:
        raise ValueError(
            f"{to}: runs with {len(digests)} second reward models ({', '.join(digests)}); run all "
            "parts with the same folder reward_model_2"
        )
    return found


def runs_of(documents: Iterable[Mapping[str, Any]]) -> Runs:
    """Means over a run's evaluations."""
    found: Runs = {}
    for document in documents:
        cell, measured = document["cell"], list(document["measured"].values())
        name = cell["name"].split(".", 1)[1].rpartition(".")[0]
        key = (cell["stage"], name, cell["seed"])
        found[key] = {m: statistics.fmean(values[m] for values in measured) for m in METRICS}
    return found


def on_front(points: Sequence[tuple[float, float]], kl: float) -> float | None:
    """The value at `kl` of straight lines in log KL through the points; None outside of them."""
    known = sorted(points)
    for (low, one), (high, two) in pairwise(known):
        if low <= kl <= high:
            share = math.log(kl / low) / math.log(high / low) if high > low else 0.5
            return one + share * (two - one)
    return None


def differences(runs: Runs, stage: str, setting: Setting, metric: str) -> list[float]:
    """By seed: the setting's value minus that of constants at its KL."""
    constants = [s for s in SETTINGS if s.family == f"constant-{setting.estimator}"]
    found = []
    for seed in SEEDS[stage]:
        mine = runs.get((stage, setting.name, seed))
        front = [runs.get((stage, other.name, seed)) for other in constants]
        points = [(values["kl"], values[metric]) for values in front if values is not None]
        value = on_front(points, mine["kl"]) if mine is not None else None
        if mine is not None and value is not None:
            found.append(mine[metric] - value)
    return found


def values_of(runs: Runs, stage: str, setting: Setting, metric: str) -> list[float]:
    found = [runs.get((stage, setting.name, seed)) for seed in SEEDS[stage]]
    return [values[metric] for values in found if values is not None]


def against(runs: Runs, stage: str, setting: Setting, other: Setting, metric: str) -> list[float]:
    """By seed: the setting's value minus the other setting's."""
    pairs = [
        (runs.get((stage, setting.name, seed)), runs.get((stage, other.name, seed)))
        for seed in SEEDS[stage]
    ]
    return [a[metric] - b[metric] for a, b in pairs if a is not None and b is not None]


def families() -> dict[str, list[Setting]]:
    """The settings that each family is chosen from."""
    found: dict[str, list[Setting]] = {}
    for setting in SETTINGS:
        if setting.is_choice:
            found.setdefault(setting.family, []).append(setting)
    return found


def chosen(runs: Runs) -> dict[str, Setting]:
    """By family, of those that have runs in `choose`."""
    found = {}
    for family, settings in families().items():
        golds = {s: values_of(runs, "choose", s, "gold") for s in settings}
        known = {s: statistics.fmean(values) for s, values in golds.items() if values}
        if known:
            found[family] = max(known, key=lambda s: known[s])
    return found


def shown(values: Sequence[float], digits: int = 3) -> str:
    if not values:
        return ""
    mean, half = interval(values)
    return f"{mean:.{digits}f} ± {half:.{digits}f}" if len(values) > 1 else f"{mean:.{digits}f}"


def difference(values: Sequence[float], seeds: int = 5) -> str:
    """With the sign, in bold where the interval leaves out 0, and with the number of seeds where
    some lie outside the front."""
    if not values:
        return "outside"
    mean, half = interval(values)
    text = f"{mean:+.3f} ± {half:.3f}" if len(values) > 1 else f"{mean:+.3f}"
    text = f"**{text}**" if len(values) > 1 and abs(mean) > half else text
    return text if len(values) == seeds else f"{text} ({len(values)} seeds)"


def label(setting: Setting) -> str:
    words = setting.family.rsplit("-", 1)[0].replace("-controller", " with controller")
    estimator = "" if setting.estimator == "k3" else f", {setting.estimator}"
    unit = "beta0" if setting.target is None else "target"
    return f"{words.replace('-', ', ')}{estimator}; {unit} {setting.strength:g}"


def stage_table(runs: Runs, stage: str, settings: Sequence[Setting], best: Setting | None) -> str:
    """A line per setting. best: the chosen constant of k3."""
    heads = ["", "reward", "gold", "other model", "KL"]
    heads += [f"{metric} − constant's at equal KL" for metric in ("gold", "reward")]
    lines = [[*heads, "gold − chosen constant's"] if best else heads]
    base = runs.get((stage, "base", SEEDS[stage][0]))
    if base is not None:
        lines.append(["base", *(f"{base[m]:.3f}" for m in METRICS[:4]), *[""] * len(lines[0][5:])])
    for setting in settings:
        if not values_of(runs, stage, setting, "kl"):
            continue
        line = [label(setting), *(shown(values_of(runs, stage, setting, m)) for m in METRICS[:4])]
        is_front = setting.is_constant
        for metric in ("gold", "reward"):
            found = differences(runs, stage, setting, metric)
            line.append("" if is_front else difference(found))
        if best:
            found = against(runs, stage, setting, best, "gold")
            line.append("" if setting == best else difference(found))
        lines.append(line)
    return table(lines)


def report(runs: Runs) -> str:
    """The chosen settings in every stage, then all settings."""
    some = list(chosen(runs).values())
    best = next((s for s in some if s.family == "constant-k3"), None)
    parts = []
    for stage in ("report", "second", "choose"):
        parts += [f"## {TITLES[stage]}: chosen settings", stage_table(runs, stage, some, best)]
    for stage in SEEDS:
        parts += [f"## {TITLES[stage]}: all", stage_table(runs, stage, SETTINGS, None)]
    return "\n\n".join(parts)


def write_all(to: Path) -> str:
    """Writes tables.md, all.json and front.png into the folder; returns the tables."""
    from benchmarks.token_figure import draw

    documents = read(to)
    runs = runs_of(documents)
    text = report(runs)
    seconds = [document["cpu_seconds"] for document in documents if document["training"]]
    if seconds:
        text += f"\n\n{len(documents)} runs, {statistics.fmean(seconds):.1f} CPU-seconds each, "
        text += f"{sum(seconds):.0f} together."
    (to / "tables.md").write_text(text + "\n")
    lines = ",\n".join(json.dumps(document) for document in documents)
    (to / "all.json").write_text(f"[\n{lines}\n]\n")
    draw(runs, to / "front.png")
    return text
