"""Group advantages against loops written by hand, and what never happens: NaN, a blown-up tie."""

from __future__ import annotations

import math
from itertools import product

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from adrpo_scale.algorithms.advantages import EPS, advantages, combined
from adrpo_scale.core.types import Rewards

BASELINES, SCALES = ("group", "batch"), ("none", "group_std", "global_std")
KINDS = list(product(BASELINES, SCALES))


def by_hand(rewards, mask, baseline, scale):
    """The definition, one sample at a time, in numpy."""
    everything = rewards[mask]
    result = np.zeros_like(rewards)
    for p, g in zip(*mask.nonzero(), strict=True):
        group = rewards[p][mask[p]]
        over = group if baseline == "group" else everything
        spread = {"none": None, "group_std": group, "global_std": everything}[scale]
        if any(len(part) < 2 or np.ptp(part) == 0 for part in (over, spread) if part is not None):
            continue
        result[p, g] = rewards[p, g] - over.mean()
        if spread is not None:
            result[p, g] /= spread.std(ddof=1) + EPS
    return result


def scored(rewards, mask=None, weights=None):
    """`Rewards` of planes [R, P, G] (or one plane [P, G])."""
    planes = torch.as_tensor(rewards, dtype=torch.float64)
    planes = planes[None] if planes.dim() == 2 else planes
    mask = torch.ones(planes.shape[1:], dtype=torch.bool) if mask is None else torch.tensor(mask)
    weights = torch.tensor(weights or [1.0] * len(planes), dtype=torch.float64)
    total = torch.einsum("r,rpg->pg", weights, planes)
    names = [f"reward{r}" for r in range(len(planes))]
    return Rewards(names, weights, planes, total, mask, torch.arange(planes.shape[1]))


@pytest.mark.parametrize(("baseline", "scale"), KINDS)
@pytest.mark.parametrize("seed", range(4))
def test_equals_the_definition_with_and_without_masks(baseline, scale, seed):
    random = np.random.default_rng(seed)
    rewards = random.normal(29.3, 2.0, (5, 4))
    mask = random.random((5, 4)) < (1.0 if seed == 0 else 0.6)
    rewards[2] = 30.1  # a group of equal rewards
    rewards[~mask] = np.nan
    got = advantages(
        torch.from_numpy(rewards), torch.from_numpy(mask), baseline=baseline, scale=scale
    )
    np.testing.assert_allclose(got.numpy(), by_hand(rewards, mask, baseline, scale), rtol=1e-9)


def test_worked_example_of_types():
    rewards = scored([[0.1, 0.5, 0.3], [0.2, 0.2, 0.2]])
    got = advantages(rewards.total_PG, rewards.mask_PG)
    torch.testing.assert_close(
        got, torch.tensor([[-0.2, 0.2, 0.0], [0.0, 0.0, 0.0]], dtype=torch.float64)
    )


def test_grpo_advantage_uses_the_sample_std_plus_eps():
    rewards = scored([[1.0, 2.0, 3.0]])
    got = advantages(rewards.total_PG, rewards.mask_PG, scale="group_std")
    expected = torch.tensor([[-1, 0, 1]], dtype=torch.float64) / (1 + 1e-4)
    torch.testing.assert_close(got, expected)


@pytest.mark.parametrize(("baseline", "scale"), KINDS)
@pytest.mark.parametrize("value", [0.0, 0.1, 1 / 3, 29.3, -1e9, 1e-300])
def test_equal_rewards_give_exactly_zero(baseline, scale, value):
    rewards = scored([[value] * 7] * 3)
    got = advantages(rewards.total_PG, rewards.mask_PG, baseline=baseline, scale=scale)
    assert torch.equal(got, torch.zeros(3, 7, dtype=torch.float64))


def test_a_group_of_equal_rewards_among_others_gives_exactly_zero():
    rewards = scored([[0.1] * 6, [0.1, 0.2, 0.3, 0.4, 0.5, 0.6]])
    for scale in SCALES:
        got = advantages(rewards.total_PG, rewards.mask_PG, scale=scale)
        assert torch.equal(got[0], torch.zeros(6, dtype=torch.float64))
        assert got[1].abs().max() > 0


def test_a_group_std_of_zero_does_not_blow_up_the_distance_to_the_batch():
    rewards = scored([[1.0, 1.0, 1.0], [0.0, 1.0, 2.0], [5.0, 7.0, 9.0]])
    got = advantages(rewards.total_PG, rewards.mask_PG, baseline="batch", scale="group_std")
    assert torch.equal(got[0], torch.zeros(3, dtype=torch.float64))
    assert got.abs().max() < 10


