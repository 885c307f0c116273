"""A sweep as an array: a node is lost, an element reaches a limit, and runs that share a node."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from adrpo_scale.cli import main as cli
from adrpo_scale.run.sweep import read_sweep, toml
from adrpo_scale.run.sweep_runs import runs_of
from tests.slurm.jobs import CONFIG, PACED, ROOT, Job
from tests.support.starts import committed_iterations, records_of

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1500)]
MEASURED = ["iterations=4", "evaluation.every=2", "evaluation.samples_per_prompt=2"]
PATIENCE = 900.0  # seconds for six runs on a busy machine


def sweep_file(folder: Path, tables: str) -> Path:
    """The settings of a PACED run that is evaluated, and `tables`."""
    settings = dict(text.partition("=")[::2] for text in [*PACED, *MEASURED])
    once = "".join(f"{json.dumps(key)} = [{value}]\n" for key, value in settings.items())
    (folder / "mine.toml").write_text(f"base = {toml(CONFIG)}\n[grid]\n{once}{tables}")
    return folder / "mine.toml"


def shown(*words: object) -> str:
    answer = CliRunner().invoke(cli.app, [str(word) for word in words])
    assert answer.exit_code == 0, answer.output
    return answer.stdout.strip()


@pytest.fixture
def here(cluster, tmp_path, monkeypatch):
    """Commands of this process see the cluster and the runs of jobs in `tmp_path`."""
    monkeypatch.setenv("ADRPO_RUNS", str(tmp_path / "runs"))
    monkeypatch.setenv("SLURM_CONF", cluster.env["SLURM_CONF"])
    monkeypatch.chdir(ROOT)


def test_six_runs_with_a_node_lost_and_a_limit_reached(cluster, tmp_path, here):
    limits = "[zip]\nseed = [0, 1, 2, 3, 4, 5]\nlimits.min_reward = [-1, -1, -1, -1, -1, 1e6]\n"
    file = sweep_file(tmp_path, limits)
    runs = [run.folder for run in runs_of(read_sweep(file))]
    options = ["--nodes=1", "--array=0-5%2", "--exclusive"]
    env = {"PAUSE": "1", "ADRPO_PROCESSES": "1"}  # of the eight that an exclusive node has
    job = Job(cluster, tmp_path, options, [str(file)], script="slurm/sweep.sbatch", **env)
    elements = [job.element(number, run) for number, run in enumerate(runs)]
    elements[1].wait_iteration(2, PATIENCE)
    (lost,) = elements[1].nodes()
    cluster.power_off(lost)
    elements[1].wait("the requeue", lambda: elements[1].restarts == 1)
    ends = [element.wait_end(PATIENCE) for element in elements]
    cluster.power_on(lost)
    assert ends == ["COMPLETED"] * 5 + ["FAILED"], job.log
    told = [len(records_of(run)) for run in runs]
    assert told == [1, 2, 1, 1, 1, 1] and records_of(runs[1])[1]["resumed_from"] >= 2
    line = (
        "5 done · 1 limit (#5 seed=5 min_reward=1000000.0: reward, iteration 1) · "
        "1 started again (#1 seed=1 min_reward=-1: start 1 ended without a word)"
    )
    assert shown("status", "--sweep", file) == line
    table = shown("report", "--sweep", file)
    assert table.splitlines()[-1] == f"{file}: {line}"
    assert "adrpo" in table
    assert "== code 3: not requeued" in job.log and "unfit" not in job.log
    assert "--array=5 slurm/sweep.sbatch" in shown("sweep", file, "--again", "limit")


def test_runs_share_a_node_and_are_requeued_together(cluster, tmp_path, here):
    file = sweep_file(tmp_path, "seed = [0, 1, 2]\n")
    runs = [run.folder for run in runs_of(read_sweep(file))]
    options = ["--nodes=1", "--array=0", "--gpus-per-node=2"]
    arguments = [str(file), "--per-node", "2"]
    job = Job(cluster, tmp_path, options, arguments, script="slurm/sweep.sbatch", PAUSE="2")
    block = job.element(0, runs[0])

    def has_begun() -> bool:
        return all(max([0, *committed_iterations(run)]) >= 1 for run in runs[:2])

    block.wait("a checkpoint of both", has_begun, PATIENCE)
    cluster.run("scancel", "--batch", "--signal=USR1", block.id)
    block.wait("the requeue", lambda: block.restarts == 1)
    assert block.wait_end(PATIENCE) == "COMPLETED", job.log
    for run in runs[:2]:
        first, second = records_of(run)
        assert first["exit_code"] == 85 and second["outcome"] == "done"
        assert second["resumed_from"] == first["iteration"] >= 1
    assert not runs[2].exists()  # of the next block
    assert shown("status", "--sweep", file) == "2 done · 1 to do"
