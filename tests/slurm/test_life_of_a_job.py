"""What becomes of a job that is signalled, killed, hung, preempted, cancelled or has lost a node."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

from tests import lives
from tests.slurm.jobs import CONFIG, PACED, Job, train
from tests.tiny import records

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

DEMO = ["iterations=12", "evaluation.every=0", "checkpoint.every_iterations=2"]


def uninterrupted(folder: Path, world: int, arguments: list[str]) -> Path:
    """The same run in as many processes and one go, without Slurm."""
    arguments = [str(folder / "plain") if a.endswith("/run") else a for a in arguments]
    life = lives.Life(folder / "plain-life", world, ["train", *arguments])
    assert life.wait(240) == [0] * world, life.text()
    return folder / "plain"


def test_three_lives_equal_an_uninterrupted_run(cluster, tmp_path):
    sets = [part for s in DEMO for part in ("--set", s)]
    arguments = [CONFIG, "--run-dir", str(tmp_path / "run"), *sets]
    job = Job(cluster, tmp_path, ["--nodes=4", "--gpus-per-node=2"], arguments)
    for life, iteration in ((1, 3), (2, 7)):
        job.wait_life(life)
        job.wait("progress", lambda least=iteration: len(job.metrics()) >= least)
        job.usr1()
        job.wait("the requeue", lambda count=life: job.restarts == count)
    assert job.wait_end() == "COMPLETED", job.log
    plain = uninterrupted(tmp_path, 8, arguments)
    assert lives.differences(job.run, plain) == []
    told = job.lives()
    assert [life["world_size"] for life in told] == [8, 8, 8]
    assert [life["outcome"] for life in told] == ["stopped by SIGUSR1"] * 2 + ["done"]
    assert len(job.restart_lines()) == 3  # one log, gone on with
    assert "restart 2" in job.log and job.log.rstrip().endswith("== done")
