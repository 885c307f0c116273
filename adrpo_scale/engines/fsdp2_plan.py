"""FSDP2's answers to `plan`, measured on the engine itself.

`build_policy` and `build_frozen` run in a fake process group of the real size, on fake tensors,
with shapes in place of weights.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, cast

import torch
import torch.distributed as td
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor

from adrpo_scale.engines.base import OptimizerConfig
from adrpo_scale.engines.fake import fake_ranks, with_memory, without_memory
from adrpo_scale.engines.fsdp2 import Fsdp2Config, Fsdp2Engine
from adrpo_scale.engines.planning import (
    EVERY,
    EnginePlan,
    Price,
    Ranks,
    Rehearsed,
    Rung,
    Shards,
    Working,
)
from adrpo_scale.engines.spec import ModelSpec

FLOAT32 = 4  # bytes


class RehearsedFsdp2(Fsdp2Engine, Rehearsed):
    """The engine on the CPU, inside `without_memory()`. The steps on the meta device run on real
    meta tensors."""

    def __init__(self, config: Fsdp2Config, optimizer: OptimizerConfig) -> None:
        safe = {"device": "cpu", "deterministic": False}
        super().__init__(config.model_copy(update=safe), optimizer, seed=0)

    def _sharded_on_meta(self, spec: ModelSpec, *, trained: bool) -> nn.Module:
        with with_memory():
            return super()._sharded_on_meta(spec, trained=trained)

    def _materialised(self, tensor: Tensor) -> Tensor:
        """Fake memory, also for buffers: a real one would be counted as new at its first use."""
        return torch.empty_like(tensor, device=self.device)

    def _load(self, model: nn.Module, spec: ModelSpec) -> None:
        """Fake tensors hold nothing."""

    def drop_gradients(self) -> None:
        for tensor in self._stepped().values():
            tensor.grad = None


class Fsdp2Plan(EnginePlan):
    config: Fsdp2Config

    @property
    def sharding(self) -> str:
        return f'shard "{self.config.shard}"'

    @property
    def spreads_over_all(self) -> bool:
        return self.config.shard == "all"

    @property
    def reduces_every_micro_batch(self) -> bool:
        return self.config.reduce_every_micro_batch

    def shards(self, spec: ModelSpec, ranks: Ranks, *, trained: bool) -> Shards:
        with self.rehearsal(ranks) as engine:
            with without_memory():
                model = (engine.build_policy if trained else engine.build_frozen)(spec)
            return shards_of(engine, model, trained=trained)

    @contextmanager
    def rehearsal(self, ranks: Ranks) -> Iterator[RehearsedFsdp2]:
        with fake_ranks(ranks):
            yield RehearsedFsdp2(self.config, self.optimizer)

    def rehearsed_shards(self, engine: Rehearsed, policy: nn.Module) -> Shards | None:
        return shards_of(cast(RehearsedFsdp2, engine), policy, trained=True)

    def update_memory(self, policy: Shards, peak: int, gradients: int, world: int) -> Working:
        # The peak includes gradients that wait for the next micro-batch and new ones.
        waiting = min(max(gradients, policy.gradients), peak)
        working = peak - waiting
        if policy.degree == 1 and world > 1:  # the flat buffer of `sum_gradients`
            working = max(working, FLOAT32 * policy.trained)
        return Working(waiting, working)

    def sharding_rungs(self) -> Iterator[Rung]:
        shard, at_once = self.config.shard, "engine.reduce_every_micro_batch=true"
        if shard == 1:
            yield Rung(("engine.shard=node",), EVERY, Price.TRAVEL)
        if shard != 1 and not self.config.reduce_every_micro_batch:
            yield Rung((at_once,), ("update",), Price.TRAVEL)
        if shard != "all":
            yield Rung(("engine.shard=all",), EVERY, Price.TRAVEL)
            yield Rung(("engine.shard=all", at_once), EVERY, Price.TRAVEL)


def shards_of(engine: Fsdp2Engine, model: nn.Module, *, trained: bool) -> Shards:
    """Shards of a model that `engine` has built, on this rank.

    To be called outside of `without_memory()`: the offsets of slices are computed on real tensors.
    """
    slices = engine.trained_slices() if trained else {}
    gathered = [unit_bytes(unit, engine.dtype.itemsize) for unit in units_of(model)]
    moments = [t for part in engine.moments().values() for t in part.values()] if trained else []
    parameters = sum(_held(t) for t in {*model.parameters(), *model.buffers()})
    trainable = sum(p.numel() for p in model.parameters() if p.requires_grad)
    mesh = engine.mesh
    degree = 1 if mesh is None else mesh.size(mesh.ndim - 1)
    return Shards(
        parameters=parameters,
        masters=sum(_size(t) for t in engine._masters.values()) if trained else 0,
        gradients=FLOAT32 * sum(part.numel() for part in slices.values()),
        moments=sum(_size(t) for t in moments),
        slices=FLOAT32 * sum(part.numel() for part in slices.values()),
        whole=sum(gathered) if gathered else parameters,
        largest=max(gathered, default=0),
        trained=trainable if trained else 0,
        degree=degree,
        copies=td.get_world_size() // degree if td.is_initialized() else 1,
    )


def units_of(model: nn.Module) -> list[Any]:
    """The sharding units, the root first."""
    return [module for module in model.modules() if isinstance(module, FSDPModule)]


def unit_bytes(unit: Any, width: int) -> int:
    """Bytes of one unit's gathered parameters, `width` bytes per element."""
    group = unit._get_fsdp_state()._fsdp_param_group
    if group is None:  # the unit has no parameters of its own
        return 0
    size = sum(p.padded_sharded_param_size.numel() for p in group.fsdp_params)
    return size * group.mesh_info.shard_mesh_size * width


def _size(tensor: Tensor) -> int:
    return tensor.numel() * tensor.element_size()


def _held(tensor: Tensor) -> int:
    return _size(tensor.to_local() if isinstance(tensor, DTensor) else tensor)
