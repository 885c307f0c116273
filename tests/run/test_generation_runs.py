"""Runs whose rollouts another process draws, one beside each rank."""

from __future__ import annotations

import importlib
import os
import signal
from dataclasses import dataclass

import pytest

from adrpo_scale.checkpoint.shelf import CHECKPOINTS, committed
from tests.run import test_text_resume as text
from tests.support import starts
from tests.support.tiny import CONFIGS
from tests.support.waiting import wait_until

SETTINGS = [*text.SETTINGS, *text.FSDP2, "iterations=3", "optimizer.updates=1"]


@dataclass
class KillTheOther:
    """SIGKILL of the process beside rank 1 at its call number `call` of `generate`, once a
    checkpoint is there: as the kernel does where memory runs out."""

    call: int
    run: str

    def __call__(self, rank):
        kind = importlib.import_module("adrpo_scale.domains.generation.process").GenerationProcess
        real, calls = kind.generate, []

        def generate(this, *arguments):
            calls.append(this)
            if rank == 1 and len(calls) == self.call:
                wait_until(lambda: committed(self.run / CHECKPOINTS), "a checkpoint")
                os.kill(this.process.pid, signal.SIGKILL)
            return real(this, *arguments)

        kind.generate = generate


def started(folder, *settings, **options):
    path = CONFIGS / "demo" / "text_adrpo.toml"
    sets = [part for setting in [*SETTINGS, *settings] for part in ("--set", setting)]
    arguments = ["train", str(path), "--run-dir", str(folder / "run"), *sets]
    return starts.Started(folder, 2, arguments, **options)


@pytest.mark.slow
def test_a_run_beside_two_processes_of_which_one_is_killed_is_the_run_of_the_policy_alone(tmp_path):
    run = tmp_path / "two" / "run"
    start = started(tmp_path / "two", "domain.backend=process", prepare=KillTheOther(2, run))
    assert start.wait() == [86, 86], start.text()
    told = [line for line in start.text().splitlines() if "error: " in line]
    assert [line.partition(" on ")[0] for line in told] == ["[rank 1"]
    assert "the policy's copy, process " in told[0] and "was ended by SIGKILL" in told[0]
    assert starts.committed_iterations(run)[-1] < 3
    again = started(tmp_path / "two", "domain.backend=process")
    assert again.wait() == [0, 0], again.text()
    alone = started(tmp_path / "alone")
    assert alone.wait() == [0, 0], alone.text()
    assert starts.differences(run, tmp_path / "alone" / "run") == ["identity"]
