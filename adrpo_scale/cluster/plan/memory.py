"""Memory of one GPU, by purpose and phase.

The phases are those of the trainer: `load` (rewards are loaded and prompts are embedded,
before there is a policy), `rollout`, `reward`, `update`, `evaluation`. Of two uses that follow each
other inside a phase (the solver, then the VAE) the larger counts.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from adrpo_scale.cluster.plan import rehearsal
from adrpo_scale.cluster.plan.base import (
    GIB,
    Hardware,
    MemoryItem,
    PhaseMemory,
)
from adrpo_scale.cluster.plan.dealing import RankLoad, evaluation_load, evaluation_splits
from adrpo_scale.cluster.plan.workload import engine_of
from adrpo_scale.engines.planning import EVERY, RUNNING, EnginePlan, Phase, Shards
from adrpo_scale.engines.workload import Clips, Frozen, Workload
from adrpo_scale.run.config import RunConfig
from adrpo_scale.run.given_pairs import has_given_pairs

CONTEXT = GIB // 2  # CUDA's context, cuBLAS, cuDNN
NCCL = GIB // 2  # its buffers, with more than one GPU
FRAGMENTATION = 0.05  # share of the peak that the caching allocator holds but cannot use


@dataclass(frozen=True)
class Models:
    """The models that a GPU always holds, and the engine that computed their shards. base, moving:
    frozen models beside the policy; None where adapters of the policy take their place, and without
    a reference that moves."""

    engine: EnginePlan
    policy: Shards
    base: Shards | None
    moving: Shards | None


@dataclass(frozen=True)
class Held(Models):
    """These, and the rehearsed update."""

    update: rehearsal.Update


def reserve(hardware: Hardware) -> int:
    return CONTEXT + (NCCL if hardware.world > 1 else 0)


def usable(hardware: Hardware) -> int:
    return int((hardware.gpu.memory - reserve(hardware)) / (1 + FRAGMENTATION))


def held(config: RunConfig, hardware: Hardware, work: Workload, load: RankLoad) -> Held:
    """Rehearses the update, then the sharding of the reference. Raises ConfigError for an engine
    that plan cannot ask."""
    engine = engine_of(config)
    update = rehearsal.update(config, hardware, engine, work, load.rows, load.micro_batches)
    found = models(config, hardware, work)
    return Held(found.engine, found.policy, found.base, found.moving, update)


def models(config: RunConfig, hardware: Hardware, work: Workload) -> Models:
    """Shards the policy and the reference, without an update, which takes longest to rehearse.
    Raises ConfigError for an engine that plan cannot ask."""
    engine = engine_of(config)
    policy = rehearsal.shards("policy", config, hardware, engine, work.spec, trained=True)
    base = None
    if work.reference is not None:
        base = rehearsal.shards("reference", config, hardware, engine, work.reference)
    return Models(engine, policy, base, base if config.reference.moves else None)


def items_of(
    config: RunConfig, hardware: Hardware, work: Workload, load: RankLoad, what: Held
) -> list[MemoryItem]:
    """All memory that is allocated in some phase."""
    found = between_updates(config, hardware, work, load, what)
    return [*found, *(item for item in _update(config, hardware, work, what) if item.bytes > 0)]


def between_updates(
    config: RunConfig, hardware: Hardware, work: Workload, load: RankLoad, what: Models
) -> list[MemoryItem]:
    """All memory that is allocated in some phase, but for that of updates."""
    found = _always(config, what)
    for model in work.frozen:
        found += _frozen(config, hardware, model, load, what.engine)
    if work.clips is not None:
        bytes_kept = _clips(config, hardware, work.clips, load)
        found.append(MemoryItem("encoded clips, kept", bytes_kept, RUNNING))
    found += _rollout(config, hardware, work, load, what)
    if config.evaluation.every:
        found += _evaluation(config, hardware, work, what)
    return [item for item in found if item.bytes > 0]


def _always(config: RunConfig, what: Models) -> list[MemoryItem]:
    policy = what.policy
    ema = policy.slices if config.ema_decay is not None else 0
    average = policy.slices if config.reference.moves else 0
    base, moving = (m.parameters if m is not None else 0 for m in (what.base, what.moving))
    return [
        MemoryItem("policy: parameters", policy.parameters, RUNNING),
        MemoryItem("policy: float32 masters", policy.masters, RUNNING),
        MemoryItem("policy: Adam's moments", policy.moments, RUNNING),
        MemoryItem("policy: moving average (EMA)", ema, RUNNING),
        MemoryItem("reference", base, RUNNING),
        MemoryItem("moving reference: average", average, RUNNING),
        MemoryItem("moving reference: parameters", moving, RUNNING),
    ]


def _frozen(
    config: RunConfig, hardware: Hardware, model: Frozen, load: RankLoad, engine: EnginePlan
) -> list[MemoryItem]:
    """A frozen model's parameters, in the phases that hold them, and its working memory."""
    cost = rehearsal.frozen_cost(config, model, model.rows)
    rows = model.rows if model.placement == "at loading" else min(model.rows, load.samples)
    if model.phase == "reward":
        rows = min(rows, load.chunk)  # rewards see a chunk at a time
    working = MemoryItem(f"{model.name}: at work", cost.at(rows).peak, [model.phase])
    whole = rehearsal.frozen_bytes(config, model)
    if model.placement == "at loading":
        return [
            MemoryItem(f"{model.name}: whole, while prompts are embedded", whole, ["load"]),
            working,
        ]
    if model.placement == "replicated":
        first: list[Phase] = ["load"] if model.phase == "reward" else []
        return [MemoryItem(f"{model.name}: whole", whole, [*first, *RUNNING]), working]
    part = rehearsal.shards(model.name, config, hardware, engine, model.spec)
    gathered = part.whole + part.largest if part.degree > 1 else 0
    return [
        MemoryItem(f"{model.name}: shard", part.parameters, ["load", *RUNNING]),
        MemoryItem(f"{model.name}: gathered", gathered, ["reward"]),
        working,
    ]


