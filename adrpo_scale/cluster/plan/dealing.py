"""The number of rows of each rank, computed by the code that deals them out in training."""

from __future__ import annotations

import warnings
from dataclasses import dataclass, replace

import torch

from adrpo_scale.algorithms.base import Algorithm
from adrpo_scale.cluster.plan.base import Hardware
from adrpo_scale.core import dist
from adrpo_scale.core.types import Rewards
from adrpo_scale.run.config import RunConfig
from adrpo_scale.training.batches import deal


@dataclass(frozen=True)
class RankLoad:
    """The work of the fullest rank.

    samples: samples of an iteration. chunk: samples generated at once. chunks: number of these in a
    rollout. prompts: different prompts in a chunk. rows: rows of a micro-batch. micro_batches:
    micro-batches of an optimizer step. steps: optimizer steps of an iteration. chosen: rows that
    all ranks together train on. unit: rows that stay together. sampled: different prompts sampled
    from in an iteration. received: most further prompts among the rows that it trains on, because
    rows are dealt by size.
    """

    samples: int
    chunk: int
    chunks: int
    prompts: int
    rows: int
    micro_batches: int
    steps: int
    chosen: int
    unit: int
    sampled: int
    received: int


def build_algorithm(config: RunConfig) -> Algorithm:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # already shown when the config was read
        return config.build_algorithm()


def load_of(config: RunConfig, hardware: Hardware) -> RankLoad:
    """The load if all rewards differ, so that no group is left out of training."""
    algorithm, optimizer = build_algorithm(config), config.optimizer
    prompts, group = config.prompts.per_iteration, config.prompts.group_size
    samples = -(-prompts * group // hardware.world)
    chunk = min(config.domain.chunk, samples)
    chosen = chosen_rows(algorithm, prompts, group)
    per_unit = algorithm.rows_per_unit
    units = -(-chosen // per_unit // optimizer.minibatches)
    micro_units = max(1, optimizer.micro_batch // per_unit)
    by_rank = deal(units, hardware.world, micro_units)
    sampled = _prompts_at_once(prompts * group, group, hardware.world, samples)
    return RankLoad(
        samples=samples,
        chunk=chunk,
        chunks=-(-samples // chunk),
        prompts=_prompts_at_once(prompts * group, group, hardware.world, config.domain.chunk),
        rows=per_unit * max(len(micro) for rank in by_rank for micro in rank),
        micro_batches=len(by_rank[0]) * optimizer.draws_per_sample,
        steps=optimizer.updates * optimizer.minibatches,
        chosen=chosen,
        unit=per_unit,
        sampled=sampled,
        received=max(0, min(-(-chosen // hardware.world), prompts - sampled)),
    )


def evaluation_load(config: RunConfig, hardware: Hardware) -> RankLoad:
    """The load of one split of an evaluation."""
    evaluation = config.evaluation
    each = evaluation.samples_per_prompt
    samples = -(-evaluation.prompts * each // hardware.world)
    chunk = min(config.domain.chunk, samples)
    return replace(
        load_of(config, hardware),
        samples=samples,
        chunk=chunk,
        chunks=-(-samples // chunk),
        prompts=_prompts_at_once(evaluation.prompts * each, each, hardware.world, chunk),
        steps=1,
        sampled=_prompts_at_once(evaluation.prompts * each, each, hardware.world, samples),
        received=0,
    )


def evaluation_splits(config: RunConfig) -> int:
    """The number of splits: training prompts, and held-out prompts if there are any."""
    prompts = config.prompts
    return 1 + (prompts.held_out is not None or prompts.held_out_share > 0)


def _prompts_at_once(samples: int, group: int, world: int, chunk: int) -> int:
    """Most different prompts in a chunk: a rank's block may begin inside a group."""
    blocks = [dist.block(samples, rank, world) for rank in range(world)]
    chunks = [b[k : k + chunk] for b in blocks for k in range(0, len(b), chunk)]
    return max(len({s // group for s in part}) for part in chunks)


def chosen_rows(algorithm: Algorithm, prompts: int, group: int) -> int:
    """The number of samples that the algorithm selects for training."""
    rewards = _rewards(prompts, group)
    return max(1, len(algorithm.select(rewards, algorithm.credit(rewards))))


def _rewards(prompts: int, group: int) -> Rewards:
    """Rewards of which no two are equal."""
    total = torch.rand(prompts, group, generator=torch.Generator().manual_seed(0)).double()
    return Rewards(
        names=["reward"],
        weights_R=torch.ones(1, dtype=torch.float64),
        per_reward_RPG=total[None],
        total_PG=total,
        mask_PG=torch.ones(prompts, group, dtype=torch.bool),
        prompt_ids_P=torch.arange(prompts),
    )


def needs_reference(config: RunConfig) -> bool:
    """True where every step evaluates the reference, and not only some for the log."""
    algorithm = build_algorithm(config)
    credit = algorithm.credit(_rewards(config.prompts.per_iteration, config.prompts.group_size))
    if algorithm.needs_reference(credit):
        return True
    is_held = config.reference.base_coefficient > 0 or config.regulariser.controller.is_on
    return (is_held or config.logging.divergence_every == 1) and not config.reference.moves


def base_passes(config: RunConfig, load: RankLoad) -> int:
    """Passes of the base in an iteration, beside those of a reference that moves: one for each row,
    or with every pass of the policy where a second penalty holds it to the base."""
    if not config.reference.moves:
        return 0
    every = load.steps * load.micro_batches
    if config.reference.base_coefficient > 0:
        return every
    return every // (config.optimizer.updates * config.optimizer.draws_per_sample)


def old_passes(config: RunConfig, load: RankLoad) -> int:
    """Passes of the policy before an iteration's first step: one for each row, or one for each of
    its draws where all updates have the same."""
    algorithm, optimizer = build_algorithm(config), config.optimizer
    if load.steps == 1 or not algorithm.needs_old:
        return 0
    shared = 1 if algorithm.wanted.same_draws else optimizer.draws_per_sample
    return load.steps * load.micro_batches // (optimizer.updates * shared)


def warnings_of(config: RunConfig, hardware: Hardware, load: RankLoad) -> list[str]:
    """Warnings about idle GPUs."""
    world, found = hardware.world, []
    samples = config.prompts.per_iteration * config.prompts.group_size
    if samples < world:
        found.append(
            f"{samples} samples an iteration for {world} GPUs: {world - samples} have none; raise "
            "prompts.per_iteration or prompts.group_size, or take fewer nodes"
        )
    per_step = load.chosen // config.optimizer.minibatches
    if per_step < world:
        is_split = config.optimizer.minibatches > 1
        fewer = "lower optimizer.minibatches" if is_split else "raise prompts.per_iteration"
        found.append(
            f"{per_step} rows an optimizer step for {world} GPUs: {world - per_step} work through "
            f"filler that counts nothing; {fewer}, or take fewer nodes"
        )
    return found
