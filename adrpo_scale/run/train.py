"""One start of a run: all steps of `train` in one process."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from adrpo_scale.checkpoint.store import Store
from adrpo_scale.core import dist, failure, screen, watchdog
from adrpo_scale.core.console import note_losses, say
from adrpo_scale.core.errors import (
    DONE_BUT,
    LOST,
    STOPPED,
    AdrpoError,
    ConfigError,
    LimitReached,
    StopRequested,
    exit_code,
    together,
)
from adrpo_scale.core.exits import not_left
from adrpo_scale.core.folder_lock import RunLock
from adrpo_scale.core.leaving import Leaving
from adrpo_scale.core.preempt import Signals
from adrpo_scale.core.watchdog import Watchdog
from adrpo_scale.data.prompts import build_prompts
from adrpo_scale.hub.prefetch import require_models
from adrpo_scale.run import out_of_memory, starts
from adrpo_scale.run.build import build_trainer
from adrpo_scale.run.config import RunConfig
from adrpo_scale.run.folder import cut_back, default_folder, make_folder, write_config
from adrpo_scale.run.load import LoadedConfig
from adrpo_scale.run.recorded import set_lines_aside
from adrpo_scale.run.resume import Start, find_start
from adrpo_scale.run.rewards import check_code
from adrpo_scale.run.rollout_chunk import Choose, decided
from adrpo_scale.run.starts import StartRecord
from adrpo_scale.run.summary import summarise
from adrpo_scale.training.metrics import setup_logging
from adrpo_scale.training.trainer import Trainer

log = logging.getLogger(__name__)

_OF_GRACE = 1 / 8  # share of the grace in which a run that loads answers a signal itself
_LAST_SAVE = 20.0  # seconds for a save under way, where the other ranks wait for one that failed


@dataclass(frozen=True)
class TrainOptions:
    """The options of the command `train`.

    run_dir: the run's folder; by default one named after its settings. fresh: refuse to resume from
    a checkpoint. allowed: settings that may differ from the checkpoint's. choose: chooses the
    number behind `domain.rollout_chunk = "auto"` of a new run on GPUs.
    """

    run_dir: Path | None = None
    fresh: bool = False
    allowed: Sequence[str] = ()
    choose: Choose | None = None


def train(loaded: LoadedConfig, options: TrainOptions = TrainOptions()) -> Path:
    """One start of a run, up to its last checkpoint and summary; returns the run's folder.

    Raises StopRequested after a signal, with everything saved that could be.
    """
    config = loaded.config
    if options.allowed and options.run_dir is None:
        raise ConfigError(
            "--allow-change without --run-dir: the default folder is named after the settings, so "
            "changed settings lead to another one; give the folder of the run to resume"
        )
    check_code(config)
    _require_inputs(config)
    run = options.run_dir or default_folder(loaded.name, config.digest())
    with screen.guarded(), screen.unblocked():
        _train(config, run, options)
    return run


def _train(config: RunConfig, run: Path, options: TrainOptions) -> None:
    if dist.rank_facts().is_main:
        say(f"run folder: {run}")
    timeout = config.engine.timeout_seconds
    with (
        Signals() as signals,
        Leaving(config.checkpoint.grace_seconds * _OF_GRACE) as leaving,
        dist.process_group(config.engine.torch_device(), timeout),
    ):
        lock = RunLock(run, config.checkpoint.lock_expiry_seconds)
        dist.run_on_main(lambda: _take_folder(run, lock))
        if dist.is_main():
            leaving.acts.append(lambda *_: lock.release())
        try:
            setup_logging(run)
            lost = _carry_out(config, run, options, signals, lock, leaving)
        finally:
            if dist.is_main():
                lock.release()
        if dist.is_main():
            summarise(run, lost)
        note_losses()


def _require_inputs(config: RunConfig) -> None:
    """Raises the error of models that are not here, with what is wrong with the prompts."""
    needs = config.needs_from_hub()
    try:
        require_models(needs)
    except AdrpoError:
        # Only now: a run that may start reads its prompts once, and later.
        together(lambda: require_models(needs), lambda: build_prompts(config.prompts))
        raise


def _take_folder(run: Path, lock: RunLock) -> None:
    make_folder(run)
    lock.acquire()


def _carry_out(
    config: RunConfig,
    run: Path,
    options: TrainOptions,
    signals: Signals,
    lock: RunLock,
    leaving: Leaving,
) -> str:
    """Trains from the newest checkpoint to the end, or to a stop; returns `Trainer.lost`."""
    start = find_start(config, run, options.fresh, options.allowed)
    if dist.is_main():
        _announce(config, start)
    store = Store(run, config.checkpoint, lock.check, config.engine.timeout_seconds)
    record = _open_record(run, start)
    if record is not None:
        leaving.acts.append(partial(_note_leaving, record))
    with (
        _recorded(record, signals, leaving) as trainers,
        _watched(config, run, record, trainers),
        failure.telling(),
        out_of_memory.named(config, run, lambda: _iteration(trainers)),
    ):
        with watchdog.phase("load"), not_left():
            config = decided(config, run, start.reader, options.choose)
            trainer = build_trainer(config, run, start, signals, store)
        leaving.over()
        trainers.append(trainer)
        dist.run_on_main(lambda: _prepare_files(config, run, start, trainer, lock))
        trainer.saver.check_room()
        _run(trainer, out_of_memory.named(config, run, lambda: trainer.counters.iteration))
        return trainer.lost()


def _announce(config: RunConfig, start: Start) -> None:
    """Prints the iteration of a resumed run, and the settings that changed since."""
    if start.iteration is None:
        return
    done = " (the last one)" if start.iteration >= config.iterations else ""
    say(f"resuming from iteration {start.iteration}{done}")
    for note in start.notes:
        say(f"changed since: {note}")


@contextmanager
def _recorded(
    record: StartRecord | None, signals: Signals, leaving: Leaving
) -> Iterator[list[Trainer]]:
    """A context that writes the outcome into a start's record. The body appends its trainer to the
    list when it is built."""
    trainers: list[Trainer] = []
    outcome, code, since = "failed", 1, None
    try:
        yield trainers
        lost = trainers[0].lost() if trainers else ""
        outcome, code = f"{DONE_BUT}{lost}" if lost else "done", 0
    except StopRequested:
        leaving.over()
        # All ranks raise it, but some may have had no signal.
        told = [pair for pair in dist.gather_objects((signals.name, signals.seconds)) if pair[0]]
        name, since = max(told, key=lambda pair: pair[1])
        outcome, code = f"stopped by {name}", STOPPED
        log.warning("%s: stopped %.1f s after it; start again to resume", name, since)
        raise
    except AdrpoError as error:
        outcome, code = str(error), exit_code(error)
        raise
    except Exception as error:
        if failure.is_lost(error):
            outcome, code = "lost another process", LOST
        raise
    finally:
        if record is not None:
            record.end(outcome, code, _iteration(trainers), since)


def _note_leaving(record: StartRecord, name: str, seconds: float) -> None:
    record.end(f"stopped by {name}", STOPPED, -1, seconds)


def _iteration(trainers: Sequence[Trainer]) -> int:
    """The iterations that are complete; -1 before the trainer is built."""
    return trainers[0].counters.iteration if trainers else -1


def _watched(
    config: RunConfig, run: Path, record: StartRecord | None, trainers: Sequence[Trainer]
) -> AbstractContextManager[object]:
    """The watchdog. Before it ends the process, it writes the outcome into the start's record."""
    seconds = config.limits.hang_seconds
    if seconds is None:
        return nullcontext()

    def note(line: str) -> None:
        if record is not None:
            record.end(f"hung: {line}", STOPPED, _iteration(trainers), None)

    return Watchdog(run, dist.rank(), seconds, note)


