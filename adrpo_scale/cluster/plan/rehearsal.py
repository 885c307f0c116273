"""Rehearsals: the run's own code without memory, and its measured costs.

The update is rehearsed with the real engine at the real number of ranks: reference, forward and
backward of several micro-batches, so that gathered units, saved activations, recomputation and
gradients that wait for the next micro-batch are all counted. Rollouts, rewards and encoders are
rehearsed on whole models, as inside `engine.sampling()`.

A rehearsal takes seconds; equal ones run once in a process.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import torch
from torch import nn

from adrpo_scale.cluster.plan.base import Hardware
from adrpo_scale.cluster.plan.measure import (
    Cost,
    Live,
    bytes_of,
    cost_of,
    empty_model,
)
from adrpo_scale.cluster.plan.workload import is_exact
from adrpo_scale.engines.adapters import add_adapters
from adrpo_scale.engines.fake import without_memory
from adrpo_scale.engines.planning import EnginePlan, Ranks, Rehearsed, Shards
from adrpo_scale.engines.spec import DTYPES, ModelSpec
from adrpo_scale.engines.workload import Call, Frozen, Workload
from adrpo_scale.run.config import RunConfig

T = TypeVar("T")
_KNOWN: dict[str, Any] = {}


@dataclass(frozen=True)
class Update:
    """The cost of one micro-batch, beyond the memory held before it.

    peak: bytes at `rows` rows, accumulated gradients included; per_row: bytes that a row adds.
    gradients: bytes of gradients that stay until the next micro-batch. flops: FLOPs of a row,
    forward and backward, recomputation of activation checkpointing included; forward_flops: those
    of a forward pass. operators, forward_operators: calls in a micro-batch and in a forward pass.
    """

    rows: int
    peak: int
    per_row: float
    gradients: int
    flops: float
    forward_flops: float
    operators: int
    forward_operators: int

    def peak_at(self, rows: int) -> float:
        return self.peak + (rows - self.rows) * self.per_row


@dataclass(frozen=True)
class Linear:
    """A cost as a linear function of rows, from two measurements."""

    rows: int
    at_rows: Cost
    per_row: Cost

    def at(self, rows: float) -> Cost:
        more = rows - self.rows
        here, each = self.at_rows, self.per_row
        return Cost(
            int(here.peak + more * each.peak),
            int(here.kept + more * each.kept),
            here.flops + more * each.flops,
            here.operators,
        )


def once(key: Any, run: Callable[[], T]) -> T:
    """The result of `run()`, or that of an earlier call with an equal key. key: JSON-able."""
    text = json.dumps(key, sort_keys=True, default=str)
    if text not in _KNOWN:
        _KNOWN[text] = run()
    return _KNOWN[text]


def _sharding(config: RunConfig, hardware: Hardware) -> list[Any]:
    """A key of everything that sharding depends on."""
    model = config.domain.model_dump(include={"name", "model", "train", "lora"})
    engine = config.engine.model_dump()
    second = config.reference.moves  # with adapters, the policy holds two in each layer
    return [model, engine, second, hardware.world, hardware.gpus_per_node]


# ---- sharding ----------------------------------------------------------------------------------


def shards(
    what: str,
    config: RunConfig,
    hardware: Hardware,
    engine: EnginePlan,
    spec: ModelSpec,
    *,
    trained: bool = False,
) -> Shards:
    """The shards of a model. what: its name, the key under which the result is kept."""

    def build() -> Shards:
        return engine.shards(spec, _ranks(hardware), trained=trained)

    return once(_shards_key(what, config, hardware, trained), build)


def _ranks(hardware: Hardware) -> Ranks:
    return Ranks(hardware.world, hardware.gpus_per_node)


def _shards_key(what: str, config: RunConfig, hardware: Hardware, trained: bool) -> Any:
    return ["shards", what, trained, *_sharding(config, hardware)]


# ---- the update --------------------------------------------------------------------------------


def update(
    config: RunConfig,
    hardware: Hardware,
    engine: EnginePlan,
    work: Workload,
    rows: int,
    micro_batches: int,
) -> Update:
    """Rehearses an update. rows: those of a micro-batch; micro_batches: those of an optimizer
    step."""
    several = micro_batches > 1
    passes = _pass_settings(config)
    key = ["update", rows, several, passes, *_sharding(config, hardware)]
    found, policy = once(key, lambda: _update(hardware, engine, work, rows, several))
    if policy is not None:
        once(_shards_key("policy", config, hardware, True), lambda: policy)
    return found


def _pass_settings(config: RunConfig) -> Any:
    """A key of everything that the shape of a training pass depends on."""
    kept = config.domain.model_dump(exclude={"rollout_chunk", "decode_chunk", "evaluation"})
    return [kept, config.engine.dtype, is_exact(config)]


def _update(
    hardware: Hardware, planned: EnginePlan, work: Workload, rows: int, several: bool
) -> tuple[Update, Shards | None]:
    """(the update, the policy's shards if the rehearsal yields them)."""
    other = 1 if rows > 1 else 2
    with planned.rehearsal(_ranks(hardware)) as engine:
        with without_memory():
            policy = engine.build_policy(work.spec)
            with Live() as live:
                # With several micro-batches, gradients of earlier ones wait in every later one.
                if several:
                    engine.backward(work.train(policy, other), last=False)
                small = _counted(live, engine, work.train, policy, other, last=not several)
                if not several:
                    engine.drop_gradients()
                waiting = live.now
                large = _counted(live, engine, work.train, policy, rows, last=True)
        held = planned.rehearsed_shards(engine, policy)
    found = Update(
        rows=rows,
        peak=large.peak,
        per_row=max(0.0, (large.peak - small.peak) / (rows - other)),
        gradients=waiting,
        flops=large.flops / rows,
        forward_flops=large.forward_flops / rows,
        operators=large.operators,
        forward_operators=large.forward_operators,
    )
    return found, held


@dataclass(frozen=True)
class _MicroBatch:
    peak: int
    flops: float
    forward_flops: float
    operators: int
    forward_operators: int


def _counted(
    live: Live, engine: Rehearsed, train: Call, policy: nn.Module, rows: int, *, last: bool
) -> _MicroBatch:
    """Counts one micro-batch. Its peak is relative to `live`'s beginning, earlier allocations
    included."""
    live.peak, flops, operators = live.now, live.flops, live.operators
    loss = train(policy, rows)
    forward_flops, forward_operators = live.flops - flops, live.operators - operators
    engine.backward(loss, last=last)
    return _MicroBatch(
        live.peak,
        live.flops - flops,
        forward_flops,
        live.operators - operators,
        forward_operators,
    )


# ---- whole models ------------------------------------------------------------------------------


def rollout_step(config: RunConfig, work: Workload, number: int, rows: int) -> Linear:
    """The cost of one pass of rollout step `number` at `rows` rows."""
    dtype = DTYPES[config.engine.dtype]
    key = ["rollout", number, rows, _pass_settings(config)]

    def adapted() -> nn.Module:
        model = work.spec.build()
        if work.spec.lora is not None:
            add_adapters(model, work.spec.lora, work.spec.lora_targets)
        return model

    step = work.rollout[number]
    return once(key, lambda: _linear(adapted, dtype, step.call, rows, step.found))


def forward(config: RunConfig, work: Workload, rows: int) -> Cost:
    """The cost of a training pass without gradients, on the whole model."""
    dtype = DTYPES[config.engine.dtype]
    key = ["forward", rows, _pass_settings(config)]
    return once(key, lambda: _linear(work.spec.build, dtype, work.train, rows)).at(rows)


def frozen_cost(config: RunConfig, model: Frozen, rows: int) -> Linear:
    settings = [r.model_dump() for r in config.rewards]
    key = ["frozen", model.name, str(model.dtype), rows, settings, _pass_settings(config)]
    return once(key, lambda: _linear(model.spec.build, model.dtype, model.call, rows))


def frozen_bytes(config: RunConfig, model: Frozen) -> int:
    """Bytes of a whole model's parameters and buffers."""

    def count() -> int:
        with without_memory():
            return bytes_of(empty_model(model.spec.build, model.dtype))

    settings = [r.model_dump() for r in config.rewards]
    return once(["bytes", model.name, str(model.dtype), settings, config.domain.model], count)


def _linear(
    build: Callable[[], nn.Module],
    dtype: torch.dtype,
    call: Call,
    rows: int,
    found: Call | None = None,
) -> Linear:
    """found: makes what the call finds there already, which is no work of its own."""
    other = 2 * rows
    with without_memory():
        model = empty_model(build, dtype)
        here, there = (cost_of(lambda n=n: call(model, n)) for n in (rows, other))  # type: ignore[misc]
        if found is not None:
            made = cost_of(lambda: found(model, rows))
            here = replace(here, operators=here.operators - made.operators)
    each = Cost(
        max(0, (there.peak - here.peak) // (other - rows)),
        max(0, (there.kept - here.kept) // (other - rows)),
        (there.flops - here.flops) / (other - rows),
        0,
    )
    return Linear(rows, here, each)
