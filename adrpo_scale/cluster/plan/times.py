"""Seconds by phase, from counted FLOPs, bytes and operators.

A pass takes the longest of three times: its FLOPs at the assumed share of the data sheet's rate;
its parameters (and KV cache) read once from the GPU's memory; its operators at the overhead of a
launch, or of a kernel inside a CUDA graph. Gathers of an update overlap with computing; those of a
rollout precede it.
"""

from __future__ import annotations

from dataclasses import replace

from adrpo_scale.cluster.plan import rehearsal
from adrpo_scale.cluster.plan.base import Hardware, PhaseTime, Traffic
from adrpo_scale.cluster.plan.dealing import (
    RankLoad,
    base_passes,
    evaluation_load,
    evaluation_splits,
    needs_reference,
    old_passes,
)
from adrpo_scale.cluster.plan.measure import Cost
from adrpo_scale.cluster.plan.memory import Held
from adrpo_scale.engines.planning import Phase
from adrpo_scale.engines.workload import Frozen, Workload
from adrpo_scale.run.config import RunConfig
from adrpo_scale.run.given_pairs import has_given_pairs

BANDWIDTH = 0.7  # share of the data sheets' rates of memory and network
DISK = 1e9  # bytes/s of the shared filesystem, for one process
HOST = 1.5e9  # bytes/s from a GPU into pinned memory of the host, as it is pinned: measured, 1.4
IN_A_GRAPH = 0.2  # of an operator's overhead, inside a CUDA graph: measured, 2.7 to 3.8 of 19 µs
START = 60.0  # seconds of imports and of joining the process group


def times_of(
    config: RunConfig,
    hardware: Hardware,
    work: Workload,
    load: RankLoad,
    what: Held,
    traffic: list[Traffic],
) -> list[PhaseTime]:
    judged = 0 if has_given_pairs(config) else load.samples
    compute: dict[Phase, float] = {
        "load": _load(config, hardware, work, what),
        "rollout": _samples(config, hardware, work, load, what),
        "reward": _reward(config, hardware, _in_training(work), judged, load.chunk),
        "update": _update(config, hardware, load, what)
        + _encoding(config, hardware, work, load.received),
    }
    found = []
    for phase, seconds in compute.items():
        travel = sum(_travel(t, hardware) for t in traffic if t.phase == phase)
        travel += _sending(hardware, what) if phase == "load" else 0.0
        total = max(seconds, travel) if phase == "update" else seconds + travel
        found.append(PhaseTime(phase, seconds, travel, total))
    if config.evaluation.every:
        found.append(_evaluation(config, hardware, work, what))
    found.append(_save(config, what, sum(time.seconds for time in found[1:])))
    return found


def _travel(traffic: Traffic, hardware: Hardware) -> float:
    inside = traffic.inside / (hardware.gpu.link * BANDWIDTH)
    return max(inside, traffic.across / (hardware.network * BANDWIDTH))


def pass_seconds(
    hardware: Hardware, dtype: str, flops: float, operators: float, moved: float = 0.0
) -> float:
    """Seconds of a pass. moved: bytes read from the GPU's memory."""
    gpu = hardware.gpu
    return max(
        flops / (gpu.flops[dtype] * gpu.efficiency),
        moved / (gpu.hbm * BANDWIDTH),
        operators * gpu.overhead,
    )


def _samples(
    config: RunConfig, hardware: Hardware, work: Workload, load: RankLoad, what: Held
) -> float:
    """Seconds of an iteration's rollout. Given pairs are read: of pictures, encoding counts as much
    as decoding."""
    if has_given_pairs(config):
        return _decoding(config, hardware, work, load)
    found = _rollout(config, hardware, work, load, what)
    return found + _encoding(config, hardware, work, load.sampled)


def _rollout(
    config: RunConfig, hardware: Hardware, work: Workload, load: RankLoad, what: Held
) -> float:
    dtype, seconds = config.engine.dtype, 0.0
    for number, step in enumerate(work.rollout):
        rows = load.prompts if step.per_group else load.chunk
        cost = rehearsal.rollout_step(config, work, number, rows).at(rows)
        moved = what.policy.whole + cost.kept
        operators = cost.operators * (IN_A_GRAPH if step.is_captured else 1.0)
        seconds += step.times * pass_seconds(hardware, dtype, cost.flops, operators, moved)
    seconds *= load.chunks
    passes, update = old_passes(config, load), what.update
    flops, operators = update.forward_flops * load.rows, update.forward_operators
    seconds += passes * pass_seconds(hardware, dtype, flops, operators)
    return seconds + _decoding(config, hardware, work, load)


