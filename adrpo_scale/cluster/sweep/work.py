"""Working through a sweep on this machine: a process per element, several at once.

Each process is `adrpo-scale sweep FILE --element N`, alone on one of the visible GPUs, which are
dealt over the places in turn. It is started again where it ended by accident, as a job is
requeued. A signal is passed on once: the elements save, and the same command goes on. Where this
process is killed, they are stopped by the signal that the kernel sends them.
"""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any, BinaryIO

from adrpo_scale.core.errors import LOST, STOPPED
from adrpo_scale.core.files import own
from adrpo_scale.run.sweep import Element

PARENT = "ADRPO_SWEEP_PARENT"  # process id of `sweep --run`, for its elements
ACCIDENTS = 3  # ends by accident of one element, after which it is left
_MOMENT = 0.2  # seconds between two looks
_SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT, signal.SIGHUP)
# A launcher's variables: an element is a process alone, whatever started the sweep.
_LAUNCHER = re.compile(
    r"(LOCAL_)?(RANK|WORLD_SIZE)|MASTER_(ADDR|PORT)|ADRPO_(LAUNCHER|NODES|NODE|PROCESSES|EXITS)"
    r"|GROUP_RANK|TORCHELASTIC_.*|SLURM_STEP_NUM_TASKS"
)


@dataclass(frozen=True)
class Job:
    """An element to train. command: of its process; log: file for what it prints."""

    element: Element
    command: Sequence[str]
    log: Path


@dataclass
class Working:
    """A process under way. place: its number among those at once. told: signals passed on to it."""

    job: Job
    process: subprocess.Popen[bytes]
    place: int
    began: float
    told: int = 0


@dataclass
class Worker:
    """The jobs of one command. codes: exit code of every job that is over, by element."""

    at_once: int
    gpus: Sequence[str]
    tell: Callable[[str], None]
    codes: dict[int, int] = field(default_factory=dict)
    running: list[Working] = field(default_factory=list)
    accidents: dict[int, int] = field(default_factory=dict)
    signals: int = 0
    ends_at_once: bool = False

    def work(self, jobs: Sequence[Job]) -> None:
        """Starts the jobs in order, at most `at_once` together, and returns when all are over or,
        after a signal, when those under way have ended."""
        waiting = list(jobs)
        with _heard(self._hear):
            while waiting or self.running:
                while waiting and not self.signals and len(self.running) < self.at_once:
                    self._start(waiting.pop(0))
                if not self.running:
                    return  # a signal: those that wait are not begun
                time.sleep(_MOMENT)
                self._pass_on()
                for one in [w for w in self.running if w.process.poll() is not None]:
                    self.running.remove(one)
                    if self._again(one):
                        waiting.insert(0, one.job)

    def _start(self, job: Job) -> None:
        place = min(set(range(self.at_once)) - {one.place for one in self.running})
        env = environment(os.environ)
        if self.gpus:
            env["CUDA_VISIBLE_DEVICES"] = self.gpus[place % len(self.gpus)]
        job.log.parent.mkdir(parents=True, exist_ok=True)
        with _log(job.log) as log:
            process = subprocess.Popen(
                job.command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=env,
                start_new_session=True,  # a terminal's Ctrl-C goes to this process alone
            )
        self.tell(f"{job.element}: begins, output in {job.log}")
        self.running.append(Working(job, process, place, time.monotonic()))

    def _again(self, one: Working) -> bool:
        """Whether a job that has ended is started again; tells its end."""
        code, element = one.process.returncode, one.job.element
        code = 128 - code if code < 0 else code
        minutes = (time.monotonic() - one.began) / 60
        number = element.number
        if code == 0:
            self.codes[number] = 0
            self.tell(f"{element}: done, {minutes:.1f} min")
            return False
        if self.signals:
            self.codes[number] = STOPPED
            self.tell(f"{element}: stopped")
            return False
        if not is_accident(code):
            self.codes[number] = code
            self.tell(f"{element}: exit code {code}, {last_line(one.job.log)}")
            return False
        self.accidents[number] = self.accidents.get(number, 0) + 1
        left = self.accidents[number] >= ACCIDENTS
        then = f"left after {ACCIDENTS} accidents" if left else "started again"
        self.tell(f"{element}: exit code {code}, {then}; {last_line(one.job.log)}")
        if left:
            self.codes[number] = code
        return not left

    def _hear(self, number: int, frame: FrameType | None) -> None:
        self.ends_at_once |= number == signal.SIGINT and self.signals > 0
        self.signals += 1

    def _pass_on(self) -> None:
        """Not in the handler, which may interrupt a start: that process would never be told."""
        for one in self.running:
            if one.told < self.signals:
                one.told = self.signals
                one.process.send_signal(signal.SIGKILL if self.ends_at_once else signal.SIGTERM)


