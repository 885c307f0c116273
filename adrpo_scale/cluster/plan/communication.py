"""Traffic of one iteration, from the sharding units and the mesh of the real engine.

In a ring of n ranks, each receives (n - 1) / n of the gathered bytes in an all-gather, sends as
much in a reduce-scatter, and does both in an all-reduce. A ring over nodes crosses each node's
network card once in each direction. Sums between the nodes' replicas run in parallel on all GPUs of
a node, each with its part.
"""

from __future__ import annotations

from adrpo_scale.cluster.plan import rehearsal
from adrpo_scale.cluster.plan.base import Hardware, Traffic
from adrpo_scale.cluster.plan.dealing import RankLoad, base_passes, needs_reference, old_passes
from adrpo_scale.cluster.plan.memory import Held
from adrpo_scale.engines.planning import Phase, Shards
from adrpo_scale.engines.workload import Workload
from adrpo_scale.run.config import RunConfig
from adrpo_scale.run.given_pairs import has_given_pairs


def traffic_of(
    config: RunConfig, hardware: Hardware, work: Workload, load: RankLoad, what: Held
) -> list[Traffic]:
    """The traffic of each phase that has any."""
    sampled = not has_given_pairs(config)
    found = [
        _gathers("rollout", what.policy, hardware, sampled + (old_passes(config, load) > 0)),
        *([_reward(config, hardware, work, what)] if sampled else []),
        _update(config, hardware, load, what),
    ]
    return [traffic for traffic in found if traffic.inside or traffic.across]


def _reward(config: RunConfig, hardware: Hardware, work: Workload, what: Held) -> Traffic:
    inside = across = 0.0
    for model in work.frozen:
        if model.placement == "sharded":
            part = rehearsal.shards(model.name, config, hardware, what.engine, model.spec)
            one = _gathers("reward", part, hardware, 1)
            inside, across = inside + one.inside, across + one.across
    return Traffic("reward", inside, across)


def _update(config: RunConfig, hardware: Hardware, load: RankLoad, what: Held) -> Traffic:
    passes = load.steps * load.micro_batches
    reference = what.moving if config.reference.moves else what.base
    parts = [
        _gathers("update", what.policy, hardware, 2 * passes),  # forward and backward
        _gathers("update", reference or what.policy, hardware, passes * needs_reference(config)),
        _gathers("update", what.base or what.policy, hardware, base_passes(config, load)),
    ]
    always = what.engine.reduces_every_micro_batch
    reductions = passes if always else load.steps
    parts.append(_reductions(what.policy, hardware, reductions))
    return Traffic("update", sum(p.inside for p in parts), sum(p.across for p in parts))


def _gathers(phase: Phase, shards: Shards, hardware: Hardware, times: int) -> Traffic:
    n = shards.degree
    amount = times * shards.whole * (n - 1) / n
    return Traffic(phase, amount, amount if n > hardware.gpus_per_node else 0.0)


def _reductions(shards: Shards, hardware: Hardware, times: int) -> Traffic:
    """Traffic of float32 gradients: reduce-scatter within a copy, then all-reduce over the
    copies."""
    n, copies, amount = shards.degree, shards.copies, 4.0 * times * shards.trained
    cut = amount * (n - 1) / n
    inside, across = cut, cut if n > hardware.gpus_per_node else 0.0
    if copies > 1:
        summed = 2 * (amount / n) * (copies - 1) / copies
        if n == 1:  # one ring through all GPUs
            inside += summed
            across += summed if hardware.nodes > 1 else 0.0
        else:  # n rings between the nodes, one for each part
            across += n * summed
    return Traffic("update", inside, across)
