"""What becomes of a job that is signalled, killed, hung, preempted, cancelled, or loses a node."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path

import pytest

from tests.slurm.jobs import CONFIG, PACED, Job, train
from tests.support import starts
from tests.support.closeness import drifted
from tests.support.tiny import records

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

DEMO = ["iterations=12", "evaluation.every=0", "checkpoint.every_iterations=2"]


def uninterrupted(folder: Path, world: int, arguments: list[str]) -> Path:
    """The same run in as many processes and one go, without Slurm."""
    arguments = [str(folder / "plain") if a.endswith("/run") else a for a in arguments]
    start = starts.Started(folder / "plain-start", world, ["train", *arguments])
    assert start.wait(240) == [0] * world, start.text()
    return folder / "plain"


@pytest.fixture(scope="module", autouse=True)
def waiting(cluster, tmp_path_factory):
    """Jobs that mostly wait, begun together and looked at by the tests after them."""
    folder = tmp_path_factory.mktemp("waiting")
    limited = [f"--nodelist={cluster.names[10]}", "--time=2", "--signal=B:USR1@20"]
    trigger = folder / "hang"
    trigger.touch()
    paths = {name: folder / name.replace(" ", "-") for name in ("time limit", "hangs")}
    yield {
        "time limit": Job(
            cluster,
            paths["time limit"],
            limited,
            train(paths["time limit"] / "run", ["iterations=40"]),
            PAUSE="3",  # longer in all than the limit, and a start on a busy machine gets somewhere
        ),
        "hangs": Job(
            cluster,
            paths["hangs"],
            [f"--nodelist={cluster.names[11]}", "--gpus-per-node=2"],
            train(paths["hangs"] / "run", ["limits.hang_seconds=4"]),
            HANG=str(trigger),
        ),
    }
    trigger.unlink()


def test_three_starts_equal_an_uninterrupted_run(cluster, tmp_path):
    sets = [part for s in DEMO for part in ("--set", s)]
    arguments = [CONFIG, "--run-dir", str(tmp_path / "run"), *sets]
    job = Job(cluster, tmp_path, ["--nodes=4", "--gpus-per-node=2"], arguments)
    for start, iteration in ((1, 3), (2, 7)):
        job.wait_start(start)
        job.wait("progress", lambda least=iteration: len(job.metrics()) >= least)
        job.usr1()
        job.wait("the requeue", lambda count=start: job.restarts == count)
    assert job.wait_end() == "COMPLETED", job.log
    plain = uninterrupted(tmp_path, 8, arguments)
    assert starts.differences(job.run, plain) == []
    told = job.starts()
    assert [start["world_size"] for start in told] == [8, 8, 8]
    assert [start["outcome"] for start in told] == ["stopped by SIGUSR1"] * 2 + ["done"]
    assert len(job.restart_lines()) == 3  # one log, gone on with
    assert "restart 2" in job.log and job.log.rstrip().endswith("== done")


def test_a_node_that_dies_in_mid_iteration(cluster, tmp_path):
    arguments = train(tmp_path / "run", ["iterations=8"])
    job = Job(cluster, tmp_path, ["--nodes=2"], arguments, PAUSE="1")
    job.wait_iteration(3)
    lost = job.nodes()[1]
    cluster.power_off(lost)
    job.wait("the requeue", lambda: job.restarts == 1)
    assert job.wait_end() == "COMPLETED", job.log
    cluster.power_on(lost)
    first, second = job.starts()
    assert first.get("outcome") in (None, "lost another process") and second["resumed_from"] >= 3
    assert second["world_size"] == 2 and lost not in job.nodes()
    assert starts.differences(job.run, uninterrupted(tmp_path, 2, arguments)) == []


def test_a_node_that_dies_when_there_is_no_other(cluster, tmp_path):
    """Two to four are enough: fewer processes, the same samples."""
    arguments = train(tmp_path / "run", ["iterations=6"])
    options = ["--nodes=2-4", "--partition=four"]
    job = Job(cluster, tmp_path, options, arguments, PAUSE="1")
    job.wait_iteration(2)
    assert len(job.nodes()) == 4
    lost = job.nodes()[3]
    cluster.power_off(lost)
    job.wait("the requeue", lambda: job.restarts == 1)
    assert job.wait_end() == "COMPLETED", job.log
    cluster.power_on(lost)
    assert [start["world_size"] for start in job.starts()] == [4, 3]
    plain = records(uninterrupted(tmp_path, 2, arguments))
    found = job.metrics()
    assert [line["samples"] for line in found] == [line["samples"] for line in plain]
    for name in ("reward", "loss"):
        expected = [line[name] for line in plain]
        assert [line[name] for line in found] == drifted(expected, updates=6, terms=0.1)


def test_a_rank_that_hangs(cluster, tmp_path):
    trigger = tmp_path / "hang"
    arguments = train(tmp_path / "run", ["iterations=5", "limits.hang_seconds=6"])
    job = Job(cluster, tmp_path, ["--nodes=2"], arguments, PAUSE="1", HANG=str(trigger))
    job.wait_iteration(2)
    trigger.touch()
    job.wait("the requeue", lambda: job.restarts == 1, seconds=240)  # a slow reward has patience
    trigger.unlink()
    assert job.wait_end() == "COMPLETED", job.log
    first, second = job.starts()
    assert first["outcome"].startswith("hung: rank 0 on ") and first["exit_code"] == 85
    assert second["resumed_from"] >= 2
    stacks = [(job.run / f"stacks/rank-{rank:04d}.txt").read_text() for rank in (0, 1)]
    assert "in reward" in stacks[1] and "tests/slurm/rewards.py" in stacks[1]  # the culprit's line
    assert "in reward" in stacks[0] and "rewards.py" not in stacks[0]  # waits for it


def test_a_rank_killed_by_the_kernel(cluster, tmp_path):
    arguments = train(tmp_path / "run", ["iterations=5"])
    job = Job(cluster, tmp_path, ["--nodes=2"], arguments, PAUSE="1")
    job.wait_iteration(2)
    os.kill(job.pid(rank=1), signal.SIGKILL)
    assert job.wait_end() == "COMPLETED", job.log
    assert "rank 1 ended with code 137" in job.log
    assert "== code 137, a process was killed by signal 9: requeue" in job.log
    assert job.restarts == 1 and job.starts()[1]["resumed_from"] >= 2


@pytest.mark.parametrize("partition", ["main", "cancel30"])
def test_cancelled(cluster, tmp_path, partition):
    """Also where Slurm might have preempted it, which must not be mistaken for it."""
    arguments = train(tmp_path / "run", ["iterations=999"])
    options = ["--nodes=1", f"--partition={partition}"]
    job = Job(cluster, tmp_path, options, arguments, PAUSE="1")
    job.wait_iteration(2)
    cluster.run("scancel", job.id)
    assert job.wait_end() == "CANCELLED"
    job.wait("the log's last line", lambda: "cancelled, not requeued" in job.log, 20)
    (start,) = job.starts()
    assert start["outcome"].startswith("stopped by SIG")
    assert starts.committed_iterations(job.run)[-1] == start["iteration"] >= 2
    assert job.restarts == 0


PREEMPTIBLE = ("requeue0", "requeue30", "cancel0", "cancel30")


def test_preempted(cluster, tmp_path):
    """By REQUEUE and by CANCEL, with and without a grace period: saved, once requeued, finished."""
    nodes = dict(zip(PREEMPTIBLE, cluster.names[6:10], strict=True))
    jobs = {
        name: Job(
            cluster,
            tmp_path / name,
            [f"--nodelist={nodes[name]}", f"--partition={name}"],
            train(tmp_path / name / "run", ["iterations=10"]),
            PAUSE="1",
        )
        for name in PREEMPTIBLE
    }
    for job in jobs.values():
        job.wait_iteration(2)
    wanted = f"--nodelist={','.join(nodes.values())}"
    urgent = ["--partition=main", wanted, "--nodes=4", "--exclusive", "--wrap=sleep 2"]
    cluster.sbatch(*urgent, f"--output={tmp_path}/urgent.txt", cwd=tmp_path)
    for name, job in jobs.items():
        job.wait(f"{name}: the requeue", lambda job=job: job.restarts == 1)
    for name, job in jobs.items():
        assert job.wait_end() == "COMPLETED", (name, job.log)
        assert job.restarts == 1 and len(job.restart_lines()) == 2, (name, job.log)
        first, second = job.starts()
        assert first["outcome"].startswith("stopped by SIG"), name
        assert second["resumed_from"] == first["iteration"] >= 2, name


def test_an_array_of_seeds(cluster, tmp_path):
    """Each element has a run of its own, and is stopped and requeued by itself."""
    sets = [part for s in [*PACED, "iterations=6", "seed=%a"] for part in ("--set", s)]
    arguments = [CONFIG, "--run-dir", str(tmp_path / "run-%a"), *sets]
    both = Job(cluster, tmp_path, ["--nodes=1", "--array=0-1"], arguments, PAUSE="1")
    elements = [both.element(number, tmp_path / f"run-{number}") for number in (0, 1)]
    elements[1].wait_iteration(2)
    elements[1].usr1()
    for seed, job in enumerate(elements):
        assert job.wait_end() == "COMPLETED", both.log
        assert json.loads((job.run / "config.json").read_text())["seed"] == seed
        assert len(job.starts()) == 1 + seed == 1 + job.restarts


def test_where_requeue_is_not_allowed_a_chain_goes_on(cluster, tmp_path):
    arguments = train(tmp_path / "run", ["iterations=5"])
    options = ["--nodes=1", "--no-requeue", "--job-name=chain", "--dependency=singleton"]
    first, second = (Job(cluster, tmp_path, options, arguments, PAUSE="1") for _ in range(2))
    first.wait_iteration(2)
    first.usr1()
    assert first.wait_end() == "FAILED"
    assert "== requeue is not allowed: submit the same again, or a chain of jobs" in first.log
    assert second.wait_end() == "COMPLETED", second.log
    assert [start["job_id"] for start in second.starts()] == [first.id, second.id]
    assert second.starts()[1]["resumed_from"] >= 2
    export = Job(
        cluster,
        tmp_path / "export",
        [f"--dependency=afterok:{second.id}"],
        [str(second.run), "--to", str(tmp_path / "lora"), "--as", "adapter"],
        script="slurm/export.sbatch",
    )
    assert export.wait_end() == "COMPLETED", export.log
    assert (tmp_path / "lora/pytorch_lora_weights.safetensors").exists()


@pytest.mark.timeout(1000)
def test_a_time_limit(waiting):
    job = waiting["time limit"]
    assert job.wait_end(900) == "COMPLETED", job.log  # on a busy machine a start has few iterations
    *stopped, last = job.starts()  # more than two on a slow machine
    assert stopped and last["outcome"] == "done"
    for start, following in zip(stopped, job.starts()[1:], strict=True):
        assert (start["outcome"], start["exit_code"]) == ("stopped by SIGUSR1", 85)
        # -1: on a slow machine a start is stopped while it still loads, with nothing new to save.
        while_loading = start["iteration"] == -1
        reached = start["resumed_from"] if while_loading else start["iteration"]
        assert following["resumed_from"] == reached and (reached or 0) < 40
    assert [line["iteration"] for line in job.metrics()] == list(range(1, 41))


def test_a_job_that_gets_nowhere_is_not_requeued_for_ever(waiting):
    job = waiting["hangs"]
    assert job.wait_end(seconds=300) == "FAILED", job.log
    assert job.restarts == 3
    assert "3 starts in a row ended without a new checkpoint (hung: rank" in job.log
    assert "== code 3: not requeued" in job.log