def is_accident(code: int) -> bool:
    """Whether a start that ended so may succeed by the same command: a hang or memory that ran out
    for the first time, another process that was lost, a signal."""
    return code in (STOPPED, LOST) or code > 128


def exit_code_of(codes: Mapping[int, int], was_stopped: bool) -> int:
    """The exit code of the whole: that of a stop, or the lowest of elements that failed by
    themselves, or that of a lost process where others ended by accident; 0 where all are done."""
    bad = sorted(code for code in codes.values() if code)
    own_faults = [code for code in bad if not is_accident(code)]
    if was_stopped:
        return STOPPED
    return own_faults[0] if own_faults else LOST if bad else 0


def environment(env: Mapping[str, str]) -> dict[str, str]:
    """The environment of an element: without the launcher's variables, and with this process as its
    parent."""
    kept = {name: value for name, value in env.items() if not _LAUNCHER.fullmatch(name)}
    return kept | {PARENT: str(os.getpid())}


def visible_gpus(env: Mapping[str, str] = os.environ) -> list[str]:
    """The GPUs that this process may use, as CUDA_VISIBLE_DEVICES names them; [] without any."""
    stated = env.get("CUDA_VISIBLE_DEVICES")
    if stated is not None:
        return [part.strip() for part in stated.split(",") if part.strip()]
    try:
        done = subprocess.run(
            ["nvidia-smi", "--list-gpus"], capture_output=True, text=True, timeout=60
        )
    except (OSError, subprocess.SubprocessError):
        return []
    lines = [line for line in done.stdout.splitlines() if line.startswith("GPU ")]
    return [str(number) for number in range(len(lines))]


def last_line(log: Path) -> str:
    """The last line of a log that says something."""
    with suppress(OSError):
        lines = log.read_bytes()[-4000:].decode(errors="replace").splitlines()
        told = [line.strip() for line in lines if line.strip()]
        errors = [line for line in told if line.startswith("error: ")]
        if told:
            return (errors or told)[-1]
    return f"nothing in {log}"


def _log(path: Path) -> BinaryIO:
    return open(path, "ab", opener=own)


@contextmanager
def _heard(handler: Callable[[int, FrameType | None], Any]) -> Any:
    before = {number: signal.signal(number, handler) for number in _SIGNALS}
    try:
        yield
    finally:
        for number, earlier in before.items():
            signal.signal(number, earlier)


def end_with_sweep() -> None:
    """Has this element be asked to stop when the process that works through the sweep is gone."""
    from adrpo_scale.core.numbers import natural
    from adrpo_scale.core.parent import end_with

    parent = natural(os.environ.get(PARENT, ""))
    if parent is not None:
        end_with(parent, signal.SIGTERM)


def command_of(file: Path, number: int, more: Sequence[str]) -> list[str]:
    """The command of an element's process."""
    words = ["sweep", str(file), "--element", str(number), *more]
    return [sys.executable, "-m", "adrpo_scale", *words]
