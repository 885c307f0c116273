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
from torch.nn.functional import softplus

from adrpo_scale.algorithms.adrpo import Adrpo, AdrpoConfig
from adrpo_scale.algorithms.base import plain_credit
from adrpo_scale.algorithms.dpo import Dpo, DpoConfig
from adrpo_scale.algorithms.grpo import Grpo, GrpoConfig
from adrpo_scale.algorithms.orw_cfm_w2 import OrwCfmW2, OrwCfmW2Config
from adrpo_scale.algorithms.raft import Raft, RaftConfig
from adrpo_scale.algorithms.terms import LikelihoodTerms, RegressionTerms
from adrpo_scale.algorithms.tokens import MAX_LOG_RATIO, kl_estimate, per_row, ratio_surrogate
from adrpo_scale.core.errors import ConfigError
from adrpo_scale.core.types import Credit, Rewards

TOKENS = {"beta0": 0.04, "advantage_min": -0.04, "advantage_max": 0.04, "scale": "group_std"}
NO_CLIP = {"advantage_min": 0.0, "advantage_max": 0.0}


def scored(rewards, mask=None):
    total = torch.as_tensor(rewards, dtype=torch.float64)
    mask = torch.ones_like(total, dtype=torch.bool) if mask is None else torch.tensor(mask)
    weights = torch.ones(1, dtype=torch.float64)
    return Rewards(["reward"], weights, total[None], total, mask, torch.arange(len(total)))


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


def credit_of(advantage, beta=0.0, clipped=None, include=None):
    advantage = torch.as_tensor(advantage, dtype=torch.float64)
    return Credit(
        advantage=advantage,
        advantage_clipped=advantage if clipped is None else torch.as_tensor(clipped).double(),
        beta=torch.as_tensor(beta, dtype=torch.float64).expand_as(advantage),
        pair_id=torch.full_like(advantage, -1, dtype=torch.int64),
        include=torch.ones_like(advantage) if include is None else torch.tensor(include).double(),
    )


class Flow:
    """N rows of velocities of 6 latent elements; `v` is the policy's and has a gradient."""

    def __init__(self, rows, seed=0, dtype=torch.float64):
        random = torch.Generator().manual_seed(seed)
        self.v, self.v_ref, self.u = torch.randn(3, rows, 6, generator=random, dtype=dtype)
        self.v.requires_grad_()

    def terms(self, rows=slice(None), divergence=True):
        v, v_ref, u = self.v[rows], self.v_ref[rows], self.u[rows]
        return RegressionTerms(
            error_N=((v - u) ** 2).mean(1),
            divergence_N=((v - v_ref) ** 2).mean(1) if divergence else None,
            reference_error_N=((v_ref - u) ** 2).mean(1),
        )

    def gradient(self, loss):
        return torch.autograd.grad(loss, self.v)[0]


class Tokens:
    """Completions of the given lengths; `logp` is the policy's and has a gradient."""

    def __init__(self, lengths, seed=0, spread=0.3, dtype=torch.float64):
        random = torch.Generator().manual_seed(seed)
        self.lengths, total = torch.tensor(lengths), sum(lengths)
        noise = spread * torch.randn(2, total, generator=random, dtype=dtype)
        self.logp = -3 * torch.rand(total, generator=random, dtype=dtype)
        self.logp_old, self.logp_ref = self.logp + noise
        self.logp.requires_grad_()

    def terms(self, rows=None):
        """Terms of the rows (indices), packed."""
        rows = range(len(self.lengths)) if rows is None else rows
        starts = self.lengths.cumsum(0) - self.lengths
        spans = [torch.arange(n) + s for s, n in zip(starts, self.lengths, strict=True)]
        places = torch.cat([spans[row] for row in rows])
        lengths = self.lengths[list(rows)]
        segment = torch.repeat_interleave(torch.arange(len(lengths)), lengths)
        return LikelihoodTerms(
            rows=len(lengths),
            logp_K=self.logp[places],
            logp_old_K=self.logp_old[places],
            segment_K=segment,
            logp_ref_K=self.logp_ref[places],
        )

    def gradient(self, loss):
        return torch.autograd.grad(loss, self.logp)[0]

    def by_hand(self, advantage, beta, clip=0.2, by_token=False):
        """eq. 7, one token at a time; detached numbers."""
        loss, at = 0.0, 0
        for row, length in enumerate(self.lengths.tolist()):
            values = []
            for k in range(at, at + length):
                logp, old = self.logp[k].item(), self.logp_old[k].item()
                ratio = math.exp(logp - old)
                clipped = min(max(ratio, 1 - clip), 1 + clip)
                d = self.logp_ref[k].item() - logp
                surrogate = -min(advantage[row] * ratio, advantage[row] * clipped)
                values.append(surrogate + beta[row] * (math.exp(d) - d - 1))
            loss += sum(values) if by_token else sum(values) / length
            at += length
        return loss


