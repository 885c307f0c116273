"""The number behind `domain.rollout_chunk = "auto"`, computed in a process of its own.

Plan rehearses on fake process groups, which cannot be made beside the run's. Nothing but a number
depends on it: what goes wrong there is a warning, and the run has the chunk of a run without plan.
"""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
import warnings
from dataclasses import replace
from typing import Any

from adrpo_scale.core.errors import AdrpoError
from adrpo_scale.core.pace import stepping
from adrpo_scale.run.config import RunConfig
from adrpo_scale.run.load import parse_config
from adrpo_scale.run.rollout_chunk import Machine

log = logging.getLogger(__name__)

SECONDS = 600.0  # the largest shipped config takes one minute of one core


def choose_apart(config: RunConfig, machine: Machine) -> int | None:
    """The largest chunk that fits, from another process; None, with a warning, where it finds none.
    A `run.rollout_chunk.Choose`."""
    job = {"config": config.resolved(), "machine": vars(machine)}
    try:
        found = json.loads(_answer(json.dumps(job)))
    except (OSError, ValueError) as error:  # no process, or other words than an answer
        found = {"fault": str(error)}
    if "fault" in found:
        log.warning('plan cannot choose domain.rollout_chunk = "auto": %s', found["fault"])
    chunk: int | None = found.get("chunk")
    return chunk


def _answer(job: str) -> str:
    """The last line that the process printed; of one that failed, a fault in the same form."""
    process = subprocess.Popen(
        [sys.executable, "-m", __name__],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "CUDA_VISIBLE_DEVICES": ""},  # its context would take GPU memory
    )
    try:
        printed, said = stepping(lambda: process.communicate(job, timeout=SECONDS))
    except subprocess.TimeoutExpired:
        return json.dumps({"fault": f"no answer in {SECONDS:g} s"})
    finally:
        if process.poll() is None:
            process.kill()
    if process.returncode == 0 and printed.strip():
        return str(printed.strip().splitlines()[-1])
    last = said.strip().splitlines()[-1:] or ["no word"]
    return json.dumps({"fault": f"exit code {process.returncode}: {last[0]}"})


def chunk_for(config: RunConfig, machine: Machine) -> int | None:
    """The largest chunk that fits on such a machine; None where not even one sample does. Raises
    ConfigError where plan cannot count the config. Not inside a process group."""
    from adrpo_scale.cluster.plan import memory
    from adrpo_scale.cluster.plan.base import Hardware
    from adrpo_scale.cluster.plan.chunks import largest_chunk
    from adrpo_scale.cluster.plan.hardware import GPUS
    from adrpo_scale.cluster.plan.workload import workload_of

    # Of a GPU only its memory counts here, and of the links nothing.
    gpu = replace(GPUS["a6000"], memory=machine.memory)
    world, per_node = machine.world, machine.per_node
    nodes, per_node = (world // per_node, per_node) if world % per_node == 0 else (1, world)
    hardware = Hardware(gpu, nodes, per_node, 1.0)
    work = workload_of(config)
    return largest_chunk(config, hardware, work, memory.models(config, hardware, work))


def main() -> None:
    """Reads a job from standard input and prints the answer."""
    job: dict[str, Any] = json.load(sys.stdin)
    warnings.simplefilter("ignore")  # the run has given them already
    try:
        config = parse_config(job["config"])
        answer: dict[str, Any] = {"chunk": chunk_for(config, Machine(**job["machine"]))}
    except AdrpoError as error:
        answer = {"fault": str(error)}
    print(json.dumps(answer))


if __name__ == "__main__":
    main()
