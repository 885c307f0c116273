"""Bytes of one GPU by what they are for and when they are there.

Phases follow the trainer: `load` (rewards are there, rank 0 makes embeddings, before there is a
policy), `rollout`, `reward`, `update`, `evaluation`. Of two uses that follow one another inside a
phase (the solver, then the VAE) the larger counts.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from adrpo_scale.cluster.plan import rehearsal
from adrpo_scale.cluster.plan.base import (
    GIB,
    PHASES,
    Hardware,
    MemoryItem,
    Phase,
    PhaseMemory,
    Shards,
)
from adrpo_scale.cluster.plan.dealing import Dealt, evaluation_dealt, evaluation_splits
from adrpo_scale.cluster.plan.parts import Clips, Frozen, Workload
from adrpo_scale.cluster.plan.sharding import is_zero3
from adrpo_scale.engines.zero3 import REDUCE_BUCKET
from adrpo_scale.run.config import RunConfig

CONTEXT = GIB // 2  # CUDA's context, cuBLAS, cuDNN
NCCL = GIB // 2  # its buffers, where there is more than one GPU
FRAGMENTATION = 0.05  # of the peak: what the caching allocator holds and cannot use
LIVE_PARAMETERS = 10**9  # DeepSpeed's stage3_max_live_parameters
RUNNING: tuple[Phase, ...] = ("rollout", "reward", "update", "evaluation")


@dataclass(frozen=True)
class Held:
    """What a GPU holds all the time."""

    policy: Shards
    reference: Shards | None
    update: rehearsal.Update


def reserve(hardware: Hardware) -> int:
    return CONTEXT + (NCCL if hardware.world > 1 else 0)


def usable(hardware: Hardware) -> int:
    return int((hardware.gpu.memory - reserve(hardware)) / (1 + FRAGMENTATION))


def held(config: RunConfig, hardware: Hardware, work: Workload, dealt: Dealt) -> Held:
    """Rehearses the update, then the sharding of the reference."""
    update = rehearsal.update(config, hardware, work, dealt.rows, dealt.micro_batches)
    policy = rehearsal.shards("policy", config, hardware, work.spec, trained=True)
    reference = None
    if work.reference is not None:
        reference = rehearsal.shards("reference", config, hardware, work.reference, trained=False)
    return Held(policy, reference, update)


def items_of(
    config: RunConfig, hardware: Hardware, work: Workload, dealt: Dealt, what: Held
) -> list[MemoryItem]:
    """Everything that is there in some phase."""
    found = _always(config, what)
    for model in work.frozen:
        found += _frozen(config, hardware, model, dealt)
    if work.clips is not None:
        bytes_kept = _clips(config, hardware, work.clips, dealt)
        found.append(MemoryItem("encoded clips, kept", bytes_kept, RUNNING))
    found += _rollout(config, hardware, work, dealt, what)
    found += _update(config, hardware, work, what)
    if config.evaluation.every:
        found += _evaluation(config, hardware, work, what)
    return [item for item in found if item.bytes > 0]


def _always(config: RunConfig, what: Held) -> list[MemoryItem]:
    policy = what.policy
    ema = policy.slices if config.ema_decay is not None else 0
    reference = what.reference.parameters if what.reference is not None else 0
    return [
        MemoryItem("policy: parameters", policy.parameters, RUNNING),
        MemoryItem("policy: float32 masters", policy.masters, RUNNING),
        MemoryItem("policy: Adam's moments", policy.moments, RUNNING),
        MemoryItem("policy: moving average (EMA)", ema, RUNNING),
        MemoryItem("reference", reference, RUNNING),
    ]


def _frozen(config: RunConfig, hardware: Hardware, model: Frozen, dealt: Dealt) -> list[MemoryItem]:
    """Its parameters, whenever they are there, and what it works with."""
    cost = rehearsal.frozen_cost(config, model, model.rows)
    rows = model.rows if model.placement == "rank 0" else min(model.rows, dealt.samples)
    if model.phase == "reward":
        rows = min(rows, dealt.chunk)  # rewards see a chunk at a time
    working = MemoryItem(f"{model.name}: at work", cost.at(rows).peak, [model.phase])
    whole = rehearsal.frozen_bytes(config, model)
    if model.placement == "rank 0":
        return [MemoryItem(f"{model.name}: whole, on rank 0", whole, ["load"]), working]
    if model.placement == "replicated":
        first: list[Phase] = ["load"] if model.phase == "reward" else []
        return [MemoryItem(f"{model.name}: whole", whole, [*first, *RUNNING]), working]
    part = rehearsal.shards(model.name, config, hardware, model.spec, trained=False)
    gathered = part.whole + part.largest if part.degree > 1 else 0
    return [
        MemoryItem(f"{model.name}: shard", part.parameters, ["load", *RUNNING]),
        MemoryItem(f"{model.name}: gathered", gathered, ["reward"]),
        working,
    ]


def _clips(config: RunConfig, hardware: Hardware, clips: Clips, dealt: Dealt) -> int:
    """All that a rank meets in the run, up to what it may keep; one, whatever it may."""
    met = config.iterations * (dealt.sampled + dealt.received)
    if config.evaluation.every:
        met += evaluation_splits(config) * evaluation_dealt(config, hardware).sampled
    return max(clips.bytes, min(clips.kept, met * clips.bytes))


def encoding(config: RunConfig, work: Workload) -> int:
    """Bytes that the encoding of a clip works with."""
    towers = [model for model in work.frozen if model.per_clip]
    return max((rehearsal.frozen_cost(config, m, m.rows).at(1).peak for m in towers), default=0)


def gathered_bytes(shards: Shards) -> int:
    """What `engine.sampling()` adds: the model, and the buffer that its last unit came in."""
    return shards.whole + shards.largest if shards.degree > 1 else 0


def _rollout(
    config: RunConfig, hardware: Hardware, work: Workload, dealt: Dealt, what: Held
) -> list[MemoryItem]:
    found = [MemoryItem("policy: gathered to sample", gathered_bytes(what.policy), ["rollout"])]
    if getattr(config.domain, "backend", "") == "vllm":
        share = config.domain.vllm_memory * hardware.gpu.memory
        return [*found, MemoryItem("vLLM", int(share), RUNNING)]
    largest = MemoryItem("", 0, ["rollout"])
    cache = 0
    for number, step in enumerate(work.rollout):
        rows = dealt.prompts if step.per_group else dealt.chunk
        cost = rehearsal.rollout_step(config, work, number, rows).at(rows)
        if step.name == "tokens":
            cache = cost.kept
        if cost.peak > largest.bytes:
            largest = MemoryItem(f"sampling: {step.name}", cost.peak, ["rollout"])
    if cache and largest.name == "sampling: tokens":
        largest = MemoryItem(largest.name, largest.bytes - cache, ["rollout"])
        found.append(MemoryItem("sampling: KV cache", cache, ["rollout"]))
    return [*found, largest]


def _update(config: RunConfig, hardware: Hardware, work: Workload, what: Held) -> list[MemoryItem]:
    policy, update = what.policy, what.update
    # The peak has those that wait for the next micro-batch in it, and those that are made.
    waiting = min(max(update.gradients, policy.gradients), update.peak)
    working = update.peak - waiting
    if is_zero3(config.engine):
        waiting = policy.gradients
        width = policy.whole * min(1.0, LIVE_PARAMETERS * 2 / max(1, policy.whole))
        working += int(width) + 6 * min(REDUCE_BUCKET, policy.trained)
    elif policy.degree == 1 and hardware.world > 1:  # summed in one flat buffer
        working = max(working, 4 * policy.trained)
    working = max(working, encoding(config, work))  # of clips that came from other ranks
    return [
        MemoryItem("policy: gradients", waiting, ["update"]),
        MemoryItem("update: activations, gathered units, logits", working, ["update"]),
    ]


def _evaluation(
    config: RunConfig, hardware: Hardware, work: Workload, what: Held
) -> list[MemoryItem]:
    """The divergence from the reference is measured with both whole."""
    gathered = gathered_bytes(what.policy)
    if what.reference is not None:
        gathered += gathered_bytes(what.reference)
    dealt = evaluation_dealt(config, hardware)
    working = max(rehearsal.forward(config, work, dealt.chunk).peak, encoding(config, work))
    for number, step in enumerate(work.rollout):
        rows = dealt.prompts if step.per_group else dealt.chunk
        working = max(working, rehearsal.rollout_step(config, work, number, rows).at(rows).peak)
    return [
        MemoryItem("policy and reference: gathered", gathered, ["evaluation"]),
        MemoryItem("evaluation: samples, divergence", working, ["evaluation"]),
    ]


def peaks(items: Sequence[MemoryItem], config: RunConfig) -> list[PhaseMemory]:
    """By phase. The VAE works after the solver, when the policy is not gathered any more; clips are
    encoded before the first token."""
    found = []
    for phase in PHASES:
        total = sum(item.bytes for item in items if phase in item.phases)
        if phase == "rollout":
            total -= _not_at_once(items)
        if total and (phase != "evaluation" or config.evaluation.every):
            found.append(PhaseMemory(phase, total))
    return found


def _not_at_once(items: Sequence[MemoryItem]) -> int:
    here = [item for item in items if "rollout" in item.phases]

    def total(*starts: str) -> int:
        return sum(item.bytes for item in here if item.name.startswith(starts))

    decoding = min(total("VAE: at work"), total("sampling:", "policy: gathered to sample"))
    return decoding + min(total("audio tower: at work"), total("sampling:"))
