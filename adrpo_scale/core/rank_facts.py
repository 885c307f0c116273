"""Rank facts: which process of how many this one is, from the launcher's variables.

They come from `torchrun`'s variables (which `launchers/node.sh` sets too), else from those of a
Slurm *step* (`srun`), else they are those of a single process. Slurm's job variables alone do not
count: in a bare `salloc` shell or a batch script SLURM_NTASKS may be 8 while one process runs.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass

from adrpo_scale.core.errors import ConfigError

# Step ids from here up are Slurm's own pseudo-steps: batch script, extern, interactive salloc.
_FIRST_PSEUDO_STEP = 0xFFFFFFF0


@dataclass(frozen=True)
class RankFacts:
    """Rank of this process and number of processes, over all nodes and (local_*) inside its node.
    launcher: torchrun, node.sh, srun or single."""

    rank: int = 0
    world: int = 1
    local_rank: int = 0
    local_world: int = 1
    launcher: str = "single"

    @property
    def is_main(self) -> bool:
        return self.rank == 0


def rank_facts(env: Mapping[str, str] = os.environ) -> RankFacts:
    """Rank facts from the environment. Raises ConfigError where its variables contradict each
    other."""
    if "RANK" in env and "WORLD_SIZE" in env:
        world = int(env["WORLD_SIZE"])
        facts = RankFacts(
            int(env["RANK"]),
            world,
            int(env.get("LOCAL_RANK", 0)),
            int(env.get("LOCAL_WORLD_SIZE", world)),
            env.get("ADRPO_LAUNCHER", "torchrun"),
        )
    elif is_slurm_step(env):
        facts = RankFacts(
            int(env["SLURM_PROCID"]),
            int(env["SLURM_STEP_NUM_TASKS"]),
            int(env["SLURM_LOCALID"]),
            tasks_on_node(env["SLURM_STEP_TASKS_PER_NODE"], int(env["SLURM_NODEID"])),
            "srun",
        )
    else:
        return RankFacts()
    if not 0 <= facts.local_rank < facts.local_world <= facts.world > facts.rank >= 0:
        raise ConfigError(
            f"{facts.launcher} says rank {facts.rank} of {facts.world}, local rank "
            f"{facts.local_rank} of {facts.local_world}: a rank must be below its count. "
            "Unset RANK, WORLD_SIZE, LOCAL_RANK and LOCAL_WORLD_SIZE, or start with torchrun."
        )
    return facts


def is_slurm_step(env: Mapping[str, str]) -> bool:
    """Whether this process is a task of an `srun` step (and not of a bare allocation)."""
    step = env.get("SLURM_STEP_ID", "")
    return step.isdigit() and int(step) < _FIRST_PSEUDO_STEP and "SLURM_STEP_NUM_TASKS" in env


def tasks_on_node(tasks_per_node: str, node: int) -> int:
    """Tasks on node number `node` from Slurm's compressed list: "8(x2),4" is 8, 8, 4."""
    counts: list[int] = []
    for part in tasks_per_node.split(","):
        count, _, times = part.partition("(x")
        counts += [int(count)] * int(times.rstrip(")") or 1)
    return counts[node]


def first_host(nodelist: str) -> str:
    """First host of Slurm's compressed list: "a6000-[03-05,9],b1" is "a6000-03"."""
    head = re.match(r"(?:[^,\[]|\[[^\]]+\])+", nodelist)
    if head is None:
        raise ConfigError(f"cannot read the host list {nodelist!r}; set MASTER_ADDR yourself")
    return re.sub(r"\[([^\],-]+)[^\]]*\]", r"\1", head[0])


def set_srun_rendezvous() -> None:
    """Sets MASTER_ADDR and MASTER_PORT from the Slurm step, unless the user has set them.

    The port depends on job and step, so that two jobs on one node use different ones.
    """
    env = os.environ
    hosts = env.get("SLURM_STEP_NODELIST", "localhost")
    env.setdefault("MASTER_ADDR", first_host(hosts))
    port = 20000 + (int(env["SLURM_JOB_ID"]) * 7 + int(env["SLURM_STEP_ID"])) % 20000
    env.setdefault("MASTER_PORT", str(port))