REWARDS = scored([[29.1, 30.4, 28.2, 29.0], [31.0, 31.0, 31.0, 31.0]])
LENGTHS = [3, 1, 5, 2, 4, 4, 1, 2]


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


# --- DPO ------------------------------------------------------------------------------------


def dpo(terms=RegressionTerms, **settings):
    return Dpo(DpoConfig(**settings), terms)


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


# --- what is refused, and what is warned about ----------------------------------------------


@pytest.mark.parametrize(
    "settings",
    [
        {"advantage_min": 1.0, "advantage_max": -1.0},
        {"advantage_min": 0.5},
        {"advantage_max": -0.5},
        {"beta0": -1.0},
        {"clip_low": 1.0},
        {"clip_lo": 0.1},
        {"aggregation": "mean"},
    ],
)
def test_a_reversed_clip_range_and_other_nonsense_is_refused(settings):
    with pytest.raises(ValueError, match=next(iter(settings))):
        AdrpoConfig(**settings)


@pytest.mark.parametrize(
    "settings", [{"rollouts": "reference"}, {"pool": 3}, {"beta": 0.0}, {"pairs_per_group": 0}]
)
def test_dpo_settings_that_contradict_each_other_are_refused(settings):
    with pytest.raises(ValueError):
        DpoConfig(**settings)


@pytest.mark.parametrize(("algorithm", "config"), [(Adrpo, AdrpoConfig), (Grpo, GrpoConfig)])
def test_beta0_of_zero_is_refused_on_flow_and_allowed_on_tokens(algorithm, config):
    with pytest.raises(ConfigError, match=r"beta0 = 0\.0.*above 0"):
        algorithm(config(beta0=0.0), RegressionTerms)
    algorithm(config(beta0=0.0, scale="group_std", **NO_CLIP), LikelihoodTerms)


@pytest.mark.parametrize(("low", "warns"), [(-1.5, True), (-1.0, True), (-0.9, False)])
def test_grpo_on_flow_warns_where_its_loss_has_no_lower_bound(low, warns):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        Grpo(GrpoConfig(advantage_min=low), RegressionTerms)
    assert [("lower bound" in str(w.message)) for w in caught] == [True] * warns


@pytest.mark.parametrize(("high", "warns"), [(0.08, True), (0.04, False), (0.02, False)])
def test_adrpo_on_tokens_warns_where_beta_can_be_negative(high, warns):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        Adrpo(AdrpoConfig(**TOKENS | {"advantage_max": high}), LikelihoodTerms)
    assert [("lower bound" in str(w.message)) for w in caught] == [True] * warns


