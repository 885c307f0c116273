"""The project's own command as processes: alone, or as the ranks of a launcher."""

from __future__ import annotations

import os
import socket
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from subprocess import DEVNULL, STDOUT, Popen, TimeoutExpired

REPOSITORY = Path(__file__).parents[3]
CONFIGS = REPOSITORY / "configs" / "demo"
TASKS = {name: CONFIGS / f"{name}_adrpo.toml" for name in ("image", "text", "audio")}


@dataclass
class Running:
    """One process under way, its output in a file."""

    process: Popen[bytes]
    output: Path
    begin: float = field(default_factory=time.monotonic)
    ended: float | None = None

    def wait(self, seconds: float) -> int | None:
        """Its exit code, negative of a signal; None where it did not end in time and was killed."""
        try:
            code: int | None = self.process.wait(max(0.1, seconds))
        except TimeoutExpired:
            self.process.kill()
            self.process.wait()
            code = None
        self.ended = time.monotonic()
        return code

    @property
    def seconds(self) -> float:
        return (self.ended or time.monotonic()) - self.begin

    @property
    def text(self) -> str:
        return self.output.read_text(errors="replace")

    @property
    def tail(self) -> str:
        return "\n".join(self.text.strip().splitlines()[-8:])


def start(words: Sequence[str], output: Path, more: Mapping[str, str] | None = None) -> Running:
    """`python -m words...`, output and errors into a file."""
    output.parent.mkdir(parents=True, exist_ok=True)
    with output.open("wb") as file:
        process = Popen(
            [sys.executable, "-m", *words],
            cwd=REPOSITORY,
            env={**os.environ, **(more or {})},
            stdin=DEVNULL,
            stdout=file,
            stderr=STDOUT,
        )
    return Running(process, output)


def start_ranks(
    words: Sequence[str], world: int, folder: Path, *, same_device: bool = False
) -> list[Running]:
    """The same words on `world` ranks. same_device: each rank is the first of a node of its own, so
    that all take device 0."""
    with socket.socket() as free:
        free.bind(("", 0))
        port = free.getsockname()[1]
    shared = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": str(world)}
    shared["LOCAL_WORLD_SIZE"] = "1" if same_device else str(world)
    return [
        start(
            words,
            folder / f"rank-{rank}.txt",
            {**shared, "RANK": str(rank), "LOCAL_RANK": "0" if same_device else str(rank)},
        )
        for rank in range(world)
    ]


def wait_all(ranks: Sequence[Running], seconds: float) -> list[int | None]:
    """Exit codes, after at most `seconds` together."""
    deadline = time.monotonic() + seconds
    return [rank.wait(deadline - time.monotonic()) for rank in ranks]


def train_words(config: Path, run: Path, settings: Sequence[str], *flags: str) -> list[str]:
    """The words of `train` after the name of the program."""
    sets = [word for setting in settings for word in ("--set", setting)]
    return ["train", str(config), "--run-dir", str(run), *sets, *flags]


def command(words: Sequence[str], preparation: str = "") -> list[str]:
    """The words of the real command, after a preparation of `command.py`."""
    if not preparation:
        return ["adrpo_scale", *words]
    return ["tests.gpu.steps.command", preparation, *words]
