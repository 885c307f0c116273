"""The dice demo over seeds: the table of docs/results/dice.md.

    python -m benchmarks.dice_demo [--runs runs/dice] [--ranks 2] [--to dice.json]

Runs `configs/demo/dice_adrpo.toml` with three seeds, one after the other, and prints a Markdown
table: base and mean of the last three evaluations (iterations 60, 80, 100), 12 prompts × 48
pictures a split, and the CPU-seconds of all processes from start to end, evaluations included.
`--to` keeps every evaluation, `--picture` first pictures of held-out prompts of seed 0, before and
after. `--set` changes a setting of all runs, e.g. `reference.kind=base`.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
from pathlib import Path
from typing import Any

from PIL import Image

from adrpo_scale.core.markdown import table
from adrpo_scale.run.tables import after, before, read_rows
from adrpo_scale.training.pictures import CELL, GAP, LINE

SEEDS = (0, 1, 2)
SHOWN = 4  # prompts, and pictures of each
METRICS = ("checker", "reward", "pixel_diversity", "w2_sum")


def train(folder: Path, seed: int, ranks: int, overrides: list[str]) -> float:
    """Trains; returns the CPU-seconds of the command and all its processes."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    command += [f"--nproc-per-node={ranks}", "-m", "adrpo_scale", "train"]
    command += ["configs/demo/dice_adrpo.toml", "--run-dir", str(folder)]
    for override in (f"seed={seed}", *overrides):
        command += ["--set", override]
    begin = seconds_of_children()
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, env=environment)
    return seconds_of_children() - begin


def seconds_of_children() -> float:
    return sum(resource.getrusage(resource.RUSAGE_CHILDREN)[:2])


def measured(folder: Path, seed: int, ranks: int, overrides: list[str]) -> dict[str, Any]:
    seconds = train(folder, seed, ranks, overrides)
    rows = read_rows(folder)
    splits = {
        f"{split} {metric}": {
            "before": before(rows, split, metric),
            "after": after(rows, split, metric),
            "evaluations": [
                row["value"] for row in rows if (row["split"], row["metric"]) == (split, metric)
            ],
        }
        for split in ("train", "held_out")
        for metric in METRICS
    }
    return {"seed": seed, "ranks": ranks, "set": overrides, "cpu_seconds": seconds} | splits


def before_and_after(run: Path, to: Path) -> None:
    """Writes the corners of the first and last grid of held-out prompts side by side, as a PNG."""
    grids = [Image.open(p) for p in sorted((run / "samples").glob("held_out-*.png"))]
    width, height = SHOWN * (CELL + GAP) + GAP, SHOWN * (CELL + 2 * LINE + 2 * GAP)
    whole = Image.new("RGB", (2 * width + CELL // 4, height), "white")
    for grid, left in ((grids[0], 0), (grids[-1], whole.width - width)):
        whole.paste(grid.crop((0, 0, width, height)), (left, 0))
    whole.quantize(256).save(to, optimize=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=Path, default=Path("runs/dice"))
    parser.add_argument("--ranks", type=int, default=2)
    parser.add_argument("--set", action="append", default=[], help="a setting of all runs")
    parser.add_argument("--to", type=Path, help="a JSON file for every number")
    parser.add_argument("--picture", type=Path, help="a PNG before and after")
    arguments = parser.parse_args()
    rows = [
        measured(arguments.runs / f"seed-{seed}", seed, arguments.ranks, arguments.set)
        for seed in SEEDS
    ]
    kinds = [f"{split} {metric}" for metric in METRICS for split in ("train", "held_out")]
    lines = [["seed", *kinds, "CPU-s"]]
    for row in rows:
        values = [f"{row[kind]['before']:.3f} → {row[kind]['after']:.3f}" for kind in kinds]
        lines.append([str(row["seed"]), *values, f"{row['cpu_seconds']:.0f}"])
    print(table(lines))
    if arguments.picture is not None:
        before_and_after(arguments.runs / "seed-0", arguments.picture)
    if arguments.to is not None:
        arguments.to.write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()
