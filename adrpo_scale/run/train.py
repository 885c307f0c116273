"""One life of a run: what a process of `train` does from its start to its end."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path

from adrpo_scale.checkpoint.locate import ORIGIN, pin_origin
from adrpo_scale.checkpoint.reader import Reader
from adrpo_scale.checkpoint.shelf import examine, newest_whole, remove_left_overs
from adrpo_scale.checkpoint.store import Store
from adrpo_scale.core import dist, watchdog
from adrpo_scale.core.console import console
from adrpo_scale.core.errors import (
    LOST,
    STOPPED,
    AdrpoError,
    CheckpointError,
    ConfigError,
    LimitReached,
    RunFolderError,
    StopRequested,
    agreed,
    exit_code,
)
from adrpo_scale.core.folder_lock import RunLock
from adrpo_scale.core.preempt import Signals
from adrpo_scale.core.watchdog import Watchdog
from adrpo_scale.hub.prefetch import require_models
from adrpo_scale.run import starts as life_record
from adrpo_scale.run.build import Beginning, build_trainer
from adrpo_scale.run.config import RunConfig
from adrpo_scale.run.folder import (
    cut_back,
    default_folder,
    left_behind,
    make_folder,
    write_config,
)
from adrpo_scale.run.load import LoadedConfig
from adrpo_scale.run.resume import check_settings
from adrpo_scale.run.starts import LifeRecord
from adrpo_scale.run.summary import summarise
from adrpo_scale.training.metrics import setup_logging
from adrpo_scale.training.trainer import Trainer

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Orders:
    """What the command line says about a run beside its settings.

    fresh: refuse to go on from a checkpoint. allowed: settings that may change in mid-run.
    """

    run_dir: Path | None = None
    fresh: bool = False
    allowed: Sequence[str] = ()


def train(loaded: LoadedConfig, orders: Orders = Orders()) -> None:
    """One life of a run, from its folder to its last checkpoint and summary.

    Raises StopRequested after a signal, with everything saved that could be.
    """
    config = loaded.config
    if orders.allowed and orders.run_dir is None:
        raise ConfigError(
            "--allow-change without --run-dir: a run's default folder is named after its settings, "
            "so with other settings it is another one; name the folder of the run that is to go on"
        )
    require_models(config.needs_from_hub())
    run = orders.run_dir or default_folder(loaded.name, config.digest())
    if dist.rank_facts().is_main:
        console.print(f"run folder: {run}", highlight=False, soft_wrap=True)
    timeout = config.engine.timeout_seconds
    with Signals() as signals, dist.process_group(config.engine.torch_device(), timeout):
        dist.run_on_main(lambda: make_folder(run))
        lock = RunLock(run, config.checkpoint.lock_expiry_seconds)
        dist.run_on_main(lock.acquire)
        try:
            setup_logging(run)
            _live(config, run, orders, signals, lock)
        finally:
            if dist.is_main():
                lock.release()
        if dist.is_main():
            summarise(run)


def _live(config: RunConfig, run: Path, orders: Orders, signals: Signals, lock: RunLock) -> None:
    """From the newest checkpoint to the end, or to a stop."""
    for name in dist.run_on_main(lambda: remove_left_overs(run)):
        log.info("removed %s, which an interrupted save left", name)
    store = Store(run, config.checkpoint, lock.check, config.engine.timeout_seconds)
    reader = newest_whole(run)
    notes = _checked_notes(config, run, reader, orders)
    origin = _origin(config, run, reader)
    dist.run_on_main(lambda: _check_not_looping(config, run, reader))
    record = _open_record(run, reader, notes)
    with _recorded(record, signals) as trainers, _watched(config, run, record, trainers):
        beginning = Beginning(reader, origin, orders.allowed, signals, store)
        with watchdog.phase("load"):
            trainer = build_trainer(config, run, beginning)
        trainers.append(trainer)
        dist.run_on_main(lambda: _write_start(config, run, trainer))
        trainer.saver.check_room()
        _run(trainer)


@contextmanager
def _recorded(record: LifeRecord | None, signals: Signals) -> Iterator[list[Trainer]]:
    """Writes into a life's record how it ended, whatever ended it. The body adds its trainer to the
    list, once there is one."""
    trainers: list[Trainer] = []
    outcome, code, since = "failed", 1, None
    try:
        yield trainers
        outcome, code = "done", 0
    except StopRequested:
        # Every rank raised it, but only some may have been sent a signal.
        told = [pair for pair in dist.gather_objects((signals.name, signals.seconds)) if pair[0]]
        name, since = max(told, key=lambda pair: pair[1])
        outcome, code = f"stopped by {name}", STOPPED
        log.warning("%s: stopped %.1f s after it; start again to go on", name, since)
        raise
    except AdrpoError as error:
        outcome, code = str(error), exit_code(error)
        raise
    except Exception as error:
        if dist.is_lost(error):
            outcome, code = "lost another process", LOST
        raise
    finally:
        if record is not None:
            iteration = trainers[0].counters.iteration if trainers else -1
            record.end(outcome, code, iteration, since)


def _watched(
    config: RunConfig, run: Path, record: LifeRecord | None, trainers: Sequence[Trainer]
) -> AbstractContextManager[object]:
    """The watchdog, which says in the life's record what it did."""
    seconds = config.limits.hang_seconds
    if seconds is None:
        return nullcontext()

    def note(line: str) -> None:
        if record is not None:
            iteration = trainers[0].counters.iteration if trainers else -1
            record.end(f"hung: {line}", STOPPED, iteration, None)

    return Watchdog(run, dist.rank(), seconds, note)


