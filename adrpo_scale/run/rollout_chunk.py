"""The number behind `domain.rollout_chunk = "auto"`: chosen once in a run, and kept ever after.

A run's first start chooses as many samples as fit on the GPU with the least memory, and records the
number in the run folder and in every checkpoint. Later starts of the same command take it from
there, on whatever machine: samples in bf16 depend on it. Without a GPU it is CHUNK.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from adrpo_scale.checkpoint.reader import Reader
from adrpo_scale.core import dist
from adrpo_scale.core.console import say
from adrpo_scale.core.json_files import read_object
from adrpo_scale.core.signals import stoppable
from adrpo_scale.domains.base import AUTO, CHUNK
from adrpo_scale.run.config import RunConfig

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Machine:
    """The GPUs of a job. memory: bytes of the one that has the least. world: their number;
    per_node: of them in a node."""

    memory: int
    world: int
    per_node: int


Choose = Callable[[RunConfig, Machine], int | None]
"""The largest chunk that fits, by the arithmetic of `plan`, which lies above this folder; None,
with a word in the log, where it finds none."""


def with_number(config: RunConfig, number: int) -> RunConfig:
    """The config with `number` samples in a chunk."""
    domain = config.domain.model_copy(update={"rollout_chunk": number})
    return config.model_copy(update={"domain": domain})


def as_recorded(config: RunConfig, settings: Mapping[str, Any]) -> RunConfig:
    """The config with the number of an earlier start in place of "auto". settings: those that the
    start has recorded."""
    if config.domain.rollout_chunk != AUTO:
        return config
    domain = settings.get("domain")
    number = domain.get("rollout_chunk") if isinstance(domain, Mapping) else None
    return with_number(config, number if type(number) is int and number > 0 else CHUNK)


def decided(
    config: RunConfig, run: Path, reader: Reader | None, choose: Choose | None
) -> RunConfig:
    """The config of a start with a number in place of "auto": that of the checkpoint from which it
    resumes, else that in the run folder, else a new one. Collective."""
    if config.domain.rollout_chunk != AUTO:
        return config
    recorded = dist.run_on_main(lambda: _recorded(run, reader))
    if recorded is None:
        return newly_decided(config, choose)
    found = as_recorded(config, recorded)
    log.info('domain.rollout_chunk: "%s" → %d, as this run began', AUTO, found.domain.chunk)
    return found


def _recorded(run: Path, reader: Reader | None) -> dict[str, Any] | None:
    if reader is not None:
        settings: dict[str, Any] = reader.manifest.document["config"]
        return settings
    return read_object(run / "config.json")


@stoppable()
def newly_decided(config: RunConfig, choose: Choose | None) -> RunConfig:
    """The config with a newly chosen number in place of "auto", the same on every rank. choose:
    called on rank 0 of a run on GPUs. Collective."""
    if config.domain.rollout_chunk != AUTO:
        return config
    machine = _machine(config)
    if machine is None or choose is None:
        return with_number(config, CHUNK)
    number = dist.run_on_main(lambda: choose(config, machine))
    if dist.is_main():
        why = f"no larger one is known to fit {machine.memory / 2**30:.1f} GiB"
        if number is not None:
            why = f"as many samples as fit {machine.memory / 2**30:.1f} GiB, in whole groups"
        say(f'domain.rollout_chunk: "{AUTO}" → {number or CHUNK} ({why})')
    return with_number(config, number or CHUNK)


def _machine(config: RunConfig) -> Machine | None:
    """The GPUs of this job; None where it runs on CPUs. Collective."""
    if config.engine.torch_device() != "cuda":
        return None
    mine = torch.cuda.get_device_properties(torch.cuda.current_device()).total_memory
    facts = torch.tensor([-mine, -dist.rank_facts().local_world])
    memory, per_node = (-dist.all_max(facts)).tolist()
    return Machine(memory, dist.world_size(), per_node)
