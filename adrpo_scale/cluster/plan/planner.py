"""The command `plan`: predicts a config's needs on a machine, without that machine.

`plan_of` runs the real models and engine without memory (`rehearsal`), and adds up the memory of
each phase (`memory`), the traffic (`communication`) and the seconds (`times`).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from adrpo_scale.cluster.plan import memory
from adrpo_scale.cluster.plan.base import Hardware, MemoryItem, Plan
from adrpo_scale.cluster.plan.calibrate import calibrated, trial_run
from adrpo_scale.cluster.plan.chunks import in_force
from adrpo_scale.cluster.plan.communication import traffic_of
from adrpo_scale.cluster.plan.dealing import RankLoad, load_of, warnings_of
from adrpo_scale.cluster.plan.disk import checkpoints_bytes
from adrpo_scale.cluster.plan.host import ENCODERS, HostItem, host_items
from adrpo_scale.cluster.plan.memory import Held, encoders_of
from adrpo_scale.cluster.plan.times import BANDWIDTH, DISK, times_of
from adrpo_scale.cluster.plan.workload import not_counted, workload_of
from adrpo_scale.core.errors import ConfigError
from adrpo_scale.domains.base import AUTO
from adrpo_scale.domains.embedding_ranks import memory_line
from adrpo_scale.engines.spec import DTYPES
from adrpo_scale.engines.workload import Workload
from adrpo_scale.run.config import RunConfig


def plan_of(
    config: RunConfig,
    hardware: Hardware,
    trial: Mapping[str, Any] | None = None,
    name: str = "",
) -> Plan:
    """The plan of a config. trial: contents of a trial.json; its measurements scale the
    predictions. name: the config's.

    Raises ConfigError for settings that contradict the machine, ModelNotFoundError where the shape
    of a model is unknown, ForeignTrialError where the trial is one of another model or algorithm.
    """
    plan = _predicted(config, hardware, name)
    if trial is None:
        return plan
    tried, its_hardware = trial_run(trial, config)
    return calibrated(plan, trial, _predicted(tried, its_hardware, name))


def _predicted(config: RunConfig, hardware: Hardware, name: str) -> Plan:
    work = workload_of(config)
    load = load_of(config, hardware)
    what = memory.held(config, hardware, work, load)
    is_auto = config.domain.rollout_chunk == AUTO
    config, largest = in_force(config, hardware, work, what)
    load = load_of(config, hardware)
    items = memory.items_of(config, hardware, work, load, what)
    traffic = traffic_of(config, hardware, work, load, what)
    plan = Plan(
        config=name,
        digest=config.digest(),
        model=config.domain.model,
        trained=_trained(config),
        algorithm=config.algorithm.name,
        engine=str(what.engine),
        hardware=hardware,
        iterations=config.iterations,
        samples=config.prompts.per_iteration * config.prompts.group_size,
        rows=load.samples,
        micro_batches=load.micro_batches,
        unit=load.unit,
        items=items,
        memory=memory.peaks(items, config, work),
        reserve=memory.reserve(hardware),
        usable=memory.usable(hardware),
        traffic=traffic,
        times=times_of(config, hardware, work, load, what, traffic),
        largest_micro_batch=None,
        largest_rollout_chunk=largest,
        rollout_chunk=config.domain.chunk,
        chunk_is_auto=is_auto,
        disk_bytes=checkpoints_bytes(config, what.policy.trained),
        host=_host(config, hardware, work, what),
        not_counted=not_counted(config, work),
        warnings=warnings_of(config, hardware, load),
        assumptions=_assumptions(config, hardware, work, load),
    )
    return replace(plan, largest_micro_batch=_largest_micro_batch(config, plan, what, load))


def _host(config: RunConfig, hardware: Hardware, work: Workload, what: Held) -> list[HostItem]:
    ranks, policy = (hardware.world, hardware.gpus_per_node), what.policy
    elements = policy.whole // DTYPES[config.engine.dtype].itemsize
    return host_items(config, ranks, encoders_of(config, work), policy.trained, elements)


def _trained(config: RunConfig) -> str:
    if config.domain.train == "full":
        return "all parameters"
    lora = config.domain.lora
    return f"LoRA, rank {lora.rank if lora is not None else 32}"


def _assumptions(
    config: RunConfig, hardware: Hardware, work: Workload, load: RankLoad
) -> list[str]:
    gpu = hardware.gpu
    found = [
        f"{gpu.efficiency:.0%} of {gpu.name}'s {gpu.flops[config.engine.dtype] / 1e12:g} TFLOP/s "
        f"in {config.engine.dtype}, at least {gpu.overhead * 1e6:g} µs an operator, {BANDWIDTH:.0%}"
        f" of its {gpu.hbm / 1e9:g} GB/s memory",
        f"network: {BANDWIDTH:.0%} of {hardware.network * 8 / 1e9:g} Gb/s a node and of "
        f"{gpu.link / 1e9:g} GB/s between GPUs; disk: {DISK / 1e9:g} GB/s",
        f"memory beyond the peak: {memory.reserve(hardware) / 2**30:g} GiB for CUDA and NCCL, "
        f"{memory.FRAGMENTATION:.0%} for fragmentation",
    ]
    found += work.assumptions
    encoders = encoders_of(config, work)
    if encoders:
        found.append(memory_line(encoders))
    if work.clips is not None:
        host = sum(model.host_seconds for model in work.frozen)
        found.append(
            f"every prompt is a clip of {work.clips.tokens} tokens ({work.clips.seconds:g} s), "
            f"{work.clips.bytes / 2**20:.1f} MiB encoded; a process encodes at most "
            f"{load.sampled} an iteration to sample and {load.received} more to train, each "
            f"after {host:.2g} s of one core; it keeps those that it meets, up to "
            f"{work.clips.setting} = {work.clips.kept / 2**20:g}"
        )
    return found


# ---- the largest that fits ---------------------------------------------------------------------


def _room(plan: Plan, phase: Any, without: str) -> int:
    """Bytes left in a phase for the items whose names begin with `without`."""
    others = sum(i.bytes for i in plan.items if phase in i.phases and not _is(i, without))
    return plan.usable - others


def _is(item: MemoryItem, start: str) -> bool:
    return item.name.startswith(start)


def _largest_micro_batch(config: RunConfig, plan: Plan, what: Held, load: RankLoad) -> int | None:
    """The largest micro-batch that fits: a multiple of `unit`, at most the rows of a rank."""
    room = _room(plan, "update", "update:")
    now = next((i.bytes for i in plan.items if _is(i, "update:")), 0)
    more = (room - now) / max(1.0, what.update.per_row)
    unit = load.unit
    fitting = math.floor(load.rows + more)
    most = -(-load.chosen // config.optimizer.minibatches // plan.hardware.world)
    most = -(-max(most, unit) // unit) * unit
    largest = min(fitting // unit * unit, most)
    return largest if largest >= unit else None


def with_cache(plan: Plan, bytes_to_add: int | None) -> Plan:
    """Adds what the first start adds to the cache; where that is nothing, no encoder is loaded."""
    host = [item for item in plan.host if bytes_to_add != 0 or item.name != ENCODERS]
    return replace(plan, cache_bytes=bytes_to_add, host=host)


def check_time_limit(hours: float | None) -> None:
    if hours is not None and hours <= 0:
        raise ConfigError(f"--time-limit {hours:g}: expected hours above 0, e.g. 24")


def with_time_limit(plan: Plan, hours: float | None, grace_seconds: float) -> Plan:
    """Adds the number of jobs of at most `hours`, each of which loads the models again."""
    check_time_limit(hours)
    if hours is None:
        return plan
    work = plan.iterations * plan.iteration_seconds
    each = hours * 3600 - plan.seconds_of("load") - grace_seconds
    if each < plan.iteration_seconds:
        raise ConfigError(
            f"--time-limit {hours:g}: loading takes {plan.seconds_of('load') / 60:.0f} min and an "
            f"iteration {plan.iteration_seconds / 60:.0f} min: no job would complete an iteration; "
            "raise --time-limit"
        )
    return replace(plan, time_limit_hours=hours, jobs=max(1, math.ceil(work / each)))
