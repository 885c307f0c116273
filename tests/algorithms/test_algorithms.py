"""Every exact statement of the maths about algorithms: credit, selection, loss and gradient.

Domains are played by plain tensors: `Flow` holds velocities and makes the terms of its rows,
`Tokens` holds log-probabilities of completions of different length.
"""

from __future__ import annotations

import dataclasses
import math
import warnings

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from adrpo_scale.algorithms.adrpo import Adrpo, AdrpoConfig
from adrpo_scale.algorithms.dpo import Dpo, DpoConfig
from adrpo_scale.algorithms.grpo import Grpo, GrpoConfig
from adrpo_scale.algorithms.orw_cfm_w2 import OrwCfmW2, OrwCfmW2Config
from adrpo_scale.algorithms.raft import Raft, RaftConfig
from adrpo_scale.algorithms.terms import LikelihoodTerms, RegressionTerms
from tests.support.terms_by_hand import (
    LENGTHS,
    NO_CLIP,
    REWARDS,
    TOKENS,
    Flow,
    Tokens,
    credit_of,
    scored,
)


def test_what_the_domain_keeps_out_of_the_loss_still_counts_as_a_reward():
    """mask_truncated: such a sample is in its group's mean, and in nothing that is trained on."""
    whole = scored([[1.0, 0.0, 0.5, 0.0]])
    cut = dataclasses.replace(whole, kept_PG=torch.tensor([[False, True, True, True]]))
    grpo = Grpo(GrpoConfig(**TOKENS), LikelihoodTerms)
    credit = grpo.credit(cut)
    assert torch.equal(credit.advantage, grpo.credit(whole).advantage)
    assert credit.include.tolist() == [0, 1, 1, 1]
    assert grpo.select(cut, credit).tolist() == [1, 2, 3]
    raft = Raft(RaftConfig(), LikelihoodTerms)
    assert raft.select(whole, raft.credit(whole)).tolist() == [0]
    assert raft.select(cut, raft.credit(cut)).tolist() == [2]  # the best of those that are left
    pairs = Dpo(DpoConfig(beta=0.1), LikelihoodTerms)
    assert pairs.select(whole, pairs.credit(whole))[0] == 0
    assert pairs.select(cut, pairs.credit(cut))[0] == 2
    orw = OrwCfmW2(OrwCfmW2Config(), LikelihoodTerms)
    assert orw.select(cut, orw.credit(cut)).tolist() == [1, 2, 3]


