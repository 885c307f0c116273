"""Losses of parts sum to the loss of the whole, and how much a row counts."""

from __future__ import annotations

import dataclasses
import warnings

import pytest
import torch

from adrpo_scale.algorithms.adrpo import Adrpo, AdrpoConfig
from adrpo_scale.algorithms.base import plain_credit
from adrpo_scale.algorithms.grpo import Grpo, GrpoConfig
from adrpo_scale.algorithms.orw_cfm_w2 import OrwCfmW2, OrwCfmW2Config
from adrpo_scale.algorithms.raft import Raft, RaftConfig
from adrpo_scale.algorithms.terms import LikelihoodTerms, RegressionTerms
from tests.support.terms_by_hand import (
    LENGTHS,
    REWARDS,
    TOKENS,
    Flow,
    Tokens,
    credit_of,
    dpo,
    scored,
)


# --- sums over rows, counts -----------------------------------------------------------------
def algorithms():
    """All five, with both kinds of terms and both aggregations."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        built = {
            "adrpo-flow": Adrpo(AdrpoConfig(), RegressionTerms),
            "adrpo-tokens": Adrpo(AdrpoConfig(**TOKENS), LikelihoodTerms),
            "adrpo-token-mean": Adrpo(AdrpoConfig(**TOKENS, aggregation="token"), LikelihoodTerms),
            "grpo-flow": Grpo(GrpoConfig(), RegressionTerms),
            "grpo-tokens": Grpo(GrpoConfig(**TOKENS), LikelihoodTerms),
            "orw-flow": OrwCfmW2(OrwCfmW2Config(), RegressionTerms),
            "orw-tokens": OrwCfmW2(OrwCfmW2Config(), LikelihoodTerms),
            "raft-flow": Raft(RaftConfig(), RegressionTerms),
            "raft-tokens": Raft(RaftConfig(), LikelihoodTerms),
            "dpo-flow": dpo(beta=2.0),
            "dpo-tokens": dpo(LikelihoodTerms, beta=0.1),
        }
    return [pytest.param(algorithm, id=label) for label, algorithm in built.items()]


def trainable(algorithm):
    """Eight rows with the algorithm's terms, and their credit."""
    rows = Flow(8) if algorithm.terms is RegressionTerms else Tokens(LENGTHS)
    rewards = scored([[29.1, 30.4, 28.2, 29.0], [31.0, 32.0, 30.5, 31.5]])
    return rows, algorithm.credit(rewards)


@pytest.mark.parametrize("algorithm", algorithms())
@pytest.mark.parametrize("size", [2, 4])
def test_the_losses_of_micro_batches_sum_to_the_loss_of_the_whole(algorithm, size):
    rows, credit = trainable(algorithm)
    whole = algorithm.loss(rows.terms(range(8)), credit)
    parts = sum(
        algorithm.loss(
            rows.terms(range(start, start + size)), credit.take(torch.arange(start, start + size))
        )
        for start in range(0, 8, size)
    )
    torch.testing.assert_close(parts, whole, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(rows.gradient(parts), rows.gradient(whole), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("algorithm", algorithms())
def test_rows_that_are_not_included_contribute_nothing(algorithm):
    rows, credit = trainable(algorithm)
    include = torch.tensor([1, 1, 0, 0, 1, 1, 0, 0]).double()
    partly = dataclasses.replace(credit, include=include)
    loss = algorithm.loss(rows.terms(range(8)), partly)
    left = torch.tensor([0, 1, 4, 5])
    alone = algorithm.loss(rows.terms(left.tolist()), credit.take(left))
    torch.testing.assert_close(loss, alone, rtol=1e-12, atol=1e-12)
    gradient = rows.gradient(loss)
    torch.testing.assert_close(gradient, rows.gradient(alone))
    parts = gradient.split(LENGTHS) if algorithm.terms is LikelihoodTerms else gradient
    for row in (2, 3, 6, 7):
        assert (parts[row] == 0).all()


def test_row_counts():
    include = torch.tensor([1, 0, 1, 1]).double()
    lengths = torch.tensor([3, 5, 2, 4])
    credit = credit_of([1.0] * 4, include=[1, 0, 1, 1])
    pairs = credit_of([1.0] * 4, include=[1, 1, 0, 0])
    by_token = Adrpo(AdrpoConfig(**TOKENS, aggregation="token"), LikelihoodTerms)
    squares = Adrpo(AdrpoConfig(aggregation="token"), RegressionTerms)
    by_row = Adrpo(AdrpoConfig(**TOKENS), LikelihoodTerms)
    assert torch.equal(squares.row_counts(credit, lengths), include)
    assert torch.equal(by_row.row_counts(credit, lengths), include)
    assert by_token.row_counts(credit, lengths).tolist() == [3, 0, 2, 4]
    assert torch.equal(Raft(RaftConfig(), LikelihoodTerms).row_counts(credit, lengths), include)
    assert dpo().row_counts(pairs, lengths).sum() == 1


def test_the_loss_over_its_count_is_a_mean_over_sequences_or_over_tokens():
    tokens = Tokens([1, 7])
    credit = credit_of([1.0, -2.0], beta=0.0)
    ratio = (tokens.logp - tokens.logp_old).exp().detach()
    per_token = -torch.minimum(
        torch.tensor([1.0] + [-2.0] * 7) * ratio,
        torch.tensor([1.0] + [-2.0] * 7) * ratio.clamp(0.8, 1.2),
    )
    means = {"sequence": (per_token[0] + per_token[1:].mean()) / 2, "token": per_token.mean()}
    for aggregation, expected in means.items():
        algorithm = Grpo(GrpoConfig(**TOKENS, aggregation=aggregation), LikelihoodTerms)
        count = algorithm.row_counts(credit, tokens.lengths).sum()
        got = algorithm.loss(tokens.terms(), credit) / count
        torch.testing.assert_close(got.detach(), expected)


def test_credit_in_float64_meets_terms_in_float32():
    flow = Flow(8, dtype=torch.float32)
    loss = Adrpo(AdrpoConfig(), RegressionTerms).loss(
        flow.terms(), plain_credit(torch.full((8,), 0.1, dtype=torch.float64), 0.9, REWARDS)
    )
    assert loss.dtype == torch.float32
