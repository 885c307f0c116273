"""DPO: its pairs, its loss by hand, and when it needs the reference."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn.functional import softplus

from adrpo_scale.algorithms.dpo import DpoConfig
from adrpo_scale.algorithms.terms import LikelihoodTerms
from tests.support.terms_by_hand import Flow, Tokens, credit_of, dpo, scored


def test_dpo_pairs_best_with_worst_adjacent_winner_first():
    rewards = scored([[2.0, 5.0, 1.0, 4.0], [0.0, 1.0, 2.0, 3.0]])
    algorithm = dpo(pairs_per_group=2)
    credit = algorithm.credit(rewards)
    selected = algorithm.select(rewards, credit)
    pairs = {tuple(pair) for pair in selected.view(-1, 2).tolist()}
    assert pairs == {(1, 2), (3, 0), (7, 4), (6, 5)}
    assert credit.advantage[selected].tolist() == [1, -1] * 4
    pair_ids = credit.pair_id[selected].view(-1, 2)
    assert torch.equal(pair_ids[:, 0], pair_ids[:, 1])
    assert torch.equal(pair_ids[:, 0], selected.view(-1, 2)[:, 0])


@given(
    st.integers(1, 4),
    st.integers(1, 6),
    st.integers(1, 4),
    st.data(),
)
def test_dpo_pairs_never_tie_never_share_a_sample_and_never_use_a_masked_one(
    prompts, size, pairs, data
):
    cells = prompts * size
    rewards = data.draw(st.lists(st.sampled_from([0.1, 0.5, 0.9]), min_size=cells, max_size=cells))
    mask = data.draw(st.lists(st.booleans(), min_size=cells, max_size=cells))
    total = torch.tensor(rewards, dtype=torch.float64).view(prompts, size)
    batch = scored(total, torch.tensor(mask).view(prompts, size).tolist())
    algorithm = dpo(pairs_per_group=pairs)
    credit = algorithm.credit(batch)
    selected = algorithm.select(batch, credit)
    assert selected.dtype == torch.int64
    assert len(set(selected.tolist())) == len(selected)
    for winner, loser in selected.view(-1, 2).tolist():
        assert winner // size == loser // size
        assert rewards[winner] > rewards[loser]
        assert mask[winner] and mask[loser]
        assert credit.pair_id[winner] == credit.pair_id[loser] == winner
    chosen = torch.zeros(cells, dtype=torch.bool)
    chosen[selected] = True
    assert (credit.pair_id[~chosen] == -1).all() and (credit.advantage[~chosen] == 0).all()
    for p in range(prompts):
        left = total[p][batch.mask_PG[p]]
        found = (selected // size == p).sum().item() // 2
        assert found <= pairs
        assert (found > 0) == (len(left) > 1 and left.min().item() < left.max().item())


def test_dpo_of_ties_alone_selects_nothing():
    rewards = scored([[0.5, 0.5, 0.5]])
    assert dpo().select(rewards, dpo().credit(rewards)).tolist() == []


def test_dpo_loss_on_flow_by_hand():
    flow, algorithm = Flow(4), dpo(beta=3.0)
    loss = algorithm.loss(flow.terms(), credit_of([1.0, -1.0, 1.0, -1.0]))
    mine, ref = ((flow.v - flow.u) ** 2).mean(1), ((flow.v_ref - flow.u) ** 2).mean(1)
    expected = sum(
        softplus(1.5 * ((mine[w] - ref[w]) - (mine[w + 1] - ref[w + 1]))) for w in (0, 2)
    )
    torch.testing.assert_close(loss, expected)
    assert flow.gradient(loss).abs().max() > 0


def test_dpo_loss_on_tokens_by_hand_uses_summed_log_probabilities():
    tokens, algorithm = Tokens([3, 1, 2, 5]), dpo(LikelihoodTerms, beta=0.1)
    loss = algorithm.loss(tokens.terms(), credit_of([1.0, -1.0, 1.0, -1.0]))
    ratio = [part.sum() for part in (tokens.logp - tokens.logp_ref).split([3, 1, 2, 5])]
    expected = sum(softplus(-0.1 * (ratio[w] - ratio[w + 1])) for w in (0, 2))
    torch.testing.assert_close(loss, expected)


def test_dpo_starts_at_log_two_and_pushes_the_winner_up():
    flow = Flow(2)
    flow.v = flow.v_ref.clone().requires_grad_()
    loss = dpo(beta=1.0).loss(flow.terms(), credit_of([1.0, -1.0]))
    assert loss.item() == pytest.approx(math.log(2))
    step = -flow.gradient(loss)
    towards_u = ((flow.u - flow.v_ref) * step).sum(1)
    assert towards_u[0] > 0 > towards_u[1]


def test_dpo_trains_on_pairs_and_always_needs_the_reference():
    assert dpo().rows_per_unit == 2 and not dpo(LikelihoodTerms, beta=0.1).needs_old
    assert dpo().needs_reference(dpo().credit(scored([[0.5, 0.5]])))
    offline = dpo(rollouts="reference", pool=4)
    assert (offline.rollouts, offline.rollout_pool) == ("reference", 4)
    assert (dpo().rollouts, dpo().rollout_pool) == ("policy", 0)


@pytest.mark.parametrize(
    "settings", [{"rollouts": "other"}, {"pool": 3}, {"beta": 0.0}, {"pairs_per_group": 0}]
)
def test_dpo_settings_that_contradict_each_other_are_refused(settings):
    with pytest.raises(ValueError):
        DpoConfig(**settings)
