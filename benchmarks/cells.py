"""Many trainings for one benchmark: several at once, each recorded once, in any number of goes.

A cell is a config with settings; it is trained with several seeds. Every run is one process with
one thread, forked from a server that has imported the libraries, in a folder that is removed when
its numbers are read. `TO/cells/CELL-SEED.json` has them, and `TO/joined.json` those of all runs,
one a line. A run that either file has is not run again; one that was interrupted starts anew.
"""

from __future__ import annotations

import contextlib
import json
import math
import multiprocessing
import os
import platform
import resource
import shutil
import signal
import statistics
import sys
import time
import traceback
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from multiprocessing import connection
from pathlib import Path
from typing import Any, TypeVar

Record = dict[str, Any]
J = TypeVar("J")

PRELOAD = [
    "torch",
    "torch.distributed.fsdp",
    "torch.utils.tensorboard",
    "diffusers.models.transformers.transformer_sd3",
    "diffusers.models.autoencoders.autoencoder_kl",
    "diffusers.pipelines.stable_diffusion_3.pipeline_stable_diffusion_3",
    "transformers.models.clip.modeling_clip",
    "transformers.models.qwen3.modeling_qwen3",
    "peft.utils.transformers_weight_conversion",
    "matplotlib.pyplot",
    "adrpo_scale.run.train",
]
ENVIRONMENT = {  # read by the libraries when they are imported
    "OMP_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "HF_HUB_OFFLINE": "1",
    "CUDA_VISIBLE_DEVICES": "",
    "MPLBACKEND": "agg",
}
DIGITS = 5  # of recorded numbers
T_975 = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262)  # by degrees of freedom


@dataclass(frozen=True)
class Cell:
    """One setting of a benchmark. settings: as --set takes them."""

    name: str
    config: str
    settings: tuple[str, ...]


@dataclass(frozen=True)
class Job:
    """A cell with a seed. metrics: kept of evaluations. columns: kept of every iteration."""

    cell: Cell
    seed: int
    metrics: tuple[str, ...]
    columns: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        return f"{self.cell.name}-{self.seed}"

    @property
    def settings(self) -> list[str]:
        return [*self.cell.settings, f"seed={self.seed}"]


@dataclass
class Shelf:
    """The records of a folder by the names of their jobs."""

    to: Path
    records: dict[str, Record] = field(default_factory=dict)

    @property
    def joined(self) -> Path:
        return self.to / "joined.json"

    @classmethod
    def read(cls, to: Path) -> Shelf:
        shelf = cls(to)
        if shelf.joined.is_file():
            shelf.records = {r["name"]: r for r in json.loads(shelf.joined.read_text())}
        for path in sorted((to / "cells").glob("*.json")):
            shelf.records[path.stem] = json.loads(path.read_text())
        return shelf

    def has(self, job: Job) -> bool:
        """Whether the job is done. ValueError where its record is of other settings."""
        record = self.records.get(job.name)
        if record is None:
            return False
        known, wanted = (record["config"], record["set"]), (job.cell.config, job.settings)
        if known != wanted:
            raise ValueError(
                f"{self.to} has {job.name} with {known}, and the benchmark has {wanted}: choose "
                "another folder, or remove this record from cells/ and joined.json"
            )
        return True

    def of(self, cell: Cell, seeds: Iterable[int]) -> dict[int, Record]:
        """The cell's records by seed."""
        found = {seed: self.records.get(f"{cell.name}-{seed}") for seed in seeds}
        return {seed: record for seed, record in found.items() if record is not None}

    def add(self, name: str) -> Record:
        """Takes a record that a run has written, and writes all of them anew."""
        self.records[name] = json.loads((self.to / "cells" / f"{name}.json").read_text())
        lines = ",\n".join(json.dumps(self.records[key]) for key in sorted(self.records))
        write_whole(self.joined, f"[\n{lines}\n]\n")
        return self.records[name]


def write_whole(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_suffix(".part")
    part.write_text(text)
    os.replace(part, path)


def carry_out(jobs: Sequence[Job], to: Path, at_once: int = 1) -> list[str]:
    """Runs the jobs that `to` has no record of, in their order; returns the names of those that
    failed. What trains and stops at a limit has not failed: its record says so."""
    shelf = Shelf.read(to)
    waiting = [job for job in jobs if not shelf.has(job)]
    print(f"{len(jobs)} runs, {len(waiting)} to do, {at_once} at once", flush=True)
    os.environ.update(ENVIRONMENT)
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOAD)
    failed: list[str] = []
    for done, (job, code) in enumerate(in_processes(context, _run, waiting, to, at_once), 1):
        if code != 0:
            failed.append(job.name)
            said = f"failed, see {to / 'logs' / job.name}.log"
        else:
            record = shelf.add(job.name)
            said = f"{record['outcome']}, {record['cpu_seconds']:.1f} CPU-s"
        print(f"{done} of {len(waiting)}, {job.name}: {said}", flush=True)
    return failed


