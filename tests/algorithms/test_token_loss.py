"""The loss on tokens by hand: ratios, their clip, and estimates of the KL divergence."""

from __future__ import annotations

import math

import pytest
import torch

from adrpo_scale.algorithms.adrpo import Adrpo, AdrpoConfig
from adrpo_scale.algorithms.dpo import Dpo
from adrpo_scale.algorithms.grpo import Grpo, GrpoConfig
from adrpo_scale.algorithms.orw_cfm_w2 import OrwCfmW2, OrwCfmW2Config
from adrpo_scale.algorithms.raft import Raft
from adrpo_scale.algorithms.terms import LikelihoodTerms, RegressionTerms
from adrpo_scale.algorithms.tokens import MAX_LOG_RATIO, kl_estimate, per_row, ratio_surrogate
from tests.support.terms_by_hand import LENGTHS, REWARDS, TOKENS, Flow, Tokens, scored


def test_rows_are_measured_beforehand_only_for_a_surrogate_that_is_a_ratio():
    stated = {Adrpo: TOKENS, Grpo: TOKENS, Dpo: {"beta": 0.1}}
    kinds = (Adrpo, Grpo, OrwCfmW2, Raft, Dpo)
    built = [kind(kind.Config(**stated.get(kind, {})), LikelihoodTerms) for kind in kinds]
    assert [a.needs_old for a in built] == [True, True, False, False, False]
    assert not Adrpo(AdrpoConfig(), RegressionTerms).needs_old


# --- tokens: aggregation, estimators, clamps ------------------------------------------------
@pytest.mark.parametrize("by_token", [False, True])
@pytest.mark.parametrize("algorithm", ["adrpo", "grpo"])
def test_loss_on_tokens_equals_eq_7_by_hand(algorithm, by_token):
    settings = TOKENS | {"aggregation": "token" if by_token else "sequence"}
    built = (
        Adrpo(AdrpoConfig(**settings), LikelihoodTerms)
        if algorithm == "adrpo"
        else Grpo(GrpoConfig(**settings), LikelihoodTerms)
    )
    tokens, credit = Tokens(LENGTHS, spread=0.5), built.credit(REWARDS)
    expected = tokens.by_hand(credit.advantage.tolist(), credit.beta.tolist(), by_token=by_token)
    assert built.loss(tokens.terms(), credit).item() == pytest.approx(expected, rel=1e-12)


def test_the_clip_of_the_ratio_is_asymmetric_where_asked():
    logp = torch.tensor([1.0, 1.0, -1.0, -1.0], requires_grad=True)
    advantage = torch.tensor([2.0, -2.0, 2.0, -2.0])
    got = ratio_surrogate(logp, torch.zeros(4), advantage, 0.1, 0.3)
    e = math.e
    torch.testing.assert_close(got.detach(), torch.tensor([-2.6, 2 * e, -2 / e, 1.8]))
    (gradient,) = torch.autograd.grad(got.sum(), logp)
    torch.testing.assert_close(gradient, torch.tensor([0.0, 2 * e, -2 / e, 0.0]))


@pytest.mark.parametrize("estimator", ["k1", "k2", "k3"])
def test_kl_estimates_and_their_gradients_by_hand(estimator):
    logp = torch.tensor([-1.0, -2.0, -0.5], dtype=torch.float64, requires_grad=True)
    ref = torch.tensor([-1.5, -1.0, -0.5], dtype=torch.float64)
    d = ref - logp.detach()
    value, slope = {
        "k1": (-d, torch.ones_like(d)),
        "k2": (d**2 / 2, -d),
        "k3": (d.exp() - d - 1, 1 - d.exp()),
    }[estimator]
    got = kl_estimate(logp, ref, estimator)
    torch.testing.assert_close(got.detach(), value)
    torch.testing.assert_close(torch.autograd.grad(got.sum(), logp)[0], slope)


def test_extreme_log_ratios_stay_finite():
    logp = torch.tensor([0.0, -500.0], requires_grad=True)
    other = torch.tensor([-500.0, 0.0])
    for values in (
        kl_estimate(logp, other),
        ratio_surrogate(logp, other, -torch.ones(2), 0.2, 0.2),
    ):
        assert values.isfinite().all()
        assert torch.autograd.grad(values.sum(), logp)[0].isfinite().all()
    assert kl_estimate(logp, other)[1].item() == pytest.approx(math.exp(MAX_LOG_RATIO), rel=1e-5)


def test_per_row_of_rows_with_and_without_tokens():
    values, segment = torch.tensor([1.0, 2.0, 6.0]), torch.tensor([0, 2, 2])
    assert per_row(values, segment, 4, "sequence").tolist() == [1, 0, 4, 0]
    assert per_row(values, segment, 4, "token").tolist() == [1, 0, 8, 0]


# --- the divergence -------------------------------------------------------------------------
@pytest.mark.parametrize("rows", [Flow(4), Tokens([3, 1, 2, 4])], ids=["flow", "tokens"])
def test_the_divergence_has_a_gradient(rows):
    """Peers computed the KL under no_grad: the curve looked right and nothing was regularised."""
    adrpo = Adrpo(AdrpoConfig(beta0=1.0, scale="none"), type(rows.terms()))
    loss = adrpo.loss(rows.terms(), adrpo.credit(scored([[0.5] * 4])))
    assert loss.item() > 0
    assert (rows.gradient(loss).abs() > 0).all()


def test_without_a_reference_pass_the_surrogate_is_left():
    flow, orw = Flow(4), OrwCfmW2(OrwCfmW2Config(), RegressionTerms)
    rewards = scored([[1.0, 2.0, 3.0, 4.0]])
    for algorithm in (orw, Adrpo(AdrpoConfig(), RegressionTerms)):
        credit = algorithm.credit(rewards)
        got = algorithm.loss(flow.terms(divergence=False), credit)
        torch.testing.assert_close(got, (credit.advantage_clipped * flow.terms().error_N).sum())
