"""What every rank holds of a model, by the real engine on a fake process group of the real size.

FSDP2: the engine's own `build_policy` and `build_frozen` run, with shapes in place of weights and
fake tensors in place of memory. ZeRO-3 partitions real memory, so a model of billions would need
it: its rule (each parameter padded to a multiple of the ranks) is written down here, and a test
holds it against the engine.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as td
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor
from torch.testing._internal.distributed.fake_pg import FakeStore

from adrpo_scale.cluster.plan.base import Shards
from adrpo_scale.cluster.plan.measure import with_memory
from adrpo_scale.core.errors import ConfigError
from adrpo_scale.engines.base import EngineConfig, OptimizerConfig
from adrpo_scale.engines.fsdp2 import Fsdp2Config, Fsdp2Engine
from adrpo_scale.engines.loading import build_on_meta
from adrpo_scale.engines.spec import DTYPES, ModelSpec
from adrpo_scale.engines.zero3 import Zero3Config

FLOAT32 = 4  # bytes


@contextmanager
def fake_ranks(world: int, per_node: int, rank: int = 0) -> Iterator[None]:
    """Inside, this process is rank `rank` of `world`, with collectives that do nothing.

    Raises ConfigError inside a real process group.
    """
    if td.is_initialized():
        raise ConfigError("plan was called inside a process group; it needs a process of its own")
    facts = {"RANK": rank, "WORLD_SIZE": world, "LOCAL_RANK": rank % per_node}
    facts |= {"LOCAL_WORLD_SIZE": min(per_node, world)}
    before = {name: os.environ.get(name) for name in facts}
    threads = torch.get_num_threads()
    os.environ.update({name: str(value) for name, value in facts.items()})
    if world > 1:
        td.init_process_group("fake", store=FakeStore(), rank=rank, world_size=world)
    try:
        yield
    finally:
        if td.is_initialized():
            td.destroy_process_group()
        torch.set_num_threads(threads)
        for name, value in before.items():
            os.environ.pop(name, None)
            if value is not None:
                os.environ[name] = value


class RehearsedFsdp2(Fsdp2Engine):
    """The engine, on the CPU and inside `without_memory()`. Models are built on the meta device,
    where no tensor needs to be fake."""

    def __init__(self, config: Fsdp2Config, optimizer: OptimizerConfig) -> None:
        safe = {"device": "cpu", "deterministic": False}
        super().__init__(config.model_copy(update=safe), optimizer, seed=0)

    def _sharded_on_meta(self, spec: ModelSpec, *, trained: bool) -> nn.Module:
        with with_memory():
            return super()._sharded_on_meta(spec, trained=trained)

    def _materialised(self, tensor: Tensor) -> Tensor:
        """Buffers too: one with memory would be counted as new by whoever meets it first."""
        return torch.empty_like(tensor, device=self.device)

    def _load(self, model: nn.Module, spec: ModelSpec) -> None:
        """Fake tensors hold nothing."""


def shards_of(engine: Fsdp2Engine, model: nn.Module, *, trained: bool) -> Shards:
    """What this rank holds of a model that `engine` has built. Call it outside of
    `without_memory()`: where slices begin is computed on tensors."""
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
    """Of one unit's parameters gathered, `width` bytes each."""
    group = unit._get_fsdp_state()._fsdp_param_group
    if group is None:  # a unit that shares another's
        return 0
    size = sum(p.padded_sharded_param_size.numel() for p in group.fsdp_params)
    return size * group.mesh_info.shard_mesh_size * width


def _size(tensor: Tensor) -> int:
    return tensor.numel() * tensor.element_size()


def _held(tensor: Tensor) -> int:
    return _size(tensor.to_local() if isinstance(tensor, DTensor) else tensor)


def zero3_shards(
    spec: ModelSpec, config: Zero3Config, world: int, per_node: int, *, trained: bool
) -> Shards:
    """What a rank holds under ZeRO-3. gradients: DeepSpeed's flat buffer of this rank's parts.

    With offloading, what lies in host memory counts nothing here.
    """
    model = build_on_meta(spec, trained=trained)
    width = DTYPES[config.dtype].itemsize
    parts = {p: -(-p.numel() // world) for p in model.parameters()}
    part = sum(parts.values())
    mine = sum(size for p, size in parts.items() if p.requires_grad) if trained else 0
    buffers = sum(_size(b) for b in model.buffers())
    second = per_node if config.shard == "node" and 1 < per_node < world else 0
    inside = sum(-(-size * world // second) for size in parts.values()) if second else 0
    on_gpu = 0 if config.offload_parameters else part
    states = 0 if config.offload_optimizer else FLOAT32 * mine
    # The float32 masters of float32 parameters are copies too.
    return Shards(
        parameters=width * (on_gpu + inside) + buffers,
        masters=states,
        gradients=states,
        moments=2 * states,
        slices=FLOAT32 * mine,
        whole=width * sum(p.numel() for p in parts) + buffers,
        largest=width * max(p.numel() for p in parts),
        trained=sum(p.numel() for p in parts if p.requires_grad) if trained else 0,
        degree=world,
        copies=1,
    )


def is_zero3(config: EngineConfig) -> bool:
    return isinstance(config, Zero3Config)
