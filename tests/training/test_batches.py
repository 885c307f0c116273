"""Dealing units to ranks and micro-batches, and minibatches in one process."""

from __future__ import annotations

from itertools import chain

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from adrpo_scale.core import dist
from adrpo_scale.core.types import Credit, Rows
from adrpo_scale.training.batches import build_minibatches, by_size, deal


@given(units=st.integers(1, 90), world=st.integers(1, 9), micro=st.integers(1, 12))
def test_every_unit_counts_once_and_ranks_keep_step(units, world, micro):
    dealt = deal(units, world, micro)
    assert len(dealt) == world
    assert len({len(micro_batches) for micro_batches in dealt}) == 1
    parts = [part for micro_batches in dealt for part in micro_batches]
    assert all(1 <= len(part) <= micro for part in parts)
    assert all(0 <= unit < units for part in parts for unit, _ in part)
    assert sorted(unit for part in parts for unit, counts in part if counts) == list(range(units))
    # No more micro-batches than the fullest rank needs, and work is even: ranks differ by a unit.
    counted = [sum(counts for part in rank for _, counts in part) for rank in dealt]
    assert max(counted) - min(counted) <= 1
    assert len(dealt[0]) == -(-max(counted) // micro)
    for rank in dealt:
        sizes = [len(part) for part in rank]
        assert max(sizes) - min(sizes) <= 1


@given(units=st.integers(1, 90), world=st.integers(1, 9), micro=st.integers(1, 12))
def test_a_micro_batch_is_filler_only_where_a_rank_comes_short(units, world, micro):
    for rank in deal(units, world, micro):
        for part in rank:
            counts = {counts for _, counts in part}
            assert counts == {True} or (counts == {False} and len(part) == 1)


@given(
    sizes=st.lists(st.integers(1, 50), min_size=1, max_size=60),
    world=st.integers(1, 7),
    pair=st.booleans(),
)
def test_rows_of_like_size_share_a_micro_batch_and_ranks_have_alike_work(sizes, world, pair):
    sizes = sizes[: len(sizes) // 2 * 2] if pair else sizes
    sizes_S = torch.tensor(sizes, dtype=torch.int64)
    units = torch.arange(len(sizes)).view(-1, 1 + pair)
    ordered = by_size(units, sizes_S, world)
    assert sorted(ordered[:, 0].tolist()) == units[:, 0].tolist()  # every unit once, rows together
    assert torch.equal(ordered[:, -1], ordered[:, 0] + pair)
    largest = sizes_S[ordered].amax(1).tolist()
    hands = [[largest[i] for i in dist.block(len(units), r, world)] for r in range(world)]
    assert all(hand == sorted(hand, reverse=True) for hand in hands)
    for place in range(max(map(len, hands)) - 1):  # the n-th of any rank ≥ the next of any other
        here = [hand[place] for hand in hands if len(hand) > place]
        after = [hand[place + 1] for hand in hands if len(hand) > place + 1]
        assert not after or min(here) >= max(after)


def rows_and_credit(samples, group_size=4, pairs=()):
    """Rows whose tensor is their id, and credit; pairs: (winner, loser)."""
    ids = torch.arange(samples)
    prompt_ids = 100 + ids // group_size
    pair_id = torch.full((samples,), -1)
    for winner, loser in pairs:
        pair_id[[winner, loser]] = winner
    advantage = ids.double() / 10
    include = torch.ones(samples, dtype=torch.float64)
    rows = Rows(ids, prompt_ids, {"x1": ids.float()[:, None].expand(-1, 2).contiguous()})
    credit = Credit(advantage, advantage.clamp(max=1), 1 - advantage, pair_id, include)
    return rows, credit, prompt_ids


def minibatches(samples, chosen, pairs=(), **settings):
    rows, credit, prompt_ids = rows_and_credit(samples, pairs=pairs)
    settings = {"rows_per_unit": 1, "minibatches": 1, "micro_batch": 4} | settings
    return build_minibatches(rows, torch.tensor(chosen), credit, prompt_ids, **settings)


def ids_of(minibatch):
    return [micro.rows.sample_ids_N.tolist() for micro in minibatch]


def flat(lists):
    return list(chain.from_iterable(lists))


def test_rows_credit_and_noise_ids_belong_together():
    (minibatch,) = minibatches(12, [1, 3, 4, 7, 11], micro_batch=2)
    assert ids_of(minibatch) == [[1], [3, 4], [7, 11]]
    for micro in minibatch:
        ids = micro.rows.sample_ids_N
        assert torch.equal(micro.rows.tensors["x1"][:, 0], ids.float())
        assert torch.equal(micro.rows.prompt_ids_N, 100 + ids // 4)
        assert torch.equal(micro.credit.advantage, ids.double() / 10)
        assert torch.equal(micro.credit.advantage_clipped, (ids.double() / 10).clamp(max=1))
        assert torch.equal(micro.noise_ids_N, ids)
        assert micro.credit.include.tolist() == [1] * len(ids)


@pytest.mark.parametrize("micro_batch", [2, 3, 4, 6])
def test_pairs_stay_together_and_share_the_winners_noise(micro_batch):
    pairs = [(2, 0), (5, 7), (11, 8)]
    chosen = [sample for pair in pairs for sample in pair]
    (minibatch,) = minibatches(12, chosen, pairs, rows_per_unit=2, micro_batch=micro_batch)
    assert flat(ids_of(minibatch)) == chosen
    for micro in minibatch:
        winners = micro.rows.sample_ids_N[::2]
        assert len(micro.rows) % 2 == 0 and len(micro.rows) <= micro_batch
        assert torch.equal(micro.noise_ids_N, winners.repeat_interleave(2))


def test_minibatches_share_the_units_out_and_empty_ones_are_left_out():
    three = minibatches(12, list(range(10)), minibatches=3)
    found = [flat(ids_of(minibatch)) for minibatch in three]
    assert sorted(flat(found)) == list(range(10))
    assert [len(ids) for ids in found] == [4, 3, 3]
    assert len(minibatches(12, [5, 6], minibatches=3)) == 2
    assert minibatches(12, [], minibatches=3) == []
    assert minibatches(12, [], rows_per_unit=2) == []
