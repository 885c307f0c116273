"""ADRPO against GRPO with fixed betas on the two text demos: the tables of docs/results/text.md.

    python -m benchmarks.text_betas arithmetic [--runs runs/betas] [--jobs 1]
    python -m benchmarks.text_betas reward_model [--set iterations=120 ...]

arithmetic: `configs/demo/text_*.toml`, GRPO with beta0 in {0, 0.04, 0.08} and ADRPO at 0.04.
reward_model: `configs/demo/text_rm_*.toml` over a sweep of beta0 for both; ADRPO's clip range is
its beta0. Prints a line per setting and draws reward and gold score against KL.

Values are of held-out prompts, means of the last three evaluations, averaged over three seeds, ±
half their range. Finished runs in the folder are not repeated.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from adrpo_scale.core.markdown import table
from adrpo_scale.run import tables

SEEDS = (0, 1, 2)
SWEEP = (0.04, 0.08, 0.1, 0.2, 0.4, 0.8)


@dataclass(frozen=True)
class Setting:
    """One line of a table. ADRPO's advantages are clipped to ± beta0."""

    algorithm: str
    beta0: float

    @property
    def name(self) -> str:
        return f"{self.algorithm}-{self.beta0:g}"

    @property
    def overrides(self) -> list[str]:
        settings = [f"algorithm.beta0={self.beta0:.6f}"]
        if self.algorithm == "adrpo":
            settings += [f"algorithm.advantage_min={-self.beta0:.6f}"]
            settings += [f"algorithm.advantage_max={self.beta0:.6f}"]
        return settings


TASKS = {
    "arithmetic": (
        "text",
        [
            Setting("grpo", 0.0),
            Setting("grpo", 0.04),
            Setting("grpo", 0.08),
            Setting("adrpo", 0.04),
        ],
        ("reward", "accuracy_greedy", "accuracy_sampled", "kl", "entropy"),
    ),
    "reward_model": (
        "text_rm",
        [Setting("grpo", 0.0), *(Setting(a, b) for a in ("grpo", "adrpo") for b in SWEEP)],
        ("reward", "gold_sampled", "gold_greedy", "kl", "entropy"),
    ),
}


def train(config: str, setting: Setting, seed: int, folder: Path, more: Sequence[str]) -> None:
    if (folder / "curves.png").is_file():
        return
    command = [sys.executable, "-m", "adrpo_scale", "train"]
    command += [f"configs/demo/{config}_{setting.algorithm}.toml", "--run-dir", str(folder)]
    for override in [*setting.overrides, f"seed={seed}", *more]:
        command += ["--set", override]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, env=environment)


def numbers(folders: Sequence[Path], metric: str) -> list[float]:
    found = [tables.after(tables.read_rows(folder), "held_out", metric) for folder in folders]
    return [value for value in found if value is not None]


def cell(values: Sequence[float]) -> str:
    mean, half = statistics.fmean(values), (max(values) - min(values)) / 2
    return f"{mean:.3f} ± {half:.3f}"


def frontier(points: dict[str, list[tuple[float, float, float]]], to: Path) -> None:
    """Draws reward and gold score against KL, a line per algorithm and a dot per setting.

    points: (kl, reward, gold) of each setting, by algorithm.
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, 2, figsize=(9, 3.6), layout="constrained")
    for algorithm, some in points.items():
        kl, *columns = zip(*sorted(some), strict=True)
        for axis, values in zip(axes, columns, strict=True):
            axis.plot(kl, values, "o-", label=algorithm, alpha=0.8)
    for axis, title in zip(axes, ("reward of the model", "gold score"), strict=True):
        axis.set(title=title, xlabel="KL to the reference (mean per token)", xscale="log")
        axis.grid(alpha=0.3)
        axis.legend()
    figure.savefig(to, dpi=120)
    pyplot.close(figure)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("task", choices=TASKS)
    parser.add_argument("--runs", type=Path, default=Path("runs/betas"))
    parser.add_argument("--jobs", type=int, default=1, help="runs at a time")
    parser.add_argument("--set", dest="overrides", action="append", default=[])
    arguments = parser.parse_args()
    config, settings, metrics = TASKS[arguments.task]
    folders = {
        (setting, seed): arguments.runs / f"{config}-{setting.name}-{seed}"
        for seed in SEEDS
        for setting in settings
    }
    with ThreadPoolExecutor(arguments.jobs) as pool:
        jobs = [
            pool.submit(train, config, setting, seed, folder, arguments.overrides)
            for (setting, seed), folder in folders.items()
        ]
        for job in jobs:
            job.result()
    lines, points = [["", *metrics]], {}
    some = list(folders.values())
    base = [[tables.before(tables.read_rows(f), "held_out", m) for f in some] for m in metrics]
    lines.append(["base", *(cell([v for v in values if v is not None]) for values in base)])
    for setting in settings:
        mine = [folders[setting, seed] for seed in SEEDS]
        values = [numbers(mine, metric) for metric in metrics]
        name = f"{setting.algorithm.upper()}, beta0 = {setting.beta0:g}"
        lines.append([name, *map(cell, values)])
        if arguments.task == "reward_model":
            means = [statistics.fmean(numbers(mine, m)) for m in ("kl", "reward", "gold_sampled")]
            points.setdefault(setting.algorithm.upper(), []).append((*means,))
    print(table(lines))
    if points:
        frontier(points, arguments.runs / "frontier.png")
        print(f"figure: {arguments.runs / 'frontier.png'}")


if __name__ == "__main__":
    main()
