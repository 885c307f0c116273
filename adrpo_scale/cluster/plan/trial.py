"""The option `train --trial`: two real iterations on this machine, measured phase by phase.

A trial computes the same as `train`, with equal prompts, sizes and draws, but without evaluations.
Its folder is always a new one, and holds no checkpoint at the end: the one saved for measurement is
removed. So no run can resume from a trial.

A trial leaves the pictures or completions of both iterations, and `trial.json`, by which
`adrpo-scale plan CONFIG --trial FILE` scales its predictions.
"""

from __future__ import annotations

import shlex
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from rich.table import Table

from adrpo_scale.checkpoint.locate import open_checkpoint
from adrpo_scale.checkpoint.shelf import CHECKPOINTS
from adrpo_scale.checkpoint.store import Store
from adrpo_scale.checkpoint.whole import require_whole
from adrpo_scale.cluster.plan.choice import choose_apart
from adrpo_scale.core import dist, failure
from adrpo_scale.core.console import console
from adrpo_scale.core.disk_space import size_text
from adrpo_scale.core.errors import (
    AdrpoError,
    RunFolderError,
    StopRequested,
    TrialError,
    agreed,
    given,
)
from adrpo_scale.core.files import remove_folder, replace_json
from adrpo_scale.core.preempt import Signals
from adrpo_scale.core.run_rows import METRICS, metric_rows
from adrpo_scale.hub.prefetch import require_models
from adrpo_scale.run import out_of_memory
from adrpo_scale.run.build import build_trainer
from adrpo_scale.run.config import RunConfig
from adrpo_scale.run.folder import default_folder
from adrpo_scale.run.load import LoadedConfig, overridden
from adrpo_scale.run.resume import Start
from adrpo_scale.run.rollout_chunk import newly_decided, with_number
from adrpo_scale.training.metrics import setup_logging
from adrpo_scale.training.stopwatch import PHASES, peak_bytes, reset_peak
from adrpo_scale.training.trainer import Trainer

FORMAT = 1
FILE = "trial.json"
ITERATIONS = 2  # the first warms up, the second is measured
# Settings that differ from the run's; none of them changes the training.
_SETTINGS = (
    "evaluation.every=0",
    "checkpoint.every_iterations=0",
    "checkpoint.every_minutes=1e6",  # only the save at the end
    "checkpoint.keep_every=0",
    "checkpoint.keep_best=0",
    "checkpoint.keep_last=1",
    "checkpoint.keep_trajectory=0",
    "limits.max_divergence=null",
    "limits.min_reward=null",
    "logging.pictures_every=1",
    "logging.completions_every=1",
)


@dataclass(frozen=True)
class _Load:
    """Time and peak memory before the first iteration."""

    seconds: float
    bytes: int


def run_trial(loaded: LoadedConfig, run_dir: Path | None = None, given: Sequence[str] = ()) -> Path:
    """Runs a trial and prints its results; returns the path of `trial.json`. Collective.

    run_dir: a new or empty folder; by default one beside the run's. given: the words of the command
    line that name the config. Raises TrialError where memory runs out or a signal arrives.
    """
    config = overridden(loaded.config, _SETTINGS)
    require_models(config.needs_from_hub())
    device, timeout = config.engine.torch_device(), config.engine.timeout_seconds
    with Signals() as signals, dist.process_group(device, timeout):
        run = dist.run_on_main(lambda: _new_folder(loaded, run_dir))
        _announce(run, config)
        setup_logging(run)
        try:
            whole = newly_decided(loaded.config, choose_apart)
            config = with_number(config, whole.domain.chunk)
            document = _measured(replace(loaded, config=whole), config, run, signals)
        except StopRequested as stop:
            raise agreed(
                TrialError(f"{signals.name or 'a signal'} stopped the trial; start it again")
            ) from stop
        path = run / FILE
        if dist.is_main():
            replace_json(path, document)
            _show(run, document)
    if dist.rank_facts().is_main:  # outside the process group: plan makes its own
        _show_plan(loaded, document)
        cluster = ["--nodes", "10", "--gpus-per-node", "8", "--gpu", "a6000"]
        words = given or [f"{loaded.name}.toml"]
        command = ["adrpo-scale", "plan", *words, "--trial", str(path), *cluster]
        _print(f"on a cluster: {shlex.join(command)}")
    return path


def _new_folder(loaded: LoadedConfig, run_dir: Path | None) -> Path:
    """Makes the trial's folder; on rank 0 alone."""
    try:
        if run_dir is not None:
            run_dir.mkdir(parents=True, exist_ok=True)
            if any(run_dir.iterdir()):
                raise RunFolderError(
                    f"--trial: {run_dir} is not empty, and a trial never resumes anything; "
                    "choose another --run-dir, or leave it out"
                )
            return run_dir
        base = default_folder(loaded.name, loaded.config.digest())
        base.parent.mkdir(parents=True, exist_ok=True)
        return _first_free(base.with_name(f"{base.name}-trial"))
    except OSError as error:
        raise RunFolderError(
            f"the trial's folder cannot be made ({error}); choose another --run-dir or set "
            "ADRPO_RUNS"
        ) from error


def _first_free(folder: Path) -> Path:
    """Makes `folder`, or the first free one of folder-2, folder-3, …"""
    number = 1
    while True:
        candidate = folder if number == 1 else folder.with_name(f"{folder.name}-{number}")
        try:
            candidate.mkdir()
        except FileExistsError:
            number += 1
        else:
            return candidate


def _announce(run: Path, config: RunConfig) -> None:
    if dist.is_main():
        samples, world = _samples(config), dist.world_size()
        of = "1 process" if world == 1 else f"{world} processes"
        _print(f"trial folder: {run}")
        _print(
            f"{ITERATIONS} iterations of {samples} samples on {of}; fewer with "
            "--set prompts.per_iteration=N, plan scales by sample"
        )


