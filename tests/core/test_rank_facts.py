"""Who this process is, from what torchrun, srun, sbatch and salloc leave in the environment."""

from __future__ import annotations

import pytest

from adrpo_scale.core.errors import ConfigError
from adrpo_scale.core.rank_facts import (
    RankFacts,
    first_host,
    is_slurm_step,
    rank_facts,
    tasks_on_node,
)

TORCHRUN = {
    "RANK": "9",
    "WORLD_SIZE": "16",
    "LOCAL_RANK": "1",
    "LOCAL_WORLD_SIZE": "8",
    "GROUP_RANK": "1",
    "MASTER_ADDR": "a6000-03",
    "MASTER_PORT": "29500",
    "TORCHELASTIC_RUN_ID": "none",
}
# What a batch script or an salloc shell on the first of three nodes sees.
SLURM_JOB = {
    "SLURM_JOB_ID": "4711",
    "SLURM_JOBID": "4711",
    "SLURM_JOB_NAME": "adrpo",
    "SLURM_JOB_PARTITION": "a6000",
    "SLURM_JOB_NODELIST": "a6000-[03-05]",
    "SLURM_NODELIST": "a6000-[03-05]",
    "SLURM_NNODES": "3",
    "SLURM_JOB_NUM_NODES": "3",
    "SLURM_NTASKS": "20",
    "SLURM_NPROCS": "20",
    "SLURM_TASKS_PER_NODE": "8(x2),4",
    "SLURM_JOB_CPUS_PER_NODE": "64(x3)",
    "SLURM_CLUSTER_NAME": "cluster",
    "SLURM_SUBMIT_DIR": "/home/someone",
}
SBATCH = SLURM_JOB | {"SLURM_PROCID": "0", "SLURM_LOCALID": "0", "SLURM_NODEID": "0"}
# Task 18 of `srun` in that job: the third task of the last node.
SRUN = SLURM_JOB | {
    "SLURM_STEP_ID": "0",
    "SLURM_STEPID": "0",
    "SLURM_STEP_NODELIST": "a6000-[03-05]",
    "SLURM_STEP_NUM_NODES": "3",
    "SLURM_STEP_NUM_TASKS": "20",
    "SLURM_STEP_TASKS_PER_NODE": "8(x2),4",
    "SLURM_STEP_LAUNCHER_PORT": "40123",
    "SLURM_PROCID": "18",
    "SLURM_LOCALID": "2",
    "SLURM_NODEID": "2",
    "SLURM_GTIDS": "16,17,18,19",
    "SLURM_TASK_PID": "31337",
    "SLURM_SRUN_COMM_HOST": "10.0.0.3",
    "SLURM_LAUNCH_NODE_IPADDR": "10.0.0.3",
}


def test_torchrun_variables():
    assert rank_facts(TORCHRUN) == RankFacts(9, 16, 1, 8, "torchrun")


def test_srun_step_with_fewer_tasks_on_its_last_node():
    assert rank_facts(SRUN) == RankFacts(18, 20, 2, 4, "srun")


def test_srun_task_on_a_full_node():
    first = SRUN | {"SLURM_PROCID": "7", "SLURM_LOCALID": "7", "SLURM_NODEID": "0"}
    assert rank_facts(first) == RankFacts(7, 20, 7, 8, "srun")


def test_torchrun_inside_an_srun_step_counts_for_torchrun():
    one_task_a_node = {"SLURM_STEP_NUM_TASKS": "3", "SLURM_STEP_TASKS_PER_NODE": "1(x3)"}
    assert rank_facts(SRUN | one_task_a_node | TORCHRUN).launcher == "torchrun"


@pytest.mark.parametrize(
    "env",
    [
        {},
        {"PATH": "/usr/bin"},
        SLURM_JOB,
        SBATCH,
        SBATCH | {"SLURM_STEP_ID": "4294967291"},  # the batch step
        SBATCH | {"SLURM_STEP_ID": "4294967290", "SLURM_STEP_NUM_TASKS": "1"},  # salloc's shell
        SBATCH | {"SLURM_STEP_ID": "4294967292", "SLURM_STEP_NUM_TASKS": "1"},  # extern
    ],
    ids=["empty", "other", "job", "sbatch", "batch-step", "interactive-step", "extern-step"],
)
def test_job_variables_without_a_step_are_a_single_process(env):
    assert not is_slurm_step(env)
    assert rank_facts(env) == RankFacts(0, 1, 0, 1, "single")
    assert rank_facts(env).is_main


def test_only_rank_zero_is_main():
    assert [rank_facts(TORCHRUN | {"RANK": r}).is_main for r in ("0", "1", "8")] == [1, 0, 0]


@pytest.mark.parametrize(
    "env",
    [
        TORCHRUN | {"RANK": "16"},
        TORCHRUN | {"LOCAL_RANK": "8"},
        TORCHRUN | {"WORLD_SIZE": "0"},
        SRUN | {"SLURM_PROCID": "20"},
        SRUN | {"SLURM_LOCALID": "4"},
    ],
)
def test_contradictions_are_refused_with_the_values(env):
    with pytest.raises(ConfigError, match=r"rank \d+ of \d+, local rank \d+ of \d+"):
        rank_facts(env)


@pytest.mark.parametrize(
    ("tasks", "counts"),
    [("8(x2),4", [8, 8, 4]), ("1", [1]), ("2,3(x2),1", [2, 3, 3, 1]), ("8(x10)", [8] * 10)],
)
def test_tasks_on_each_node(tasks, counts):
    assert [tasks_on_node(tasks, node) for node in range(len(counts))] == counts


@pytest.mark.parametrize(
    ("nodelist", "host"),
    [
        ("a6000-[03-05,9],b1", "a6000-03"),
        ("n1", "n1"),
        ("n1,n2", "n1"),
        ("n[001-010]", "n001"),
        ("n[7,9-11]", "n7"),
        ("gpu-a[2,4]-ib", "gpu-a2-ib"),
        ("node-a.cluster.example", "node-a.cluster.example"),
        ("localhost", "localhost"),
        ("rack[1-2]n[03-04]", "rack1n03"),
    ],
)
def test_first_host_of_a_compressed_list(nodelist, host):
    assert first_host(nodelist) == host


def test_an_unreadable_host_list_is_refused():
    with pytest.raises(ConfigError, match="MASTER_ADDR"):
        first_host("")