def _check_not_looping(config: RunConfig, run: Path, reader: Reader | None) -> None:
    """Raises LimitReached where the job's last lives all came to grief at the same place: to be put
    back into the queue again and again would burn the allocation."""
    job = os.environ.get("SLURM_JOB_ID")
    most = config.limits.max_stalled_lives
    stalled = life_record.stalled_lives(run, job, reader.iteration if reader else None)
    if len(stalled) >= most:
        ends = "; ".join(dict.fromkeys(str(life.get("outcome", "killed")) for life in stalled))
        raise agreed(
            LimitReached(
                f"job {job}: {len(stalled)} lives in a row ended without a new checkpoint ({ends}) "
                f"(limits.max_stalled_lives = {most}). Look at the log above and into {run}/stacks "
                "and submit again when the cause is mended"
            )
        )


def _run(trainer: Trainer) -> None:
    """Trains, and saves what stands at the end."""
    try:
        trainer.train()
    except StopRequested as stop:
        if stop.saveable:
            trainer.saver.save_now()
        else:
            trainer.saver.close()  # a save under way is worth the rest of the grace
        raise
    except LimitReached:
        trainer.saver.save_now()  # every rank raises it at the same iteration's end
        raise
    except Exception:
        trainer.saver.close()  # a save under way is of an earlier state, which stands
        raise
    trainer.saver.save_now()


def _checked_notes(
    config: RunConfig, run: Path, reader: Reader | None, orders: Orders
) -> list[str]:
    """Raises where the run may not go on as asked; what is to be noted of changed settings."""
    if reader is None:
        return []
    if orders.fresh:
        raise RunFolderError(
            f"--fresh, but {run} has a checkpoint of iteration {reader.iteration}: choose another "
            "--run-dir, or leave --fresh out to go on from it"
        )
    notes = check_settings(reader, config, orders.allowed)
    log.info("going on from iteration %d (%s)", reader.iteration, reader.folder.name)
    if dist.is_main():
        done = " (the last one)" if reader.iteration >= config.iterations else ""
        console.print(f"going on from iteration {reader.iteration}{done}", highlight=False)
        for note in notes:
            console.print(f"changed since: {note}", highlight=False, soft_wrap=True)
    return notes


def _origin(config: RunConfig, run: Path, reader: Reader | None) -> Reader | None:
    """The checkpoint that the run started from, kept inside its folder: the run that it came from
    may go on, or be deleted."""
    if config.init_from is None:
        return None
    source = config.init_from
    if reader is None:
        dist.run_on_main(lambda: pin_origin(source, run / ORIGIN))
    faults, origin = examine(run / ORIGIN)
    if origin is None or faults:
        raise agreed(
            CheckpointError(
                f"init_from = {source!r}: {'; '.join(faults)}. Name another checkpoint, and "
                "another --run-dir"
            )
        )
    return origin


def _open_record(run: Path, reader: Reader | None, notes: Sequence[str]) -> LifeRecord | None:
    """This life's record, on rank 0, and what is different from the life before."""
    environments = dist.gather_objects(life_record.environment())
    if not dist.is_main():
        return None
    for line in life_record.disagreements(environments):
        log.warning("the ranks differ: %s", line)
    before = life_record.previous_life(run)
    record = LifeRecord.begin(
        run,
        environments,
        launcher=dist.rank_facts().launcher,
        resumed_from=reader.iteration if reader else None,
        changed_settings=notes,
        found=left_behind(run, reader.iteration if reader else 0),
    )
    if before is not None and reader is not None:
        for line in life_record.changes(before, record.content):
            log.warning("other than in the life before: %s", line)
    return record


def _write_start(config: RunConfig, run: Path, trainer: Trainer) -> None:
    write_config(run, config.resolved())
    cut_back(run, trainer.counters.iteration, trainer.counters.evaluated)
