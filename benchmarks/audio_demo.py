"""The sounds demo under GRPO and ADRPO: the table of docs/results/sounds.md.

Three seeds, one and two processes, both engines; ADRPO's clip range at half, one and two times
beta0 (paper, table 3); GRPO without and with twice the penalty, because ADRPO acts much like GRPO
with a larger beta.

    python -m benchmarks.audio_demo [--runs runs/sounds] [--jobs 2]

Values are of held-out questions, means of the last three evaluations, averaged over seeds, ± half
their range. Finished runs in the folder are not repeated.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from adrpo_scale.core.markdown import table
from adrpo_scale.run import tables
from benchmarks.text_betas import SEEDS, cell, numbers

BETA0 = 0.04
METRICS = ("accuracy_sampled", "accuracy_greedy", "format_sampled", "kl", "entropy")


@dataclass(frozen=True)
class Setting:
    """One line of the table. clip: ADRPO's clip range over beta0. beta0: of GRPO."""

    algorithm: str
    engine: str = "fsdp2"
    processes: int = 1
    clip: float = 1.0
    beta0: float = BETA0

    @property
    def name(self) -> str:
        changed = f", clip at {self.clip:g} beta0" if self.clip != 1 else ""
        changed += f", beta0 = {self.beta0:g}" if self.beta0 != BETA0 else ""
        where = f"{self.engine}, {self.processes} process{'es' * (self.processes > 1)}"
        return f"{self.algorithm.upper()}, {where}{changed}"

    @property
    def overrides(self) -> list[str]:
        shard = "all" if self.engine == "zero3" or self.processes > 1 else "1"
        settings = [f"engine.name={self.engine}", f"engine.shard={shard}"]
        settings += [f"algorithm.beta0={self.beta0}"]
        if self.algorithm == "adrpo":
            settings += [f"algorithm.advantage_min={-self.clip * BETA0}"]
            settings += [f"algorithm.advantage_max={self.clip * BETA0}"]
        return settings


STARTS = [(engine, processes) for engine in ("fsdp2", "zero3") for processes in (1, 2)]
SETTINGS = [Setting(algorithm, *start) for algorithm in ("grpo", "adrpo") for start in STARTS]
SETTINGS += [Setting("adrpo", clip=clip) for clip in (0.5, 2.0)]
SETTINGS += [Setting("grpo", beta0=beta0) for beta0 in (0.0, 2 * BETA0)]  # the controls


def train(setting: Setting, seed: int, folder: Path, more: Iterable[str] = ()) -> None:
    if (folder / "curves.png").is_file():
        return
    launch = [
        "-m",
        "torch.distributed.run",
        "--standalone",
        f"--nproc-per-node={setting.processes}",
    ]
    command = [sys.executable, *(launch if setting.processes > 1 else []), "-m", "adrpo_scale"]
    command += ["train", f"configs/demo/audio_{setting.algorithm}.toml", "--run-dir", str(folder)]
    for override in [*setting.overrides, f"seed={seed}", *more]:
        command += ["--set", override]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, env=environment, timeout=1200)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=Path, default=Path("runs/sounds"))
    parser.add_argument("--jobs", type=int, default=1, help="runs at a time")
    arguments = parser.parse_args()
    folders = {
        (setting, seed): arguments.runs
        / f"{setting.name.replace(', ', '-')}-{seed}".replace(" ", "-")
        for seed in SEEDS
        for setting in SETTINGS
    }
    with ThreadPoolExecutor(arguments.jobs) as pool:
        jobs = [pool.submit(train, *which, folder) for which, folder in folders.items()]
        for job in jobs:
            job.result()
    rows = [tables.read_rows(folder) for folder in folders.values()]
    base = [[tables.before(some, "held_out", metric) for some in rows] for metric in METRICS]
    lines = [["", *METRICS, "accuracy_sampled by seed"]]
    lines.append(["base", *(cell([v for v in values if v is not None]) for values in base), ""])
    for setting in SETTINGS:
        mine = [folders[setting, seed] for seed in SEEDS]
        values = [numbers(mine, metric) for metric in METRICS]
        by_seed = " ".join(f"{value:.3f}" for value in values[0])
        lines.append([setting.name, *map(cell, values), by_seed])
    print(table(lines))


if __name__ == "__main__":
    main()