# --- exact reductions -----------------------------------------------------------------------
@pytest.mark.parametrize("aggregation", ["sequence", "token"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_adrpo_without_a_clip_range_is_grpo_on_tokens_to_the_bit(aggregation, dtype):
    settings = TOKENS | {"aggregation": aggregation}
    adrpo = Adrpo(AdrpoConfig(**settings | NO_CLIP), LikelihoodTerms)
    grpo = Grpo(GrpoConfig(**settings), LikelihoodTerms)
    tokens = Tokens(LENGTHS, dtype=dtype)
    losses = [a.loss(tokens.terms(), a.credit(REWARDS)) for a in (adrpo, grpo)]
    assert torch.equal(*losses)
    assert torch.equal(*map(tokens.gradient, losses))


@pytest.mark.parametrize("seed", range(3))
def test_on_flow_adrpo_minus_its_control_is_minus_a_clip_times_divergence(seed):
    flow = Flow(8, seed)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        adrpo, grpo = Adrpo(AdrpoConfig(), RegressionTerms), Grpo(GrpoConfig(), RegressionTerms)
    credit = adrpo.credit(REWARDS)
    assert torch.equal(credit.advantage_clipped, grpo.credit(REWARDS).advantage_clipped)
    difference = adrpo.loss(flow.terms(), credit) - grpo.loss(flow.terms(), grpo.credit(REWARDS))
    expected = -(credit.advantage_clipped * flow.terms().divergence_N).sum()
    torch.testing.assert_close(difference, expected, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(flow.gradient(difference), flow.gradient(expected))


@pytest.mark.parametrize("beta0", [0.3, 1.0])
def test_on_flow_adrpo_with_no_advantages_is_the_divergence_alone(beta0):
    flow, adrpo = Flow(4), Adrpo(AdrpoConfig(beta0=beta0), RegressionTerms)
    loss = adrpo.loss(flow.terms(), adrpo.credit(scored([[0.1] * 4])))
    pure = beta0 * ((flow.v - flow.v_ref) ** 2).mean(1).sum()
    torch.testing.assert_close(loss, pure, rtol=1e-14, atol=0)
    assert torch.equal(flow.gradient(loss), flow.gradient(pure))


def test_orw_with_tau_zero_is_flow_matching_plus_w2():
    flow, orw = Flow(8), OrwCfmW2(OrwCfmW2Config(tau=0.0, beta=0.7), RegressionTerms)
    loss = orw.loss(flow.terms(), orw.credit(REWARDS))
    plain = ((flow.v - flow.u) ** 2).mean(1) + 0.7 * ((flow.v - flow.v_ref) ** 2).mean(1)
    torch.testing.assert_close(loss, plain.sum(), rtol=1e-12, atol=0)
    torch.testing.assert_close(flow.gradient(loss), flow.gradient(plain.sum()))


elements = st.lists(st.floats(-10, 10), min_size=12, max_size=12)


@given(elements, elements, elements, elements, st.floats(0.05, 10), st.data())
def test_eq_6_is_a_regression_on_the_moved_reference_velocity(v, other, v_ref, u, beta0, data):
    """L = beta0 |v - v*|² + constant, v* = v_ref + (A_clip / beta0)(u - v_ref), for any A_clip."""
    low, high = data.draw(st.floats(-5, -0.01)), data.draw(st.floats(0, 5))
    advantage = torch.tensor(data.draw(st.lists(st.floats(-9, 9), min_size=3, max_size=3)))
    clipped = advantage.double().clamp(low, high)
    config = AdrpoConfig(beta0=beta0, advantage_min=low, advantage_max=high)
    adrpo = Adrpo(config, RegressionTerms)
    credit = credit_of(advantage, adrpo.beta(clipped), clipped)
    flow = Flow(3)
    velocities = [torch.tensor(row, dtype=torch.float64).view(3, 4) for row in (v, other)]
    flow.v_ref, flow.u = (torch.tensor(row, dtype=torch.float64).view(3, 4) for row in (v_ref, u))
    target = flow.v_ref + (clipped / beta0)[:, None] * (flow.u - flow.v_ref)

    losses, moved = [], []
    for velocity in velocities:
        flow.v = velocity.requires_grad_()
        losses.append(adrpo.loss(flow.terms(), credit))
        moved.append(beta0 * ((velocity - target) ** 2).mean(1).sum())
        torch.testing.assert_close(
            flow.gradient(losses[-1]), flow.gradient(moved[-1]), rtol=1e-10, atol=1e-10
        )
    # Terms of this size cancel in the differences.
    size = 1 + sum(x.abs().item() for x in moved) + 400 * (clipped.abs() + beta0).sum().item()
    assert (losses[0] - losses[1]).item() == pytest.approx(
        (moved[0] - moved[1]).item(), abs=1e-13 * size
    )


# --- credit ---------------------------------------------------------------------------------
def test_adrpo_credit_holds_good_samples_less():
    credit = Adrpo(AdrpoConfig(), RegressionTerms).credit(scored([[29.0, 29.5, 30.0, 33.0]]))
    weight = torch.tensor([-1.375, -0.875, -0.375, 2.625], dtype=torch.float64)
    torch.testing.assert_close(credit.advantage, weight)
    torch.testing.assert_close(credit.advantage_clipped, weight.clamp(-1, 1))
    torch.testing.assert_close(credit.beta, 1 - weight.clamp(-1, 1))
    assert credit.beta.min() == 0
    assert credit.include.tolist() == [1, 1, 1, 1]
    assert credit.pair_id.tolist() == [-1, -1, -1, -1]


def test_on_tokens_the_surrogate_takes_the_unclipped_advantage():
    tokens, adrpo = Tokens([3, 2]), Adrpo(AdrpoConfig(**TOKENS), LikelihoodTerms)
    credit = adrpo.credit(scored([[1.0, 0.0]]))
    size = 0.5 / (math.sqrt(0.5) + 1e-4)
    advantage = torch.tensor([size, -size], dtype=torch.float64)
    torch.testing.assert_close(credit.advantage, advantage, rtol=1e-6, atol=0)
    assert credit.advantage_clipped.tolist() == [0.04, -0.04]
    assert credit.beta.tolist() == [0.0, 0.08]
    expected = tokens.by_hand(credit.advantage.tolist(), [0.0, 0.08])
    assert adrpo.loss(tokens.terms(), credit).item() == pytest.approx(expected, rel=1e-12)


def test_orw_weights_are_exp_of_tau_times_reward_with_mean_one_in_each_group():
    rewards = scored([[1.0, 2.0, 4.0], [700.0, 0.0, 9.9]], [[True] * 3, [True, True, False]])
    got = OrwCfmW2(OrwCfmW2Config(tau=1.5), RegressionTerms).credit(rewards)
    raw = torch.exp(1.5 * torch.tensor([1.0, 2.0, 4.0], dtype=torch.float64))
    torch.testing.assert_close(got.advantage[:3], raw / raw.mean())
    torch.testing.assert_close(got.advantage[3:], torch.tensor([2.0, 0.0, 0.0]).double())
    assert got.include.tolist() == [1, 1, 1, 1, 1, 0]


def test_a_fully_masked_group_gets_finite_credit_everywhere():
    rewards = scored([[math.nan, math.nan], [1.0, 2.0]], [[False, False], [True, True]])
    for algorithm in (
        Adrpo(AdrpoConfig(), RegressionTerms),
        OrwCfmW2(OrwCfmW2Config(), RegressionTerms),
        Raft(RaftConfig(), RegressionTerms),
        Dpo(DpoConfig(), RegressionTerms),
    ):
        credit = algorithm.credit(rewards)
        for values in (credit.advantage, credit.advantage_clipped, credit.beta, credit.include):
            assert values.isfinite().all() and values.dtype == torch.float64
        assert set(algorithm.select(rewards, credit).tolist()) <= {2, 3}


def test_all_unmasked_samples_are_trained_on_in_order():
    rewards = scored([[1.0, 2.0, 3.0], [3.0, 2.0, 1.0]], [[True, False, True], [True, True, True]])
    for algorithm in (
        Adrpo(AdrpoConfig(), RegressionTerms),
        OrwCfmW2(OrwCfmW2Config(), RegressionTerms),
    ):
        selected = algorithm.select(rewards, algorithm.credit(rewards))
        assert selected.dtype == torch.int64
        assert selected.tolist() == [0, 2, 3, 4, 5]


# --- RAFT -----------------------------------------------------------------------------------
def test_raft_selects_the_best_unmasked_sample_of_each_group_and_of_ties_the_first():
    rewards = scored(
        [[1.0, 5.0, 3.0], [2.0, 9.0, 7.0], [4.0, 6.0, 6.0], [1.0, 2.0, 3.0]],
        [[True] * 3, [True, False, True], [True] * 3, [False] * 3],
    )
    raft = Raft(RaftConfig(), RegressionTerms)
    credit = raft.credit(rewards)
    assert raft.select(rewards, credit).tolist() == [1, 5, 7]
    assert credit.beta.abs().max() == 0


def test_raft_is_supervised_training_on_its_winners():
    flow, raft = Flow(3), Raft(RaftConfig(), RegressionTerms)
    loss = raft.loss(flow.terms(), credit_of([1.0, 1.0, 1.0]))
    torch.testing.assert_close(loss, ((flow.v - flow.u) ** 2).mean(1).sum())
    tokens = Tokens([2, 3, 1])
    loss = raft.loss(tokens.terms(), credit_of([1.0, 1.0, 1.0]))
    torch.testing.assert_close(loss, tokens.terms().supervised().sum())
