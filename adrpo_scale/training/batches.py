"""Chosen rows → micro-batches: the same number on every rank, at every optimizer step.

Units (a row, or a pair whose rows stay together) are dealt evenly over ranks. A rank with too few
gets a filler unit of weight 0: a rank that skipped a backward alone would leave the others waiting
in a collective.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from adrpo_scale.core import dist
from adrpo_scale.core.types import Credit, Rows
from adrpo_scale.domains.base import Domain

UnitsByRank = list[list[list[tuple[int, bool]]]]
"""[rank][micro-batch] → [(unit, False for filler)]."""


@dataclass(frozen=True)
class MicroBatch:
    """Rows of one forward and backward. noise_ids_N: int64, the sample id that seeds each row's
    draws (the winner's for both rows of a pair)."""

    rows: Rows
    credit: Credit
    noise_ids_N: Tensor


Minibatch = list[MicroBatch]
"""The rows of one optimizer step on this rank."""


def deal(units: int, world: int, micro_units: int) -> UnitsByRank:
    """Deals `units` units to `world` ranks in micro-batches of at most `micro_units`.

    Every rank gets the same number of micro-batches and each holds at least one unit; a rank's
    units are spread evenly over its micro-batches. Filler is a rank's own first unit, or unit 0.
    """
    largest = -(-units // world)
    count = -(-largest // micro_units)
    dealt: UnitsByRank = []
    for rank in range(world):
        mine = list(dist.block(units, rank, world))
        filler = (mine[0] if mine else 0, False)
        parts = [dist.block(len(mine), k, count) for k in range(count)]
        dealt.append([[(mine[i], True) for i in part] or [filler] for part in parts])
    return dealt


def build_minibatches(
    rows: Rows,
    chosen: Tensor,
    credit: Credit,
    prompt_ids_S: Tensor,
    *,
    rows_per_unit: int,
    minibatches: int,
    micro_batch: int,
    sizes_S: Tensor | None = None,
    is_by_prompt: bool = False,
) -> list[Minibatch]:
    """Moves the chosen samples to the ranks that train on them. Collective.

    rows: this rank's block of the S samples. chosen: int64 [M] sample ids, the same on every rank,
    the rows of a unit adjacent. credit, prompt_ids_S: of all S samples. sizes_S: the cost of a pass
    over each; rows of similar size then share a micro-batch. is_by_prompt: those of one prompt are
    side by side on their rank. Minibatches without a unit are left out.
    """
    units = chosen.view(-1, rows_per_unit)
    parts = [units[k::minibatches] for k in range(minibatches)]
    if sizes_S is not None:
        parts = [by_size(part, sizes_S, dist.world_size()) for part in parts]
    if is_by_prompt:
        parts = [by_prompt(part, prompt_ids_S, dist.world_size()) for part in parts]
    micro_units = max(1, micro_batch // rows_per_unit)
    plans = [(part, deal(len(part), dist.world_size(), micro_units)) for part in parts if len(part)]
    if not plans:
        return []

    def wanted_by(rank: int) -> Tensor:
        return torch.cat(
            [part[unit] for part, dealt in plans for micro in dealt[rank] for unit, _ in micro]
        )

    mine = exchange(rows, [wanted_by(r) for r in range(dist.world_size())], prompt_ids_S)
    result: list[Minibatch] = []
    start = 0
    for _, dealt in plans:
        minibatch = []
        for micro in dealt[dist.rank()]:
            stop = start + len(micro) * rows_per_unit
            counts = torch.tensor([c for _, c in micro for _ in range(rows_per_unit)])
            minibatch.append(_micro_batch(mine.take(slice(start, stop)), credit, counts))
            start = stop
        result.append(minibatch)
    return result


def receive(domain: Domain, minibatches: Sequence[Minibatch]) -> list[Minibatch]:
    """The minibatches after `Domain.receive`; the loss leaves out rows that are not sound there."""
    return [[_received(domain, micro) for micro in minibatch] for minibatch in minibatches]


def _received(domain: Domain, micro: MicroBatch) -> MicroBatch:
    rows = domain.receive(micro.rows)
    include = micro.credit.include * domain.is_sound(rows)
    return replace(micro, rows=rows, credit=replace(micro.credit, include=include))


def by_size(units: Tensor, sizes_S: Tensor, world: int) -> Tensor:
    """units [U, k], reordered so that each rank's block goes from large to small, and the n-th
    units of all ranks have similar sizes. That keeps padding small and ranks equally fast.
    """
    largest_first = sizes_S[units].amax(1).argsort(descending=True, stable=True)
    blocks = [dist.block(len(units), rank, world) for rank in range(world)]
    places = sorted((place - b.start, rank, place) for rank, b in enumerate(blocks) for place in b)
    ordered = torch.empty_like(units)
    ordered[torch.tensor([place for _, _, place in places], dtype=torch.int64)] = units[
        largest_first
    ]
    return ordered


def by_prompt(units: Tensor, prompt_ids_S: Tensor, world: int) -> Tensor:
    """units [U, k], each rank's block reordered so that those of one prompt are side by side: the
    prompt of its first unit first, units of a prompt in the order that they had."""
    prompt_ids = prompt_ids_S[units[:, 0]].tolist()
    places: list[int] = []
    for rank in range(world):
        block = dist.block(len(units), rank, world)
        first: dict[int, int] = {}
        for place in block:
            first.setdefault(prompt_ids[place], place)
        places += sorted(block, key=lambda place: first[prompt_ids[place]])
    return units[torch.tensor(places, dtype=torch.int64)]


def _micro_batch(rows: Rows, credit: Credit, counts_N: Tensor) -> MicroBatch:
    taken = credit.take(rows.sample_ids_N)
    taken = replace(taken, include=taken.include * counts_N)
    noise_ids = torch.where(taken.pair_id >= 0, taken.pair_id, rows.sample_ids_N)
    return MicroBatch(rows, taken, noise_ids)


def exchange(rows: Rows, wanted: Sequence[Tensor], prompt_ids_S: Tensor) -> Rows:
    """The samples `wanted[this rank]`, in that order, from the ranks that hold them. Collective.

    rows: this rank's block; wanted[r]: int64 ids for rank r, the same on every rank.
    """
    samples, world, rank = len(prompt_ids_S), dist.world_size(), dist.rank()
    edges = torch.tensor([dist.block(samples, r, world).stop for r in range(world)])
    owners = [torch.searchsorted(edges, ids, right=True) for ids in wanted]
    mine = wanted[rank]
    first = dist.block(samples, rank, world).start
    if all(bool((owner == r).all()) for r, owner in enumerate(owners)):
        tensors = rows.take(mine - first).tensors  # nothing has to travel
    else:
        sources = [ids[owner == rank] - first for ids, owner in zip(wanted, owners, strict=True)]
        counts = torch.bincount(owners[rank], minlength=world).tolist()
        # Rows arrive ordered by sender, not in the order of `mine`.
        order = owners[rank].argsort(stable=True).argsort()
        tensors = {
            name: dist.exchange_rows(tensor, sources, counts)[order.to(tensor.device)]
            for name, tensor in rows.tensors.items()
        }
    return Rows(mine, prompt_ids_S[mine], tensors)