def _decoding(config: RunConfig, hardware: Hardware, work: Workload, load: RankLoad) -> float:
    models = [m for m in work.frozen if m.phase == "rollout" and not m.per_clip]
    return sum(_all(config, hardware, m, load.samples, m.rows) for m in models)


def _encoding(config: RunConfig, hardware: Hardware, work: Workload, clips: int) -> float:
    """Seconds of encoding `clips` clips one by one."""
    towers = [model for model in work.frozen if model.per_clip]
    seconds = sum(_all(config, hardware, tower, clips, tower.rows) for tower in towers)
    return seconds + clips * sum(tower.host_seconds for tower in towers)


def _reward(
    config: RunConfig, hardware: Hardware, work: Workload, samples: int, chunk: int
) -> float:
    models = [m for m in work.frozen if m.phase == "reward"]
    return sum(_all(config, hardware, m, samples, min(m.rows, chunk)) for m in models)


def _in_training(work: Workload) -> Workload:
    """The workload without the models that evaluations alone call."""
    return replace(work, frozen=tuple(m for m in work.frozen if m.in_training))


def _all(config: RunConfig, hardware: Hardware, model: Frozen, samples: int, rows: int) -> float:
    """Seconds of a frozen model on all samples of a rank, `rows` at once."""
    cost: Cost = rehearsal.frozen_cost(config, model, model.rows).at(rows)
    dtype = str(model.dtype).removeprefix("torch.")
    return -(-samples // rows) * pass_seconds(hardware, dtype, cost.flops, cost.operators)


def _update(config: RunConfig, hardware: Hardware, load: RankLoad, what: Held) -> float:
    update, dtype = what.update, config.engine.dtype
    one = pass_seconds(hardware, dtype, update.flops * load.rows, update.operators)
    flops = update.forward_flops * load.rows
    forward = pass_seconds(hardware, dtype, flops, update.forward_operators)
    if needs_reference(config):
        one += forward
    states = what.policy.parameters + what.policy.gradients + what.policy.moments
    step = 3 * states / (hardware.gpu.hbm * BANDWIDTH)  # read and written
    base = base_passes(config, load) * forward
    return load.steps * (load.micro_batches * one + step) + base


def _load(config: RunConfig, hardware: Hardware, work: Workload, what: Held) -> float:
    """Seconds of reading weights. Prompt embeddings are not counted: they are computed once and
    kept."""
    models = sum(rehearsal.frozen_bytes(config, m) for m in work.frozen)
    copies = 1 + sum(model is not None for model in (what.base, what.moving))
    return START + (models + copies * what.policy.whole) / DISK


def _sending(hardware: Hardware, what: Held) -> float:
    """Seconds in which rank 0 sends models that every rank holds whole."""
    models = (what.policy, what.base, what.moving)
    whole = [shards for shards in models if shards is not None]
    sent = sum(shards.whole for shards in whole if shards.degree == 1)
    if hardware.world == 1:
        return 0.0
    rate = hardware.network if hardware.nodes > 1 else hardware.gpu.link
    return sent / (min(rate, hardware.gpu.link) * BANDWIDTH)


def _save(config: RunConfig, what: Held, iteration: float) -> PhaseTime:
    """A save's share of an iteration of `iteration` seconds: the copy of weights and moments into
    the host's memory, or all of the writing without `checkpoint.background`."""
    saving = config.checkpoint
    often = iteration / (60 * saving.every_minutes) if saving.every_minutes else 0.0
    if saving.every_iterations:
        often = max(often, 1 / saving.every_iterations)
    sets = 3 + config.reference.moves  # weights, two moments
    share = sets * what.policy.slices / what.policy.copies  # replicas divide it
    each = share / (HOST if saving.background else DISK)
    return PhaseTime("save", 0.0, each * often, each * often)


def _evaluation(config: RunConfig, hardware: Hardware, work: Workload, what: Held) -> PhaseTime:
    """An evaluation's share of an iteration: samples and rewards of all splits, not the
    divergence."""
    evaluation = config.evaluation
    load = evaluation_load(config, hardware)
    sampling = work.evaluation * _rollout(config, hardware, work, load, what)
    sampling += _encoding(config, hardware, work, load.sampled)
    passes = evaluation_splits(config)
    seconds = passes * (sampling + _reward(config, hardware, work, load.samples, load.chunk))
    return PhaseTime("evaluation", seconds / evaluation.every, 0.0, seconds / evaluation.every)