@pytest.mark.filterwarnings("ignore:algorithm.*no lower bound")
@pytest.mark.parametrize(
    ("config", "algorithm", "stated"),
    [
        (AdrpoConfig, Adrpo, {"beta0": 1.0, "scale": "none"}),
        (GrpoConfig, Grpo, {"beta0": 1.0, "scale": "none"}),
        (DpoConfig, Dpo, {"beta": 2000.0}),
    ],
)
def test_settings_whose_default_is_for_flow_must_be_stated_on_tokens(config, algorithm, stated):
    algorithm(config(), RegressionTerms)
    algorithm(config(**stated), LikelihoodTerms)
    for name in stated:
        silent = {other: value for other, value in stated.items() if other != name}
        with pytest.raises(ConfigError, match=f"{name} must be stated .*tokens.*state .*{name} = "):
            algorithm(config(**silent), LikelihoodTerms)


class OfRatios(Grpo):
    """As an algorithm that has a meaning for probabilities alone."""

    takes = (LikelihoodTerms,)


def test_an_algorithm_uses_the_first_terms_that_it_takes():
    """A domain that gives both is used by either kind of algorithm."""
    both = (RegressionTerms, LikelihoodTerms)
    squares, ratios = (kind(kind.Config(**TOKENS), *both) for kind in (Adrpo, OfRatios))
    assert squares.terms is RegressionTerms and not squares.needs_old
    assert ratios.terms is LikelihoodTerms and ratios.needs_old
    message = r"OfRatios takes log-probabilities .*the domain gives squared errors"
    with pytest.raises(ConfigError, match=message):
        OfRatios(GrpoConfig(**TOKENS), RegressionTerms)


def test_the_reference_is_needed_where_some_beta_is_not_zero():
    rewards = scored([[1.0, 2.0, 3.0, 4.0]])
    raft, orw = Raft(RaftConfig(), RegressionTerms), OrwCfmW2(OrwCfmW2Config(), RegressionTerms)
    assert not raft.needs_reference(raft.credit(rewards))
    assert orw.needs_reference(orw.credit(rewards))
    free = Grpo(GrpoConfig(**TOKENS | {"beta0": 0.0}), LikelihoodTerms)
    assert not free.needs_reference(free.credit(rewards))
    adaptive = Adrpo(AdrpoConfig(**TOKENS | {"beta0": 0.0, "advantage_max": 0}), LikelihoodTerms)
    assert adaptive.needs_reference(adaptive.credit(rewards))


def test_rows_are_measured_beforehand_only_for_a_surrogate_that_is_a_ratio():
    stated = {Adrpo: TOKENS, Grpo: TOKENS, Dpo: {"beta": 0.1}}
    kinds = (Adrpo, Grpo, OrwCfmW2, Raft, Dpo)
    built = [kind(kind.Config(**stated.get(kind, {})), LikelihoodTerms) for kind in kinds]
    assert [a.needs_old for a in built] == [True, True, False, False, False]
    assert not Adrpo(AdrpoConfig(), RegressionTerms).needs_old


def test_a_loss_that_asks_for_what_was_not_measured_says_so():
    flow, tokens = Flow(2), Tokens([2, 3])
    pair = credit_of([1.0, -1.0])
    blind = dataclasses.replace(flow.terms(), reference_error_N=None)
    with pytest.raises(ValueError, match="asks for reference_error_N, which was not measured"):
        dpo().loss(blind, pair)
    blind = dataclasses.replace(tokens.terms(), logp_ref_K=None)
    with pytest.raises(ValueError, match="asks for logp_ref_K"):
        dpo(LikelihoodTerms, beta=0.1).loss(blind, pair)
    grpo = Grpo(GrpoConfig(**TOKENS, entropy_coef=0.1), LikelihoodTerms)
    with pytest.raises(ValueError, match="asks for entropy_K"):
        grpo.loss(tokens.terms(), pair)


def test_the_defaults_are_the_papers_for_flow():
    config = AdrpoConfig()
    assert (config.beta0, config.advantage_min, config.advantage_max) == (1, -1, 1)
    assert (config.baseline, config.scale, config.combine) == ("group", "none", "sum")


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