def test_the_batch_baseline_keeps_differences_between_prompts():
    rewards = scored([[1.0, 1.0], [3.0, 3.0]])
    got = advantages(rewards.total_PG, rewards.mask_PG, baseline="batch")
    assert got.tolist() == [[-1.0, -1.0], [1.0, 1.0]]


def test_fewer_than_two_left_give_zero():
    mask = [[True, False, False], [False, False, False], [True, True, False]]
    rewards = scored([[5.0, 1.0, 2.0], [1.0, 2.0, 3.0], [1.0, 3.0, 99.0]], mask)
    for scale in SCALES:
        got = advantages(rewards.total_PG, rewards.mask_PG, scale=scale)
        assert torch.equal(got[:2], torch.zeros(2, 3, dtype=torch.float64))
        assert got[2, 0] < 0 < got[2, 1]
        assert got[2, 2] == 0


def test_a_masked_sample_changes_nothing_for_the_others():
    mask = [[True, True, True, False]]
    for bad in (1e6, math.nan, math.inf, -math.inf):
        rewards = scored([[1.0, 2.0, 4.0, bad]], mask)
        for baseline, scale in KINDS:
            got = advantages(rewards.total_PG, rewards.mask_PG, baseline=baseline, scale=scale)
            alone = scored([[1.0, 2.0, 4.0]])
            want = advantages(alone.total_PG, alone.mask_PG, baseline=baseline, scale=scale)
            assert torch.equal(got[:, :3], want)
            assert got[0, 3] == 0


values = st.one_of(
    st.floats(-1e100, 1e100),
    st.sampled_from([0.0, 0.1, 1.0, math.nan, math.inf, -math.inf, 5e-324]),
)


@st.composite
def batches(draw):
    prompts, size = draw(st.integers(1, 4)), draw(st.integers(1, 5))
    rewards = draw(st.lists(values, min_size=prompts * size, max_size=prompts * size))
    mask = draw(st.lists(st.booleans(), min_size=prompts * size, max_size=prompts * size))
    rewards_PG = torch.tensor(rewards, dtype=torch.float64).view(prompts, size)
    # The rollout masks what is not finite; more may be masked.
    return rewards_PG, torch.tensor(mask).view(prompts, size) & rewards_PG.isfinite()


@given(batches(), st.sampled_from(KINDS))
def test_never_nan_and_zero_where_masked(batch, kind):
    rewards_PG, mask_PG = batch
    got = advantages(rewards_PG, mask_PG, baseline=kind[0], scale=kind[1])
    assert got.dtype == torch.float64
    assert got.isfinite().all()
    assert (got[~mask_PG] == 0).all()


@given(batches())
def test_the_advantages_of_a_group_sum_to_zero(batch):
    rewards_PG, mask_PG = batch
    rewards_PG = rewards_PG.nan_to_num(0, 0, 0).clamp(-100, 100)
    sums = advantages(rewards_PG, mask_PG).sum(1)
    torch.testing.assert_close(sums, torch.zeros_like(sums), rtol=0, atol=1e-11)


@given(batches(), st.floats(-50, 50))
def test_an_offset_of_a_prompt_does_not_matter(batch, offset):
    rewards_PG, mask_PG = batch
    rewards_PG = rewards_PG.nan_to_num(0, 0, 0).clamp(-100, 100)
    for scale in ("none", "group_std"):
        shifted = advantages(rewards_PG + offset, mask_PG, scale=scale)
        plain = advantages(rewards_PG, mask_PG, scale=scale)
        torch.testing.assert_close(shifted, plain, rtol=1e-6, atol=1e-8)


def test_combine_sum_is_the_weighted_sum():
    rewards = scored([[[1.0, 2.0]], [[10.0, 30.0]]], weights=[2.0, 0.5])
    assert combined(rewards, "sum").tolist() == [[7.0, 19.0]]


def test_combine_normalise_each_compares_rewards_of_different_size():
    small, large = [[0.1, 0.2, 0.4]], [[300.0, 100.0, 200.0]]
    rewards = scored([small, large], weights=[1.0, 3.0])
    one, other = (
        by_hand(np.array(plane), np.ones((1, 3), bool), "group", "group_std")
        for plane in (small, large)
    )
    np.testing.assert_allclose(combined(rewards, "normalise_each").numpy(), one + 3 * other)


def test_combine_normalise_each_with_a_mask_and_a_constant_reward():
    mask = [[True, True, True, False]]
    rewards = scored([[[1.0, 2.0, 3.0, math.nan]], [[0.1, 0.1, 0.1, 0.1]]], mask)
    got = combined(rewards, "normalise_each")
    np.testing.assert_allclose(got.numpy(), np.array([[-1, 0, 1, 0]]) / (1 + EPS))
