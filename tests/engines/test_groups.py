"""Process groups of a run: their timeout, and the device that NCCL is bound to."""

from __future__ import annotations

import pytest
import torch
import torch.distributed as td
from torch.distributed import distributed_c10d

from adrpo_scale.core import dist
from tests.support.engine_cases import build
from tests.support.ranks import run_ranks


def timeouts_of_groups(rank, world, variant):
    engine, spec = build(variant, "lora", "engine.timeout_seconds=77")
    engine.build_policy(spec)
    groups = distributed_c10d._world.pg_map
    found = {g._get_backend(torch.device("cpu")).options._timeout.total_seconds() for g in groups}
    return len(groups), found


@pytest.mark.parametrize(
    ("variant", "world", "groups"), [("fsdp2-node", 4, 3), ("zero3-all", 2, 2)]
)
def test_engine_timeout_seconds_holds_for_every_group(variant, world, groups):
    """Those that a mesh and DeepSpeed make, too, which have the libraries' 30 minutes otherwise."""
    for count, found in run_ranks(timeouts_of_groups, world, variant):
        assert count >= groups and found == {77.0}


@pytest.mark.parametrize("launcher", ["torchrun", "srun"])
def test_nccl_is_bound_to_the_device_of_this_rank(monkeypatch, launcher):
    """NCCL itself takes LOCAL_RANK, which srun does not set, else the rank modulo the GPUs."""
    variables = {
        "torchrun": {"RANK": "9", "WORLD_SIZE": "16", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "8"},
        "srun": {
            "SLURM_STEP_ID": "0",
            "SLURM_JOB_ID": "7",
            "SLURM_PROCID": "9",
            "SLURM_STEP_NUM_TASKS": "16",
            "SLURM_LOCALID": "1",
            "SLURM_NODEID": "1",
            "SLURM_STEP_TASKS_PER_NODE": "8(x2)",
        },
    }
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    for name, value in (variables[launcher] | {"MASTER_ADDR": "", "MASTER_PORT": "1"}).items():
        monkeypatch.setenv(name, value)
    asked = []
    monkeypatch.setattr(torch.cuda, "set_device", lambda device: None)
    monkeypatch.setattr(td, "init_process_group", lambda *args, **more: asked.append(more))
    monkeypatch.setattr(td, "barrier", lambda: None)
    monkeypatch.setattr(td, "destroy_process_group", lambda: None)
    monkeypatch.setattr(dist, "_store", lambda facts, timeout: None)
    with dist.process_group("cuda", 60):
        pass
    assert [more["device_id"] for more in asked] == [torch.device("cuda", 1)]


def hooks_while_sampling(rank, world):
    """FSDP's forward hooks on a model: before, inside and after `sampling`."""
    engine, spec = build("fsdp2-all", "lora")
    model = engine.build_policy(spec)

    def count():
        tables = [t for m in model.modules() for t in (m._forward_pre_hooks, m._forward_hooks)]
        return [list(table) for table in tables]

    before = count()
    with engine.sampling(model):
        inside = count()
    return before, inside, count()


def test_sampling_runs_without_fsdps_hooks():
    """A token takes a pass, and each module's hooks a fifth of its time on the host."""
    before, inside, after = run_ranks(hooks_while_sampling, 2)[0]
    assert sum(map(len, before)) >= 2 and not any(inside) and after == before
