"""What a job refuses, in seconds, named, and without being requeued."""

from __future__ import annotations

import re

import pytest

from tests.slurm.jobs import Job, train
from tests.support import starts

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]


def test_a_wrong_config(cluster, tmp_path):
    arguments = train(tmp_path / "run", ["optimizer.learning_rat=1"])
    job = Job(cluster, tmp_path, ["--nodes=1"], arguments)
    assert job.wait_end() == "FAILED"
    assert "did you mean 'learning_rate'?" in job.log
    assert "== code 2: not requeued" in job.log and job.restarts == 0
    assert not job.run.exists()


def test_two_jobs_on_one_run_folder(cluster, tmp_path):
    arguments = train(tmp_path / "run", ["iterations=99"])
    first = Job(cluster, tmp_path, ["--nodes=1"], arguments, PAUSE="1")
    first.wait_iteration(1)
    second = Job(cluster, tmp_path / "second", ["--nodes=1"], arguments, PAUSE="1")
    assert second.wait_end() == "FAILED"
    assert f"is in use by job {first.id}" in second.log and "== code 2: not requeued" in second.log
    before = len(first.metrics())
    first.wait("more iterations", lambda: len(first.metrics()) > before)
    cluster.run("scancel", first.id)
    first.wait_end()
    assert len(first.starts()) == 1


def test_a_node_that_does_not_see_the_run_folder(cluster, tmp_path):
    (tmp_path / "runs").mkdir()
    blind = cluster.names[5]
    cluster.power_off(blind)
    cluster.power_on(blind, f"mount -t tmpfs none {tmp_path}/runs")
    try:
        job = Job(
            cluster,
            tmp_path,
            ["--nodes=2", f"--nodelist={cluster.names[4]},{blind}"],
            train(tmp_path / "runs/run", ["iterations=99"]),
        )
        assert job.wait_end() == "FAILED"
    finally:
        cluster.power_off(blind)
        cluster.power_on(blind)
    assert f"--exclude={blind}" in job.log, job.log
    assert "== code 4: not requeued" in job.log and job.restarts == 0


def test_a_disk_that_fills_up(cluster, tmp_path):
    """The last checkpoint stands, and the job is not put back onto the full disk."""
    (tmp_path / "runs").mkdir()
    node = cluster.names[5]
    cluster.power_off(node)
    cluster.power_on(node, f"mount -t tmpfs -o size=64m none {tmp_path}/runs")
    full = tmp_path / "runs/filler"
    try:
        job = Job(
            cluster,
            tmp_path,
            ["--nodes=1", f"--nodelist={node}"],
            train(tmp_path / "runs/run", ["iterations=99", "checkpoint.on_failure=stop"]),
            PAUSE="1",
            FILL=str(full),
        )
        job.wait("iteration 3", lambda: "iteration 3/" in job.log)
        cluster.inside(node, "touch", f"{full}.now")
        assert job.wait_end() == "FAILED"
        listed = cluster.inside(node, "ls", f"{tmp_path}/runs/run/checkpoints").stdout.split()
    finally:
        cluster.power_off(node)
        cluster.power_on(node)
    assert re.search(r"^error: .*(was not written: no room|cannot be written)", job.log, re.M), (
        job.log
    )
    assert "== code 2: not requeued" in job.log and 'File "<frozen runpy>"' not in job.log
    assert any(name.startswith("step-") and not name.endswith(".tmp") for name in listed)
    assert job.restarts == 0


def test_no_room_for_the_checkpoints(cluster, tmp_path):
    (tmp_path / "runs").mkdir()
    node = cluster.names[5]
    cluster.power_off(node)
    cluster.power_on(node, f"mount -t tmpfs -o size=1m none {tmp_path}/runs")
    try:
        arguments = train(tmp_path / "runs/run", ["iterations=99"])
        job = Job(cluster, tmp_path, ["--nodes=1", f"--nodelist={node}"], arguments)
        assert job.wait_end() == "FAILED"
    finally:
        cluster.power_off(node)
        cluster.power_on(node)
    assert "== code 2: not requeued" in job.log and "room" in job.log, job.log
    assert starts.committed_iterations(job.run) == []
