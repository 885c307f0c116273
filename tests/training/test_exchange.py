"""Chosen rows travel to the ranks that train on them: each once, whole, pairs side by side."""

from __future__ import annotations

from itertools import chain

import pytest
import torch

from adrpo_scale.core import dist
from adrpo_scale.core.types import Credit, Rows
from adrpo_scale.training.batches import build_minibatches
from tests.support.ranks import run_ranks

CASES = 30


def value_of(sample_ids):
    """The row of a sample, a function of its id."""
    return torch.stack([sample_ids.double().sin(), sample_ids.double().cos()], 1).float()


def random_case(random):
    """(samples, chosen ids with units adjacent, rows per unit, minibatches, micro_batch)."""

    def draw(low, high):
        return int(torch.randint(low, high + 1, (), generator=random))

    samples, per_unit = draw(2, 40), draw(1, 2)
    units = draw(0, samples // per_unit)
    chosen = torch.randperm(samples, generator=random)[: units * per_unit]
    if draw(0, 3) == 0:  # as every algorithm but DPO chooses: in order, here all of one rank's
        chosen = chosen.sort().values
    return samples, chosen, per_unit, draw(1, 3), draw(per_unit, 9)


def exchanges(rank, world):
    random = torch.Generator().manual_seed(world)  # the same cases on every rank
    seen = []
    for _ in range(CASES):
        samples, chosen, per_unit, minibatches, micro_batch = random_case(random)
        mine = dist.block(samples, rank, world)
        own = torch.arange(mine.start, mine.stop)
        pair_id = torch.full((samples,), -1)
        if per_unit == 2:
            pair_id[chosen] = chosen[::2].repeat_interleave(2)
        ones = torch.ones(samples, dtype=torch.float64)
        tensors = {"x1": value_of(own), "lengths": 3 * own}
        result = build_minibatches(
            Rows(own, own // 4, tensors),
            chosen,
            Credit(torch.arange(samples).double(), ones, ones, pair_id, ones),
            torch.arange(samples) // 4,
            rows_per_unit=per_unit,
            minibatches=minibatches,
            micro_batch=micro_batch,
        )
        counted = []
        for minibatch in result:
            for micro in minibatch:
                ids = micro.rows.sample_ids_N
                assert 1 <= len(ids) <= micro_batch and len(ids) % per_unit == 0
                assert torch.equal(micro.rows.tensors["x1"], value_of(ids))
                assert torch.equal(micro.rows.tensors["lengths"], 3 * ids)
                assert torch.equal(micro.rows.prompt_ids_N, ids // 4)
                assert torch.equal(micro.credit.advantage, ids.double())
                if per_unit == 2:
                    winners = micro.credit.pair_id.view(-1, 2)
                    assert torch.equal(winners[:, 0], winners[:, 1])
                    assert torch.equal(micro.noise_ids_N[::2], ids[::2])
                    assert torch.equal(micro.noise_ids_N[1::2], ids[::2])
            included = [m.rows.sample_ids_N[m.credit.include > 0] for m in minibatch]
            counted.append(torch.cat(included).tolist())
        parts = [chosen.view(-1, per_unit)[k::minibatches].flatten() for k in range(minibatches)]
        expected = [sorted(part.tolist()) for part in parts if len(part)]
        seen.append((expected, [len(minibatch) for minibatch in result], counted))
    return seen


@pytest.mark.parametrize("world", [1, 2, 3, 4])
def test_every_chosen_row_is_trained_on_once_and_ranks_keep_step(world):
    for case in zip(*run_ranks(exchanges, world), strict=True):
        expected, shape, _ = case[0]
        assert all(ranks[1] == shape for ranks in case)
        # A minibatch has the same samples at any number of ranks: every k-th unit of the choice.
        for k, samples in enumerate(expected):
            assert sorted(chain.from_iterable(counted[k] for _, _, counted in case)) == samples
        assert len(shape) == len(expected)