def in_processes(
    context: Any, work: Callable[[J, Path], None], jobs: Sequence[J], to: Path, at_once: int
) -> Iterator[tuple[J, int]]:
    """`work(job, to)` of every job in a process of its own, `at_once` of them at a time; yields
    (job, exit code) as they end. What runs when the caller stops is killed."""
    waiting = list(jobs)
    running: dict[Any, tuple[J, Any]] = {}
    try:
        while waiting or running:
            while waiting and len(running) < at_once:
                job = waiting.pop(0)
                process = context.Process(target=work, args=(job, to))
                process.start()
                running[process.sentinel] = (job, process)
            for sentinel in connection.wait(list(running)):
                job, process = running.pop(sentinel)
                process.join()
                yield job, process.exitcode
    finally:
        for _, process in running.values():
            process.kill()


def _run(job: Job, to: Path) -> None:
    """The whole of one process: trains, then writes the record."""
    log = to / "logs" / f"{job.name}.log"
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("w") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    folder = to / "runs" / job.name
    shutil.rmtree(folder, ignore_errors=True)
    begin = time.monotonic()
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    try:
        outcome = _train(job, folder)
        text = json.dumps(_record(job, folder, outcome, time.monotonic() - begin))
        write_whole(to / "cells" / f"{job.name}.json", text + "\n")
        shutil.rmtree(folder, ignore_errors=True)
    except BaseException:
        traceback.print_exc()
        sys.stderr.flush()
        os._exit(1)
    sys.stdout.flush()
    os._exit(0)


def _train(job: Job, folder: Path) -> str:
    """Trains; returns how it ended."""
    from adrpo_scale.core.errors import LimitReached, NonFiniteError
    from adrpo_scale.run.load import load_config
    from adrpo_scale.run.train import TrainOptions, train

    try:
        train(load_config(Path(job.cell.config), job.settings), TrainOptions(folder))
    except (LimitReached, NonFiniteError) as error:
        return str(error)
    return "done"


def _record(job: Job, folder: Path, outcome: str, wall: float) -> Record:
    import torch

    from adrpo_scale.run.api import open_run

    run = open_run(folder)
    evaluations: dict[str, list[list[float | None]]] = {}
    for row in run.evaluations():
        if row["metric"] in job.metrics:
            key = f"{row['split']} {row['metric']}"
            evaluations.setdefault(key, []).append([row["iteration"], _short(row["value"])])
    iterations = run.metrics()
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return {
        "name": job.name,
        "cell": job.cell.name,
        "seed": job.seed,
        "config": job.cell.config,
        "set": job.settings,
        "outcome": outcome,
        "cpu_seconds": round(sum(u.ru_utime + u.ru_stime for u in used), 1),
        "wall_seconds": round(wall, 1),
        "versions": {"torch": torch.__version__, "python": platform.python_version()},
        "machine": platform.machine(),
        "evaluations": evaluations,
        "iterations": {key: [_short(row.get(key)) for row in iterations] for key in job.columns},
    }


def _short(value: float | None) -> float | None:
    if value is None or not math.isfinite(value):
        return None
    return float(f"{value:.{DIGITS}g}")


def interval(values: Sequence[float]) -> tuple[float, float]:
    """(mean, half of the 95 % t-interval) of at most ten values; NaN for the half of fewer than
    two."""
    mean, n = statistics.fmean(values), len(values)
    if n < 2:
        return mean, math.nan
    return mean, T_975[n - 2] * statistics.stdev(values) / math.sqrt(n)


def crossing(
    abscissa: Sequence[float | None], ordinate: Sequence[float | None], level: float
) -> float | None:
    """The ordinate where the abscissa first reaches `level`, on straight lines between the points;
    None where it does not, or where it is not a number."""
    before: tuple[float, float] | None = None
    for x, y in zip(abscissa, ordinate, strict=True):
        if x is None or y is None:
            return None
        if x >= level:
            if before is None or x == before[0]:
                return y
            return before[1] + (y - before[1]) * (level - before[0]) / (x - before[0])
        before = (x, y)
    return None


@contextlib.contextmanager
def figure(to: Path, shape: tuple[int, int], size: tuple[float, float]) -> Iterator[Any]:
    """Rows of axes, [R][C], that are saved as a PNG."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    whole, axes_RC = pyplot.subplots(*shape, figsize=size, layout="constrained", squeeze=False)
    yield axes_RC
    to.parent.mkdir(parents=True, exist_ok=True)
    whole.savefig(to, dpi=110)
    pyplot.close(whole)
