"""Kills a run at random moments until it is done, and compares it with one that was never killed.

    python -m tests.support.chaos --kills 100 --seed 0 --to /tmp/chaos

Every start is ended by SIGKILL of all its processes, at a random moment or in the middle of a save,
and started again; four cases: LoRA and full training, on one and on two processes. The figures say
how many kills there were, how many commits were lost (the next start must resume from the newest
one that was there when the kill had been done), how many starts met a broken checkpoint, and
whether every parameter, moment and line of metrics is equal to the bit.
"""

from __future__ import annotations

import argparse
import json
import random
import shutil
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from tests.support import starts
from tests.support.tiny import FULL

ITERATIONS = 20
SETTINGS = [
    f"iterations={ITERATIONS}",
    "ema_decay=0.9",
    "evaluation.every=7",
    "checkpoint.every_iterations=1",
    "checkpoint.keep_last=2",
    "checkpoint.keep_best=1",
    "checkpoint.keep_trajectory=3",
]
CASES = [(kind, world) for kind in ("lora", "full") for world in (1, 2)]
LONGEST = 4.0  # seconds after which a start is killed at the latest


@dataclass
class Report:
    """What happened in one case."""

    kind: str
    world: int
    kills: int = 0
    kills_inside_saves: int = 0
    runs: int = 0
    lost_commits: int = 0
    broken_met: int = 0
    differences: int = 0
    seconds: float = 0.0


def settings_of(kind: str) -> Sequence[str]:
    return [*SETTINGS, *FULL] if kind == "full" else SETTINGS


def is_saving(run: Path) -> bool:
    return any((run / "checkpoints").glob("*.tmp"))


def kill_somewhere(start: starts.Started, run: Path, rng: random.Random) -> bool | None:
    """Kills a start; whether that was inside a save, None if it ended before."""
    inside, moment = rng.random() < 0.5, time.monotonic() + rng.uniform(0.3, LONGEST)
    while any(process.is_alive() for process in start.processes):
        if (inside and is_saving(run)) or time.monotonic() > moment:
            if inside:
                time.sleep(rng.uniform(0, 0.01))  # a save takes a little longer here
            saving = is_saving(run)
            start.kill()
            return saving
        time.sleep(0.001)
    return None


def one_run(folder: Path, report: Report, kills: int, rng: random.Random) -> None:
    """One run that is killed up to `kills` times."""
    run, expected = folder / "run", None
    while True:
        start = starts.train(folder, report.world, settings_of(report.kind))
        saving = kill_somewhere(start, run, rng) if report.kills < kills else None
        records = starts.records_of(run)
        if expected is not None and len(records) > expected[0]:
            # The record is written once the checkpoint is chosen.
            report.lost_commits += records[expected[0]]["resumed_from"] != expected[1]
        codes = start.wait()
        report.broken_met += "is broken" in start.text()
        if saving is None:
            assert codes == [0] * report.world, (codes, start.text())
            return
        report.kills += 1
        report.kills_inside_saves += saving
        there = starts.committed_iterations(run) if (run / "checkpoints").exists() else []
        expected = (len(records), there[-1] if there else None)


def run_case(to: Path, kind: str, world: int, kills: int, seed: int) -> Report:
    """Runs until `kills` kills were done; at least one run."""
    report, rng, begin = Report(kind, world), random.Random(f"{seed}{kind}{world}"), time.time()
    folder = to / f"{kind}-{world}"
    assert starts.train(folder / "quiet", world, settings_of(kind)).wait() == [0] * world
    while report.kills < kills or report.runs == 0:
        killed = folder / f"killed-{report.runs}"
        one_run(killed, report, kills, rng)
        found = starts.differences(killed / "run", folder / "quiet" / "run")
        report.runs += 1
        report.differences += bool(found)
        assert not found, found
        shutil.rmtree(killed)
    report.seconds = round(time.time() - begin, 1)
    return report


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--to", type=Path, required=True, help="folder for the runs")
    parser.add_argument("--json", type=Path, help="write the figures here")
    given = parser.parse_args()
    reports = []
    for kind, world in CASES:
        report = run_case(given.to, kind, world, -(-given.kills // len(CASES)), given.seed)
        print(report, flush=True)
        reports.append(asdict(report))
    if given.json is not None:
        given.json.write_text(json.dumps(reports, indent=2) + "\n")


if __name__ == "__main__":
    main()
