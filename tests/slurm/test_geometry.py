"""How many ranks a job has, and where, whichever way the GPUs were asked for.

The ranks are a shell script here: these jobs take a second each.
"""

from __future__ import annotations

import shutil

import pytest

from tests.slurm.jobs import ROOT, Job

pytestmark = [pytest.mark.slow, pytest.mark.timeout(120)]
SHOW = """#!/bin/bash
echo "rank $RANK/$WORLD_SIZE on $(hostname) $LOCAL_RANK/$LOCAL_WORLD_SIZE head $MASTER_ADDR" \\
    "cores $(nproc) offline $HF_HUB_OFFLINE tag $TAG seed $(grep -oP '(?<=seed=)\\S+' <<<"$*")"
"""


@pytest.fixture
def checkout(tmp_path):
    """A checkout of the scripts alone, with a site.env, whose Python is SHOW."""
    for folder in ("slurm", "launchers"):
        shutil.copytree(ROOT / folder, tmp_path / "checkout" / folder)
    show = tmp_path / "checkout/show"
    show.write_text(SHOW)
    show.chmod(0o755)
    site = f'export ADRPO_PYTHON={show}\nexport ADRPO_PREFIX="env TAG=site"\n'
    (tmp_path / "checkout/slurm/site.env").write_text(site)
    return tmp_path / "checkout"


def ranks_of(cluster, checkout, options, *arguments, **env):
    """The lines of the ranks, in order, and the job."""
    job = Job(
        cluster,
        checkout.parent,
        options,
        ["some.toml", *arguments],
        script=str(checkout / "slurm/train.sbatch"),
        ADRPO_HOME=str(checkout),
        **env,
    )
    job.wait_end()
    lines = [line for line in job.log.splitlines() if line.startswith("rank ")]
    return sorted(lines, key=lambda line: int(line.split()[1].split("/")[0])), job


def test_ranks_that_die_at_once_are_not_started_for_ever(cluster, checkout):
    (checkout / "show").write_text("#!/bin/bash\nkill -KILL $$\n")
    _, job = ranks_of(cluster, checkout, ["--nodes=1", "--gpus-per-node=1"])
    assert job.state == "FAILED" and job.restarts == 2, job.log
    assert "three starts in a row were over at once; not requeued" in job.log


@pytest.mark.parametrize(
    ("options", "nodes", "processes"),
    [
        (["--gpus-per-node=2", "--nodes=2"], 2, 2),
        (["--gres=gpu:3", "--nodes=2"], 2, 3),
        (["--gpus-per-node=a6000:4", "--nodes=1"], 1, 4),
        (["--nodes=2-4", "--partition=four", "--gpus-per-node=1"], 4, 1),
        (["--gpus-per-node=8", "--nodes=10"], 10, 8),
    ],
)
def test_ranks(cluster, checkout, options, nodes, processes):
    options = [*options, "--cpus-per-task=16"]
    lines, job = ranks_of(cluster, checkout, options)
    world = nodes * processes
    hosts = job.nodes()
    assert len(lines) == world and len(hosts) == nodes, job.log
    for rank, line in enumerate(lines):
        place = f"on {hosts[rank // processes]} {rank % processes}/{processes}"
        assert line.startswith(f"rank {rank}/{world} {place} head {hosts[0]} "), job.log
        assert "offline 1 tag site" in line
    assert job.state == "COMPLETED"


def test_cpu_processes_where_there_is_no_gpu(cluster, checkout):
    options = ["--gpus-per-node=0", "--nodes=2"]
    lines, _ = ranks_of(cluster, checkout, options, ADRPO_PROCESSES="2")
    assert [line.split()[1] for line in lines] == ["0/4", "1/4", "2/4", "3/4"]


def test_a_job_without_gpus_says_what_to_ask_for(cluster, checkout):
    _, job = ranks_of(cluster, checkout, ["--gpus-per-node=0", "--nodes=1"])
    assert job.state == "FAILED" and "no GPU in this job: add --gpus-per-node=8" in job.log


def test_the_number_of_an_arrays_element_goes_into_the_arguments(cluster, checkout):
    options = ["--array=4", "--nodes=1", "--gpus-per-node=1"]
    lines, job = ranks_of(cluster, checkout, options, "--set", "seed=%a")
    assert [line.split()[-1] for line in lines] == ["4"], job.log
