"""The start of DeepSpeed: its package, its process group, and the ranks of hpZ's second copy."""

from __future__ import annotations

import atexit
import os
from typing import Any, Literal

import torch.distributed as td

from adrpo_scale.core import dist
from adrpo_scale.core.errors import ConfigError


def secondary_degree(shard: Literal[1, "node", "all"]) -> int:
    """Ranks over which hpZ's second copy of the parameters is sharded; 1 means no second copy.

    Raises ConfigError if nodes hold different numbers of ranks.
    """
    world, local = dist.world_size(), dist.rank_facts().local_world
    if shard == "all" or local in (1, world):
        return 1
    if world % local:
        raise ConfigError(
            f'engine.shard = "node" with {world} ranks and {local} on this node: every node must '
            'run the same number of ranks; use engine.shard = "all" or ask for equal nodes'
        )
    return local


def secondary_group() -> Any:
    """The process group that shares hpZ's second copy; None before the first model.

    DeepSpeed refuses to create it again for a second model.
    """
    from deepspeed.utils import groups

    return groups._get_zero_param_intra_parallel_group()


def start_deepspeed(device: str) -> Any:
    """The deepspeed package, joined to the existing process group, or to one of this process alone.

    Imported here, because the import takes seconds that runs with another engine need not wait for.
    Raises ConfigError where DeepSpeed has chosen another device than `device`.
    """
    if device == "cpu":
        os.environ.setdefault("DS_ACCELERATOR", "cpu")  # read once, at import
    import deepspeed
    from deepspeed.accelerator import get_accelerator

    found = get_accelerator().device_name()
    if found != device:
        raise ConfigError(
            f'engine.device is "{device}", but DeepSpeed has chosen {found}; unset DS_ACCELERATOR'
        )
    # Otherwise DeepSpeed compiles a collective for shared memory, for a minute and a half.
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    os.environ.setdefault("LOCAL_RANK", str(dist.rank_facts().local_rank))  # DeepSpeed reads it
    if not td.is_initialized():
        single_process_group(device)
    deepspeed.init_distributed(
        get_accelerator().communication_backend_name(), auto_mpi_discovery=False, verbose=False
    )
    return deepspeed


def single_process_group(device: str) -> None:
    """Starts a process group of this process alone: DeepSpeed calls collectives on one rank too."""
    backend = "cpu:gloo,cuda:nccl" if device == "cuda" else "gloo"
    td.init_process_group(backend, store=td.HashStore(), rank=0, world_size=1)
    atexit.register(lambda: td.destroy_process_group() if td.is_initialized() else None)
