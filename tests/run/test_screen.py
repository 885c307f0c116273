"""A run whose console cannot be written: it trains to its end, and its folder has everything."""

from __future__ import annotations

import os
import shlex
import sys

from adrpo_scale.run import summary
from tests.support.starts import committed_iterations, records_of, train

SETTINGS = ["iterations=2", "evaluation.every=0"]


def nobody_reads(rank):
    """Standard output is a pipe whose reader has ended, as `| head -1` does; no standard error."""
    reader, writer = os.pipe()
    os.close(reader)
    os.dup2(writer, 1)
    os.close(2)
    sys.stderr = None


def old_terminal(rank):
    """An ASCII terminal, and standard error on a full disk."""
    os.dup2(os.open("/dev/full", os.O_WRONLY), 2)
    sys.stdout.reconfigure(encoding="ascii")


def outcome(folder, prepare):
    folder = folder / "my runs"
    start = train(folder, 1, SETTINGS, prepare=prepare)
    assert start.wait() == [0]
    run = folder / "run"
    assert committed_iterations(run) == [2]
    assert [record["outcome"] for record in records_of(run)] == ["done"]
    log = (run / "logs/rank-000.log").read_text()
    assert "iteration 1/2  reward" in log and "iteration 2/2  reward" in log
    assert f"tensorboard --logdir {shlex.quote(str(run / 'tensorboard'))}" in log
    return start.text(), log


def test_without_anybody_who_reads_a_run_goes_on(tmp_path):
    shown, log = outcome(tmp_path, nobody_reads)
    assert log.count("stdout cannot be written (Broken pipe): the run goes on") == 1
    assert log.count("stderr cannot be written (it is closed): the run goes on") == 1
    assert shown == ""


def test_in_ascii_and_with_a_full_disk_behind_standard_error_a_run_goes_on(tmp_path):
    shown, log = outcome(tmp_path, old_terminal)
    assert "iteration 2/2  reward" in shown and "beta 0.00...2.00" in shown
    assert "beta 0.00…2.00" in log
    assert shown.isascii()


def test_a_figure_that_cannot_be_drawn_is_no_error_of_a_run_that_is_saved(tmp_path, caplog):
    (tmp_path / "file").touch()
    row = {"run": "r", "split": "train", "metric": "reward", "iteration": 0, "value": 1.0}
    summary._draw([row], tmp_path / "file" / "curves.png")
    assert "curves.png cannot be written: [Errno 20]" in caplog.text
