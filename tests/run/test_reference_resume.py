"""Runs with a moving reference in pieces: killed, on other processes, on another engine, forked."""

from __future__ import annotations

import signal

import pytest

from tests.run.test_resume import EVERY, FSDP2, ITERATION, ZERO3
from tests.support import starts
from tests.support.faults import DieAt
from tests.support.tiny import FULL, records

EMA = ["reference.kind=ema", "reference.decay=0.5"]
LIKE = [*EVERY, *EMA]


def train(folder, world, *settings, prepare=None):
    """A start to its end; returns the run's folder."""
    start = starts.train(folder, world, [*LIKE, *settings], prepare=prepare)
    codes = start.wait()
    if prepare is None:
        assert codes == [0] * world, start.text()
    else:
        assert -signal.SIGKILL in codes and 0 not in codes
    return folder / "run"


@pytest.mark.parametrize(
    ("settings", "world"),
    [
        ([], 1),
        *(
            pytest.param(*case, marks=pytest.mark.slow)
            for case in ((ZERO3, 2), ([*FULL, *FSDP2], 2), ([*FULL, *ZERO3], 2))
        ),
    ],
    ids=["lora", "lora-zero3", "full-fsdp2", "full-zero3"],
)
def test_a_killed_run_goes_on_to_the_bit(tmp_path, settings, world):
    """Killed in iteration 4, when iteration 2 is the last that was saved."""
    run = tmp_path / "pieces" / "run"
    at = DieAt(ITERATION, 4, run / "checkpoints" / "step-000002")
    rarely = "checkpoint.every_iterations=2"
    train(tmp_path / "pieces", world, *settings, rarely, prepare=at)
    train(tmp_path / "pieces", world, *settings)
    assert starts.records_of(run)[-1]["resumed_from"] == 2
    whole = train(tmp_path / "whole", world, *settings)
    assert starts.differences(run, whole) == []
    assert "reference" in starts.newest(run).manifest.sets


@pytest.mark.slow
@pytest.mark.parametrize("trained", [[], FULL], ids=["lora", "full"])
def test_processes_and_engine_may_change_from_start_to_start(tmp_path, trained):
    for done, (world, engine) in enumerate(((3, FSDP2), (2, ZERO3), (4, ZERO3), (1, FSDP2)), 2):
        run = train(tmp_path / "moved", world, *trained, *engine, f"iterations={done}")
    starts.assert_close_runs(run, train(tmp_path / "stayed", 2, *trained, *FSDP2))


def test_the_reference_of_a_fork_begins_at_its_policy(tmp_path):
    origin = train(tmp_path / "origin", 1, "iterations=2")
    fork = train(tmp_path / "fork", 1, "iterations=2", f"init_from={origin}")
    first, second = records(fork)
    assert first["divergence"] > 0
    assert first["divergence_to_reference"] == 0 < second["divergence_to_reference"]
