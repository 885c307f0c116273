"""The beginning of a start: the checkpoint to resume from, found on rank 0 and broadcast."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from adrpo_scale.checkpoint.locate import ORIGIN, pin_origin, pinned_origin
from adrpo_scale.checkpoint.reader import Reader
from adrpo_scale.checkpoint.shelf import hash_part, newest_whole, remove_left_overs
from adrpo_scale.core import dist
from adrpo_scale.core.dist import Ask
from adrpo_scale.core.errors import ConfigError, LimitReached, RunFolderError
from adrpo_scale.core.types import Prompt
from adrpo_scale.domains.base import Domain
from adrpo_scale.run.compare import check_settings, is_allowed
from adrpo_scale.run.config import RunConfig
from adrpo_scale.run.folder import left_behind, remove_temporaries
from adrpo_scale.run.recorded import check_may_begin
from adrpo_scale.run.rollout_chunk import as_recorded
from adrpo_scale.run.starts import stalled_starts
from adrpo_scale.training.metrics import MetricsLog
from adrpo_scale.training.saver import Saver
from adrpo_scale.training.state import TrainingState

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Start:
    """The beginning of a start; by default iteration 0, from the base model.

    reader: the run's checkpoint to resume from. origin: the checkpoint whose trained weights the
    run began with (`init_from`). allowed: settings that `--allow-change` names. notes: the settings
    that changed since the checkpoint, one line each. repeated: work after the checkpoint that is
    done again, from `folder.left_behind`.
    """

    reader: Reader | None = None
    origin: Reader | None = None
    allowed: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    repeated: Mapping[str, Any] | None = None

    @property
    def iteration(self) -> int | None:
        """The checkpoint's iteration; None without a checkpoint."""
        return self.reader.iteration if self.reader is not None else None

    @property
    def left_out(self) -> frozenset[int] | None:
        """Ids of the prompts that the first start left out; None where they must be searched for:
        at a first start, and where other prompts are allowed."""
        document = self.reader.manifest.document if self.reader is not None else {}
        if "left_out" not in document or is_allowed("prompts", self.allowed):
            return None
        return frozenset(document["left_out"])


FROM_ZERO = Start()
"""A first start, from the base model."""


def find_start(
    config: RunConfig, run: Path, fresh: bool = False, allowed: Sequence[str] = ()
) -> Start:
    """The beginning of this start of the run in `run`. Collective.

    Also removes the remains of interrupted saves, sets broken checkpoints aside and copies the
    origin into the run's folder. fresh: refuse to resume. Raises, on every rank, CheckpointError
    where no checkpoint can be used, RunFolderError where `fresh` meets one, ConfigError where
    settings changed that `allowed` does not name, and LimitReached where the job's last starts made
    no progress.
    """
    found: Start = dist.lead(lambda ask: _find(config, run, fresh, allowed, ask), hash_part)
    if found.reader is not None:
        log.info("resuming from iteration %d (%s)", found.iteration, found.reader.folder.name)
    return found


def _find(config: RunConfig, run: Path, fresh: bool, allowed: Sequence[str], ask: Ask) -> Start:
    """`find_start`, on rank 0 only."""
    remove_temporaries(run)
    for name in remove_left_overs(run):
        log.info("removed %s, left by an interrupted save", name)
    reader, notes = newest_whole(run, ask), []
    if reader is not None:
        if fresh:
            raise RunFolderError(
                f"--fresh, but {run} has a checkpoint of iteration {reader.iteration}: choose "
                "another --run-dir, or leave --fresh out to resume from it"
            )
        recorded = reader.manifest.document["config"]
        notes = check_settings(reader, as_recorded(config, recorded), allowed)
    else:
        check_may_begin(run, fresh)
    origin = None
    if config.init_from is not None:
        origin = _pinned(config.init_from, run, is_first=reader is None, ask=ask)
    iteration = reader.iteration if reader is not None else None
    _check_not_looping(config, run, iteration)
    repeated = left_behind(run, iteration or 0)
    return Start(reader, origin, tuple(allowed), tuple(notes), repeated)


def _pinned(source: str, run: Path, is_first: bool, ask: Ask) -> Reader:
    """The checkpoint that the run began with. It is kept in the run's folder, because its own run
    may train further or be deleted."""
    pin = pin_origin if is_first else pinned_origin
    return pin(source, run / ORIGIN, ask)


def _check_not_looping(config: RunConfig, run: Path, iteration: int | None) -> None:
    """Raises LimitReached where the job's last starts left no new checkpoint: further requeues
    would burn the allocation."""
    job = os.environ.get("SLURM_JOB_ID")
    most = config.limits.max_stalled_lives
    stalled = stalled_starts(run, job, iteration)
    if len(stalled) >= most:
        ends = "; ".join(dict.fromkeys(str(start.get("outcome", "killed")) for start in stalled))
        raise LimitReached(
            f"job {job}: {len(stalled)} starts in a row ended without a new checkpoint ({ends}) "
            f"(limits.max_stalled_lives = {most}). Look at the log above and into {run}/stacks and "
            "submit again when the cause is fixed"
        )


def ids_of(*parts: Sequence[Prompt]) -> set[int]:
    """Ids of all prompts of several lists."""
    return {prompt.id for part in parts for prompt in part}


def usable(domain: Domain, prompts: Sequence[Prompt], start: Start) -> list[Prompt]:
    """The prompts of a run. Collective.

    A first start takes those that the domain can use. A resume takes the same ones, even where a
    clip has gone since: its cursor is valid only in the same list.
    """
    left_out = start.left_out
    if left_out is None:
        return domain.usable(prompts)
    return domain.as_before([prompt for prompt in prompts if prompt.id not in left_out])


def take_over(
    config: RunConfig, state: TrainingState, saver: Saver, metrics: MetricsLog, start: Start
) -> None:
    """Restores the checkpoint of a resume, or loads the weights that the run begins with."""
    reader, origin = start.reader, start.origin
    if reader is not None:
        state.restore(reader)
        saver.resumed()
        metrics.resumed_at(reader.iteration)
    elif origin is not None and not config.rebase_reference:
        there, here = origin.manifest.document["lora"], state.constant["lora"]
        if there != here:
            raise ConfigError(
                f"init_from = {config.init_from!r} has adapters {there}, this run {here}: use the "
                "same domain.train and domain.lora, or rebase_reference = true"
            )
        state.start_from(origin)
    for checkpoint in (reader, origin):
        if checkpoint is not None:
            checkpoint.close()  # otherwise a removed checkpoint keeps its disk space
