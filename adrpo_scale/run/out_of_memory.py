"""Memory that ran out: the phase, the settings that need less, and whether another start helps.

The first time may be bad luck: fragments of a long run, another process on the GPU. The run may
then be started again, from its last checkpoint (exit code 85). An iteration's samples follow from
the seed: what runs out of memory in the same iteration and phase of two starts does so in every
one, and the second time ends the run (exit code 2).
"""

from __future__ import annotations

import json
import re
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from adrpo_scale.core import dist, failure, watchdog
from adrpo_scale.core.errors import OutOfMemory, exit_code
from adrpo_scale.core.files import own
from adrpo_scale.core.json_files import read_lines
from adrpo_scale.core.run_rows import MEMORY
from adrpo_scale.run.config import RunConfig
from adrpo_scale.run.registry import ALGORITHMS
from adrpo_scale.run.starts import records


@contextmanager
def named(config: RunConfig, run: Path, iteration: Callable[[], int]) -> Iterator[None]:
    """Turns memory that runs out inside the block into an OutOfMemory that names iteration, phase
    and remedies, on this rank alone. run: the run folder, which keeps a line of it. iteration:
    called for the number of iterations that are complete."""
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not failure.is_memory(error):
            raise
        phase = watchdog.failed_in()
        number = iteration() + (phase not in ("evaluation", "save"))  # these follow an iteration
        here = {"start": len(records(run)), "iteration": number, "phase": phase}
        is_repeated = any(_is_same(line, here) for line in read_lines(run / MEMORY))
        found = OutOfMemory(_message(config, number, phase, error, is_repeated), is_repeated)
        mine = {"rank": dist.rank(), "host": socket.gethostname(), "exit_code": exit_code(found)}
        _append(run / MEMORY, {**here, **mine})
        raise found from error


def _message(
    config: RunConfig, iteration: int, phase: str, error: BaseException, repeated: bool
) -> str:
    where = "while the run was loaded" if phase == "load" else f"in iteration {iteration}, {phase}"
    again = (
        "as in an earlier start, so that another one would end alike"
        if repeated
        else "start again to resume; a second time in the same place ends the run"
    )
    return f"memory ran out {where}: {cause(error)} {remedy(config, phase)}; {again}"


def cause(error: BaseException) -> str:
    """The first two sentences of an allocator's message: how much was asked for, of how much."""
    return " ".join(re.split(r"(?<=\.)\s", str(error).strip())[:2])


def remedy(config: RunConfig, phase: str) -> str:
    """What to try: settings that have less memory left to give are left out."""
    engine, chunk, rows = config.engine, config.domain.chunk, config.optimizer.micro_batch
    unit = ALGORITHMS[config.algorithm.name].rows_per_unit
    tried: list[str] = []
    if phase in ("rollout", "reward", "evaluation") and chunk > 1:
        tried.append(f"domain.rollout_chunk={chunk // 2}")
    if phase == "update" and rows > unit:
        tried.append(f"optimizer.micro_batch={rows // 2 // unit * unit}")
    if phase == "update" and not engine.activation_checkpointing:
        tried.append("engine.activation_checkpointing=true")
    more = [f"--set {setting}" for setting in tried]
    if not more:
        more += ["more processes"] if getattr(engine, "shard", "all") == "all" else []
        more += ["more processes with --set engine.shard=all"] if not more else []
        more += ["--set domain.train=lora"] if getattr(config.domain, "train", "") == "full" else []
    return f"Try {', '.join(more)}; adrpo-scale plan says what fits and where"


def _is_same(line: dict[str, Any], here: dict[str, Any]) -> bool:
    """Whether a line is of an earlier start, and of the same place in the run."""
    there = {name: line.get(name) for name in ("iteration", "phase")}
    return line.get("start") != here["start"] and there.items() <= here.items()


def _append(path: Path, line: dict[str, Any]) -> None:
    """Adds a line in one write: several ranks may run out of memory at once. A disk that takes no
    line must not hide the error."""
    text = json.dumps({"time": time.strftime("%F %T"), **line}) + "\n"
    with suppress(OSError), open(path, "a", opener=own) as file:
        file.write(text)