def _run(trainer: Trainer, memory: AbstractContextManager[None]) -> None:
    """Trains, and saves the last state. memory: names memory that runs out."""
    try:
        with memory, not_left():
            trainer.train()
    except StopRequested as stop:
        if stop.saveable:
            trainer.saver.save_now()
        else:
            trainer.saver.close()  # waits for a save under way
        raise
    except LimitReached:
        trainer.saver.save_now()  # collective: all ranks raise it at the same time
        raise
    except Exception as error:
        failure.tell_at_once(error)
        # A save under way is of an earlier, valid state.
        alone = dist.world_size() == 1 or failure.is_agreed(error)
        trainer.saver.close(None if alone else _LAST_SAVE)
        raise
    trainer.saver.save_now()
    trainer.check_learned()


def _open_record(run: Path, start: Start) -> StartRecord | None:
    """This start's record, on rank 0. Warns of each difference from the previous start."""
    environments = dist.gather_objects(starts.environment())
    if not dist.is_main():
        return None
    for line in starts.disagreements(environments):
        log.warning("the ranks differ: %s", line)
    before = starts.previous_start(run)
    record = StartRecord.begin(
        run,
        environments,
        launcher=dist.rank_facts().launcher,
        resumed_from=start.iteration,
        changed_settings=start.notes,
        found=start.repeated,
    )
    if before is not None and start.reader is not None:
        for line in starts.changes(before, record.content):
            log.warning("changed since the previous start: %s", line)
    return record


def _prepare_files(
    config: RunConfig, run: Path, start: Start, trainer: Trainer, lock: RunLock
) -> None:
    lock.check()  # loading may have taken long
    write_config(run, config.resolved())
    if start.reader is not None:
        cut_back(run, trainer.counters.iteration, trainer.counters.evaluated)
        return
    aside = set_lines_aside(run)
    if aside:
        say(f"no checkpoint yet: begins anew; the lines of before are kept in {', '.join(aside)}")
