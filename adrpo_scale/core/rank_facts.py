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
from adrpo_scale.core.numbers import natural

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
        world = stated_number(env, "WORLD_SIZE")
        facts = RankFacts(
            stated_number(env, "RANK"),
            world,
            stated_number(env, "LOCAL_RANK", 0),
            stated_number(env, "LOCAL_WORLD_SIZE", world),
            env.get("ADRPO_LAUNCHER", "torchrun"),
        )
    elif is_slurm_step(env):
        facts = RankFacts(
            stated_number(env, "SLURM_PROCID"),
            stated_number(env, "SLURM_STEP_NUM_TASKS"),
            stated_number(env, "SLURM_LOCALID"),
            tasks_on_node(
                env.get("SLURM_STEP_TASKS_PER_NODE", ""), stated_number(env, "SLURM_NODEID")
            ),
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


def facts_or_one() -> RankFacts:
    """Rank facts for who reports an error; those of a single process where the environment
    contradicts itself, which is that error as a rule."""
    try:
        return rank_facts()
    except ConfigError:
        return RankFacts()


def stated_number(env: Mapping[str, str], name: str, default: int | None = None) -> int:
    """The number in a launcher's variable; default: where it is not set. Raises ConfigError."""
    if default is not None and name not in env:
        return default
    number = natural(env.get(name, ""))
    if number is None:
        raise ConfigError(
            f"the environment says {name} = {env.get(name)!r}, and a number from 0 is expected: "
            "unset it, or start with torchrun, srun or launchers/node.sh, which set it"
        )
    return number


def is_slurm_step(env: Mapping[str, str]) -> bool:
    """Whether this process is a task of an `srun` step (and not of a bare allocation)."""
    step = natural(env.get("SLURM_STEP_ID", ""))
    return step is not None and step < _FIRST_PSEUDO_STEP and "SLURM_STEP_NUM_TASKS" in env


def tasks_on_node(tasks_per_node: str, node: int) -> int:
    """Tasks on node number `node` from Slurm's compressed list: "8(x2),4" is 8, 8, 4."""
    before = 0
    for part in tasks_per_node.split(","):
        found = re.fullmatch(r"([0-9]{1,9})(?:\(x([0-9]{1,9})\))?", part)
        before += int(found[2] or 1) if found else 0
        if found and node < before:
            return int(found[1])
    raise ConfigError(
        f"Slurm says SLURM_STEP_TASKS_PER_NODE = {tasks_per_node!r}, which has no node number "
        f"{node}: start with srun, which sets it"
    )


def first_host(nodelist: str) -> str:
    """First host of Slurm's compressed list: "a6000-[03-05,9],b1" is "a6000-03"."""
    head = re.match(r"(?:[^,\[]|\[[^\]]+\])+", nodelist)
    if head is None:
        raise ConfigError(f"cannot read the host list {nodelist!r}; set MASTER_ADDR yourself")
    return re.sub(r"\[([^\],-]+)[^\]]*\]", r"\1", head[0])


def meeting_point(world: int, env: Mapping[str, str] = os.environ) -> tuple[str, int]:
    """Host and port of rank 0. Raises ConfigError where the environment does not state them."""
    host, port = env.get("MASTER_ADDR"), natural(env.get("MASTER_PORT", ""))
    if not host or port is None or port >= 2**16:
        raise ConfigError(
            f"MASTER_ADDR = {host!r}, MASTER_PORT = {env.get('MASTER_PORT', '')!r} with {world} "
            "processes: expected the host and port of rank 0; launchers/node.sh and torchrun set "
            "them"
        )
    return host, port


def set_srun_rendezvous() -> None:
    """Sets MASTER_ADDR and MASTER_PORT from the Slurm step, unless the user has set them.

    The port depends on job and step, so that two jobs on one node use different ones.
    """
    env = os.environ
    hosts = env.get("SLURM_STEP_NODELIST", "localhost")
    env.setdefault("MASTER_ADDR", first_host(hosts))
    job, step = (stated_number(env, name) for name in ("SLURM_JOB_ID", "SLURM_STEP_ID"))
    port = 20000 + (job * 7 + step) % 20000
    env.setdefault("MASTER_PORT", str(port))