def _samples(config: RunConfig) -> int:
    return config.prompts.per_iteration * config.prompts.group_size


def _measured(
    loaded: LoadedConfig, config: RunConfig, run: Path, signals: Signals
) -> dict[str, Any]:
    """Runs the iterations; returns the contents of `trial.json`. Collective."""
    trainers: list[Trainer] = []
    with _memory_named(config, trainers):
        trainer, load = _loaded(config, run, signals)
        trainers.append(trainer)
        trainer.log.iterations, trainer.log.keep_pictures = ITERATIONS, True
        trainer.measures_memory = True
        trainer.saver.check_room()
        trainer.train(ITERATIONS)
        trainer.saver.save_now()
    size = dist.run_on_main(lambda: _weighed(run / CHECKPOINTS))
    lines = metric_rows(run / METRICS) if dist.is_main() else []
    peaks = [given(trainer.watch).peaks.get(phase, 0) for phase in PHASES]
    # The maximum over processes: one that runs out of memory ends the run.
    most = dist.all_max(torch.tensor([*peaks, load.bytes, load.seconds], dtype=torch.float64))
    *peaks, load_bytes, load_seconds = most.tolist()
    seconds = {phase: _last_seconds(lines, phase) for phase in PHASES}
    on_gpu = trainer.engine.device.type == "cuda"
    return {
        "format": FORMAT,
        "config": loaded.name,
        "digest": loaded.config.digest(),
        "world": dist.world_size(),
        "gpus_per_node": dist.rank_facts().local_world,
        "device": trainer.engine.device.type,
        "gpu": torch.cuda.get_device_name(trainer.engine.device) if on_gpu else None,
        "samples_per_iteration": _samples(config),
        "iterations": trainer.counters.iteration,
        "seconds": {**seconds, "load": load_seconds, "save": trainer.saver.seconds},
        "peak_bytes": {
            **{phase: int(peak) for phase, peak in zip(PHASES, peaks, strict=True)},
            "load": int(load_bytes),
        },
        "checkpoint_bytes": size,
        "settings": loaded.config.resolved(),
    }


def _loaded(config: RunConfig, run: Path, signals: Signals) -> tuple[Trainer, _Load]:
    """The trainer before its first iteration, and the cost of loading it. Collective."""
    device = torch.device(config.engine.torch_device())
    begin = time.perf_counter()
    reset_peak(device)
    start = dist.run_on_main(lambda: _start(config))
    if start.origin is not None:
        require_whole(start.origin)
    store = Store(run, config.checkpoint, timeout_seconds=config.engine.timeout_seconds)
    trainer = build_trainer(config, run, start, signals, store)
    return trainer, _Load(time.perf_counter() - begin, peak_bytes(device))


def _start(config: RunConfig) -> Start:
    """A start at iteration 0, with the run's initial weights."""
    source = config.init_from
    return Start(origin=open_checkpoint(source) if source is not None else None)


def _weighed(folder: Path) -> int:
    """Bytes of the checkpoint; removes it."""
    size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    remove_folder(folder)
    return size


def _last_seconds(lines: Sequence[dict[str, Any]], phase: str) -> float:
    """Seconds of the last iteration with this phase: a fixed pool is rolled out only once."""
    took = [line[f"seconds_{phase}"] for line in lines]
    return next((seconds for seconds in reversed(took) if seconds > 0), 0.0)


# ---- memory that runs out ------------------------------------------------------------------------


@contextmanager
def _memory_named(config: RunConfig, trainers: Sequence[Trainer]) -> Iterator[None]:
    """Turns an out-of-memory error into a TrialError that names the phase and a remedy."""
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not failure.is_memory(error):
            raise
        watch = trainers[0].watch if trainers else None
        phase = watch.phase if watch is not None else "load"
        raise TrialError(
            f"memory ran out in the {phase} of a trial with {_samples(config)} samples on "
            f"{dist.world_size()} processes: {out_of_memory.cause(error)} "
            f"{out_of_memory.remedy(config, phase)}"
        ) from error


# ---- what is printed -----------------------------------------------------------------------------


def _show(run: Path, document: dict[str, Any]) -> None:
    seconds, peaks = document["seconds"], document["peak_bytes"]
    where = document["gpu"] or document["device"]
    what = "peak memory" if document["device"] == "cuda" else "peak memory of the process"
    table = Table("phase", "seconds", what, title=f"iteration {document['iterations']} on {where}")
    for phase in ("load", *PHASES, "save"):
        peak = size_text(peaks[phase]) if phase in peaks else "–"
        table.add_row(phase, f"{seconds[phase]:.3g}", peak)
    console.print(table)
    _print(f"a checkpoint: {size_text(document['checkpoint_bytes'])}, removed again")
    for path in sorted((run / "samples").glob("*")) if (run / "samples").is_dir() else ():
        _print(f"to look at:   {path}")
    _print(f"measured:     {run / FILE}")


def _show_plan(loaded: LoadedConfig, document: dict[str, Any]) -> None:
    """Prints the plan of the whole run on these machines, scaled by the trial. A model or GPU that
    plan does not know does not make the trial fail."""
    from adrpo_scale.cluster.plan.calibrate import trial_run
    from adrpo_scale.cluster.plan.planner import plan_of
    from adrpo_scale.cluster.plan.view import show

    try:
        _, here = trial_run(document, loaded.config)
        found = plan_of(loaded.config, here, document, loaded.name)
    except AdrpoError as error:
        _print(f"no plan for these machines: {error}")
    else:
        show(found)


def _print(text: str) -> None:
    console.print(text, highlight=False, soft_wrap=True)