def _clips(config: RunConfig, hardware: Hardware, clips: Clips, load: RankLoad) -> int:
    """Bytes of the encoded clips that a rank keeps: all it meets, up to its limit, but at least
    one."""
    met = config.iterations * (load.sampled + load.received)
    if config.evaluation.every:
        met += evaluation_splits(config) * evaluation_load(config, hardware).sampled
    return max(clips.bytes, min(clips.kept, met * clips.bytes))


def encoding(config: RunConfig, work: Workload) -> int:
    """Working memory of encoding a clip."""
    towers = [model for model in work.frozen if model.per_clip]
    return max((rehearsal.frozen_cost(config, m, m.rows).at(1).peak for m in towers), default=0)


def gathered_bytes(shards: Shards) -> int:
    """Memory that `engine.sampling()` adds: the whole model, and the buffer of its largest unit."""
    return shards.whole + shards.largest if shards.degree > 1 else 0


def _rollout(
    config: RunConfig, hardware: Hardware, work: Workload, load: RankLoad, what: Models
) -> list[MemoryItem]:
    found = [MemoryItem("policy: gathered to sample", gathered_bytes(what.policy), ["rollout"])]
    if has_given_pairs(config):
        return found  # once, to compare its log-probabilities with its logits
    if work.sampler is not None:
        share = work.sampler.share * hardware.gpu.memory
        return [*found, MemoryItem(work.sampler.name, int(share), RUNNING)]
    largest = MemoryItem("", 0, ["rollout"])
    cache, cached = 0, ""
    for number, step in enumerate(work.rollout):
        rows = load.prompts if step.per_group else load.chunk
        cost = rehearsal.rollout_step(config, work, number, rows).at(rows)
        if step.has_cache:
            cache, cached = cost.kept, f"sampling: {step.name}"
        if cost.peak > largest.bytes:
            largest = MemoryItem(f"sampling: {step.name}", cost.peak, ["rollout"])
    if cache and largest.name == cached:
        largest = MemoryItem(largest.name, largest.bytes - cache, ["rollout"])
        found.append(MemoryItem("sampling: KV cache", cache, ["rollout"]))
    return [*found, largest]


def _update(config: RunConfig, hardware: Hardware, work: Workload, what: Held) -> list[MemoryItem]:
    update = what.update
    found = what.engine.update_memory(what.policy, update.peak, update.gradients, hardware.world)
    working = max(found.working, encoding(config, work))  # clips may come from other ranks
    return [
        MemoryItem("policy: gradients", found.waiting, ["update"]),
        MemoryItem("update: activations, gathered units, logits", working, ["update"]),
    ]


def _evaluation(
    config: RunConfig, hardware: Hardware, work: Workload, what: Models
) -> list[MemoryItem]:
    """Memory of an evaluation: its divergence needs policy and reference gathered at once."""
    gathered = gathered_bytes(what.policy)
    if what.base is not None:
        gathered += gathered_bytes(what.base)
    load = evaluation_load(config, hardware)
    working = max(rehearsal.forward(config, work, load.chunk).peak, encoding(config, work))
    for number, step in enumerate(work.rollout):
        rows = load.prompts if step.per_group else load.chunk
        working = max(working, rehearsal.rollout_step(config, work, number, rows).at(rows).peak)
    return [
        MemoryItem("policy and reference: gathered", gathered, ["evaluation"]),
        MemoryItem("evaluation: samples, divergence", working, ["evaluation"]),
    ]


def peaks(items: Sequence[MemoryItem], config: RunConfig, work: Workload) -> list[PhaseMemory]:
    """Peak memory of each phase. Decoding (the VAE) follows the solver, when the policy is no
    longer gathered; encoding of clips precedes the first token."""
    found = []
    for phase in EVERY:
        total = sum(item.bytes for item in items if phase in item.phases)
        if phase == "rollout":
            total -= _not_at_once(items, work)
        if total and (phase != "evaluation" or config.evaluation.every):
            found.append(PhaseMemory(phase, total))
    return found


def encoders_of(config: RunConfig, work: Workload) -> int:
    """Bytes of the models that a rank holds only while prompts are embedded."""
    loading = [model for model in work.frozen if model.placement == "at loading"]
    return sum(rehearsal.frozen_bytes(config, model) for model in loading)


def at_work(work: Workload, *, per_clip: bool) -> tuple[str, ...]:
    """Names of items: models that run before the samples are generated (per_clip), or after."""
    models = [m for m in work.frozen if m.phase == "rollout" and m.per_clip == per_clip]
    return tuple(f"{model.name}: at work" for model in models)


def _not_at_once(items: Sequence[MemoryItem], work: Workload) -> int:
    here = [item for item in items if "rollout" in item.phases]

    def total(*starts: str) -> int:
        return sum(item.bytes for item in here if item.name.startswith(starts))

    after, before = at_work(work, per_clip=False), at_work(work, per_clip=True)
    decoding = min(total(*after), total("sampling:", "policy: gathered to sample"))
    return decoding + min(total(*before), total("sampling:"))
