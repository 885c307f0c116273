"""A process that has lost its run folder, and goes on as if no time had passed, writes no more."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

from adrpo_scale.checkpoint.reader import Reader
from adrpo_scale.checkpoint.shelf import committed
from adrpo_scale.core.run_rows import metric_rows
from tests.support import starts
from tests.support.faults import SignalAt
from tests.support.tiny import records
from tests.support.waiting import wait_until

SETTINGS = ["iterations=4", "checkpoint.every_iterations=1", "evaluation.every=2"]
OWN = ("lives/01.json", "logs/", "tensorboard/", "stacks/")  # of the start alone, or appended to

SLOW = pytest.mark.slow
PLACES = [  # (function, number of its call before which the process is stopped)
    ("adrpo_scale.training.trainer:Trainer._log_iteration", 2),
    ("adrpo_scale.checkpoint.store:Store._commit", 2),
    pytest.param("adrpo_scale.checkpoint.store:Store._make_room", 2, marks=SLOW),
    pytest.param("adrpo_scale.checkpoint.store:_write_file", 2, marks=SLOW),
    pytest.param("adrpo_scale.training.trainer:numbers_of", 2, marks=SLOW),
    pytest.param("adrpo_scale.run.train:_prepare_files", 1, marks=SLOW),
]


def is_stopped(process):
    return Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()[0] == "T"


def contents(run):
    """What lies in the run's folder, but for what a start has for itself."""
    files = (path for path in sorted(run.rglob("*")) if path.is_file())
    named = {path.relative_to(run).as_posix(): path.read_bytes() for path in files}
    return {name: content for name, content in named.items() if not name.startswith(OWN)}


@pytest.mark.parametrize(("place", "call"), PLACES)
def test_a_start_that_was_suspended_finds_its_run_finished_and_leaves_it(tmp_path, place, call):
    stop = SignalAt(place, call, signals=(signal.SIGSTOP,))
    first, run = starts.train(tmp_path, 1, SETTINGS, prepare=stop), tmp_path / "run"
    wait_until(lambda: is_stopped(first.processes[0]), "the stop")
    os.utime(run / "lock.json", (0, 0))  # it has been silent for long
    second = starts.Started(tmp_path / "second", 1, starts.train_arguments(run, SETTINGS))
    assert second.wait() == [0], second.text()
    before = contents(run)
    first.signal(signal.SIGCONT)
    assert first.wait() == [2], first.text()
    assert "Nothing more is written" in first.text()
    assert contents(run) == before
    lines = records(run)
    assert [line["iteration"] for line in lines] == [1, 2, 3, 4]
    assert metric_rows(run / "metrics.jsonl") == lines
    for folder in committed(run / "checkpoints").values():
        assert list(Reader(folder).faults()) == []
