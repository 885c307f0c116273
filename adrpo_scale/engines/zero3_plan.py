"""ZeRO-3's answers to `plan`, computed from its partitioning rule.

DeepSpeed cannot be rehearsed on fake tensors: it partitions real memory. Its rule (each parameter
is padded to a multiple of the ranks) is repeated here, and a test compares it with the engine.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn

from adrpo_scale.engines.fake import fake_ranks
from adrpo_scale.engines.fsdp2 import Fsdp2Config
from adrpo_scale.engines.fsdp2_plan import RehearsedFsdp2
from adrpo_scale.engines.loading import build_on_meta
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
from adrpo_scale.engines.spec import DTYPES, ModelSpec
from adrpo_scale.engines.zero3 import REDUCE_BUCKET, Zero3Config

FLOAT32 = 4  # bytes
LIVE_PARAMETERS = 10**9  # DeepSpeed's stage3_max_live_parameters


class Zero3Plan(EnginePlan):
    config: Zero3Config

    @property
    def sharding(self) -> str:
        return f'shard "{self.config.shard}"'

    @property
    def spreads_over_all(self) -> bool:
        return self.config.shard == "all"

    @property
    def reduces_every_micro_batch(self) -> bool:
        return True

    def shards(self, spec: ModelSpec, ranks: Ranks, *, trained: bool) -> Shards:
        return shards_of(spec, self.config, ranks, trained=trained)

    @contextmanager
    def rehearsal(self, ranks: Ranks) -> Iterator[Rehearsed]:
        """FSDP2 on one rank, unsharded: the activations are those of the plain model."""
        plain = {name: getattr(self.config, name) for name in ("dtype", "activation_checkpointing")}
        with fake_ranks(Ranks(1, 1)):
            yield RehearsedFsdp2(Fsdp2Config(shard=1, device="cpu", **plain), self.optimizer)

    def rehearsed_shards(self, engine: Rehearsed, policy: nn.Module) -> Shards | None:
        return None

    def update_memory(self, policy: Shards, peak: int, gradients: int, world: int) -> Working:
        waiting = min(max(gradients, policy.gradients), peak)
        width = policy.whole * min(1.0, LIVE_PARAMETERS * 2 / max(1, policy.whole))
        buckets = 6 * min(REDUCE_BUCKET, policy.trained)
        return Working(policy.gradients, peak - waiting + int(width) + buckets)

    def sharding_rungs(self) -> Iterator[Rung]:
        if self.config.shard == "node":
            yield Rung(("engine.shard=all",), EVERY, Price.TRAVEL)

    def host_rungs(self) -> Iterator[Rung]:
        if not self.config.offload_optimizer:
            yield Rung(("engine.offload_optimizer=true",), EVERY, Price.HOST)
        if not self.config.offload_parameters:
            yield Rung(("engine.offload_parameters=true",), EVERY, Price.HOST)


def shards_of(spec: ModelSpec, config: Zero3Config, ranks: Ranks, *, trained: bool) -> Shards:
    """Shards of a rank under ZeRO-3, in GPU memory; offloaded parts are not counted.

    gradients: DeepSpeed's flat buffer of this rank's parts.
    """
    world, per_node = ranks.world, ranks.per_node
    model = build_on_meta(spec, trained=trained)
    width = DTYPES[config.dtype].itemsize
    parts = {p: -(-p.numel() // world) for p in model.parameters()}
    part = sum(parts.values())
    mine = sum(size for p, size in parts.items() if p.requires_grad) if trained else 0
    buffers = sum(b.numel() * b.element_size() for b in model.buffers())
    second = per_node if config.shard == "node" and 1 < per_node < world else 0
    inside = sum(-(-size * world // second) for size in parts.values()) if second else 0
    on_gpu = 0 if config.offload_parameters else part
    states = 0 if config.offload_optimizer else FLOAT32 * mine
    # DeepSpeed keeps separate masters also where the parameters are float32.
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
