"""The five algorithms on the image demo: the table of docs/results/five-algorithms.md.

    python -m benchmarks.five_algorithms [--runs runs/five] [--jobs 1]

Runs `configs/demo/image_*.toml` with three seeds, in one process each, and prints a Markdown table:
values are means of the last three evaluations (iterations 50, 55, 60), averaged over seeds, ± their
standard error. CPU-seconds are the median over iterations, without evaluations. Finished runs in
the folder are not repeated.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from adrpo_scale.core.markdown import table
from adrpo_scale.evaluation.report.comparison import comparison
from adrpo_scale.evaluation.report.evaluated import read_run
from adrpo_scale.run import figures, tables

ALGORITHMS = ("adrpo", "grpo", "orw_cfm_w2", "raft", "dpo")
SEEDS = (0, 1, 2)


def train(folder: Path, algorithm: str, seed: int) -> None:
    if (folder / "curves.png").is_file():
        return
    command = [sys.executable, "-m", "adrpo_scale", "train", f"configs/demo/image_{algorithm}.toml"]
    command += ["--run-dir", str(folder), "--set", f"seed={seed}"]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, env=environment)


def cpu_seconds(folder: Path) -> float:
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    return statistics.median(json.loads(line)["cpu_seconds"] for line in lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=Path, default=Path("runs/five"))
    parser.add_argument("--jobs", type=int, default=1, help="runs at a time")
    arguments = parser.parse_args()
    folders = {(a, s): arguments.runs / f"{a}-{s}" for a in ALGORITHMS for s in SEEDS}
    with ThreadPoolExecutor(arguments.jobs) as pool:
        list(pool.map(lambda item: train(item[1], *item[0]), folders.items()))
    runs = {key: read_run(folder) for key, folder in folders.items()}
    rows = {key: run.rows for key, run in runs.items()}
    lines = comparison(list(runs.values()))
    for line in lines:
        name = line[0].split(" ")[0]
        seconds = [cpu_seconds(folders[key]) for key in folders if key[0] == name]
        line.append(f"{statistics.fmean(seconds):.2f}" if seconds else "")
    lines[0][-1] = "CPU-s / iteration"
    print(table(lines))
    gains = [
        (tables.after(run, "train", "reward") or 0) - (tables.before(run, "train", "reward") or 0)
        for key, run in rows.items()
        if key[0] == "adrpo"
    ]
    print(f"\nADRPO, gain in reward on training prompts by seed: {[round(g, 2) for g in gains]}")
    figures.curves([rows[a, 0] for a in ALGORITHMS], arguments.runs / "curves.png")


if __name__ == "__main__":
    main()
