"""Settings that algorithms refuse or warn of, and terms that they ask for."""

from __future__ import annotations

import dataclasses
import warnings

import pytest

from adrpo_scale.algorithms.adrpo import Adrpo, AdrpoConfig
from adrpo_scale.algorithms.dpo import Dpo, DpoConfig
from adrpo_scale.algorithms.grpo import Grpo, GrpoConfig
from adrpo_scale.algorithms.orw_cfm_w2 import OrwCfmW2, OrwCfmW2Config
from adrpo_scale.algorithms.raft import Raft, RaftConfig
from adrpo_scale.algorithms.terms import (
    ExactLikelihoodTerms,
    LikelihoodTerms,
    RegressionTerms,
)
from adrpo_scale.core.errors import ConfigError
from tests.support.terms_by_hand import NO_CLIP, TOKENS, Flow, Tokens, credit_of, dpo, scored


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


def test_the_exact_kl_is_asked_of_a_domain_that_has_it_and_refused_of_another():
    config = GrpoConfig(**TOKENS, kl_estimator="exact")
    grpo = Grpo(config, LikelihoodTerms, ExactLikelihoodTerms)
    assert grpo.wanted is ExactLikelihoodTerms and grpo.terms is LikelihoodTerms
    assert Grpo(GrpoConfig(**TOKENS), LikelihoodTerms).wanted is LikelihoodTerms
    # Of squared errors the divergence is exact as it is.
    assert Grpo(config, RegressionTerms).wanted is RegressionTerms
    with pytest.raises(ConfigError, match=r'kl_estimator = "exact".*use k3 .*or let the domain'):
        Grpo(config, LikelihoodTerms)
    with pytest.raises(ConfigError, match="beta0 and scale must be stated"):
        Grpo(GrpoConfig(kl_estimator="exact"), LikelihoodTerms, ExactLikelihoodTerms)


def test_the_reference_is_needed_where_some_beta_is_not_zero():
    rewards = scored([[1.0, 2.0, 3.0, 4.0]])
    raft, orw = Raft(RaftConfig(), RegressionTerms), OrwCfmW2(OrwCfmW2Config(), RegressionTerms)
    assert not raft.needs_reference(raft.credit(rewards))
    assert orw.needs_reference(orw.credit(rewards))
    free = Grpo(GrpoConfig(**TOKENS | {"beta0": 0.0}), LikelihoodTerms)
    assert not free.needs_reference(free.credit(rewards))
    adaptive = Adrpo(AdrpoConfig(**TOKENS | {"beta0": 0.0, "advantage_max": 0}), LikelihoodTerms)
    assert adaptive.needs_reference(adaptive.credit(rewards))


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
