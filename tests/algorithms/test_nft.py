"""DiffusionNFT against its published formula; gradients that it and its kin have in common."""

from __future__ import annotations

import pytest
import torch

from adrpo_scale.algorithms.adrpo import Adrpo, AdrpoConfig
from adrpo_scale.algorithms.grpo import Grpo, GrpoConfig
from adrpo_scale.algorithms.nft import Nft, NftConfig
from adrpo_scale.algorithms.terms import LikelihoodTerms, RegressionTerms
from adrpo_scale.algorithms.velocity_terms import VelocityTerms
from adrpo_scale.core.errors import ConfigError
from tests.support.terms_by_hand import Flow, credit_of, scored
from tests.support.tiny import demo_config

ROWS = 5
A = [-7.0, -2.0, 0.0, 1.0, 9.0]  # before the clip at 5
EXACT = {"rtol": 1e-10, "atol": 1e-12}
MOVING = ["reference.kind=ema", "reference.decay=0.5", "reference.ramp=0.001"]


def nft(**settings):
    return Nft(NftConfig(**settings), RegressionTerms, VelocityTerms)


def velocity_terms(flow, noise_N):
    return VelocityTerms.of(flow.terms(), flow.v, flow.u, flow.v_ref, noise_N)


def published(flow, sigma_N, advantage_N, b, c):
    """The released loss, sample by sample, in predictions of the clean sample: x_t - σ·v with
    diffusers' velocity, which is ours with the other sign."""
    total = 0.0
    random = torch.Generator().manual_seed(3)
    for n in range(ROWS):
        sigma, u = sigma_N[n], -flow.u[n]
        clean = torch.randn(6, generator=random, dtype=torch.float64)
        x_t = clean + sigma * u  # (1 - σ)·clean + σ·noise, with u = noise - clean
        new, old = -flow.v[n], -flow.v_ref[n]
        r = min(max(advantage_N[n], -c), c) / c / 2 + 0.5
        for share, mixed in ((r, b * new + (1 - b) * old), (1 - r, (1 + b) * old - b * new)):
            off = x_t - sigma * mixed - clean
            weight = max(off.abs().mean().item(), 1e-5)
            total = total + c * share * (off**2 / weight).mean() / b
    return total


@pytest.mark.parametrize(("b", "c"), [(1.0, 5.0), (0.1, 5.0), (0.5, 2.0)])
def test_the_loss_is_the_released_one(b, c):
    flow, noise_N = Flow(ROWS), torch.rand(ROWS, dtype=torch.float64)
    algorithm = nft(beta0=b, clip=c)
    advantage = torch.tensor(A, dtype=torch.float64)
    credit = credit_of(advantage, clipped=advantage.clamp(-c, c) / c)
    loss = algorithm.loss(velocity_terms(flow, noise_N), credit)
    expected = published(flow, noise_N, A, b, c)
    torch.testing.assert_close(loss, expected, **EXACT)
    torch.testing.assert_close(flow.gradient(loss), flow.gradient(expected), **EXACT)


def test_the_credit_divides_clipped_advantages_by_the_clip():
    rewards = scored([[0.0, 1.0, 2.0, 9.0], [3.0, 3.0, 3.0, 3.0]])
    credit = nft(scale="none", clip=4.0).credit(rewards)
    assert credit.advantage.tolist() == [-3, -2, -1, 6, 0, 0, 0, 0]
    assert credit.advantage_clipped.tolist() == [-0.75, -0.5, -0.25, 1, 0, 0, 0, 0]
    assert credit.beta.tolist() == [1.75, 1.5, 1.25, 0, 1, 1, 1, 1]
    assert nft().needs_reference(credit) and nft().rollouts == "reference"


# ---- one family --------------------------------------------------------------------------------


@pytest.mark.parametrize("b", [1.0, 0.1, 0.5])
def test_without_its_weights_it_is_adrpo_with_that_reference(b):
    """(r |v₊ - u|² + (1 - r) |v₋ - u|²) / b and eq. 6 with beta0 = b, A = 2r - 1."""
    flow = Flow(ROWS)
    advantage = torch.tensor([-1.0, -0.3, 0.0, 0.4, 1.0], dtype=torch.float64)
    adrpo = Adrpo(AdrpoConfig(beta0=b, advantage_min=-1.0, advantage_max=1.0), RegressionTerms)
    eq6 = adrpo.loss(flow.terms(), credit_of(advantage, b - advantage))
    r, (v, old, u) = (advantage + 1) / 2, (flow.v, flow.v_ref, flow.u)
    positive = ((b * v + (1 - b) * old - u) ** 2).mean(1)
    negative = (((1 + b) * old - b * v - u) ** 2).mean(1)
    contrast = ((r * positive + (1 - r) * negative) / b).sum()
    torch.testing.assert_close(flow.gradient(contrast), flow.gradient(eq6), **EXACT)


def test_advantage_weighted_matching_on_policy_is_the_fixed_beta_control():
    """-A · exp(logp - logp_old) with logp = -|v - u|², at v = v_old, and β · |v - v_ref|²."""
    flow = Flow(ROWS)
    advantage = torch.tensor([-1.0, -0.3, 0.0, 0.4, 1.0], dtype=torch.float64)
    logp = -((flow.v - flow.u) ** 2).mean(1)
    ratio = (logp - logp.detach()).exp()
    held = ((flow.v - flow.v_ref) ** 2).mean(1)
    matching = (-advantage * ratio + 1.5 * held).sum()
    grpo = Grpo(GrpoConfig(beta0=1.5), RegressionTerms)
    control = grpo.loss(flow.terms(), credit_of(advantage, 1.5))
    torch.testing.assert_close(flow.gradient(matching), flow.gradient(control), **EXACT)


def test_the_adaptive_coefficient_adds_minus_a_times_the_divergence():
    flow = Flow(ROWS)
    advantage = torch.tensor([-1.0, -0.3, 0.0, 0.4, 1.0], dtype=torch.float64)
    adrpo = Adrpo(AdrpoConfig(), RegressionTerms).loss(
        flow.terms(), credit_of(advantage, 1 - advantage)
    )
    grpo = Grpo(GrpoConfig(beta0=1.5), RegressionTerms).loss(
        flow.terms(), credit_of(advantage, 1.0)
    )
    added = -(advantage * ((flow.v - flow.v_ref) ** 2).mean(1)).sum()
    torch.testing.assert_close(
        flow.gradient(adrpo) - flow.gradient(grpo), flow.gradient(added), **EXACT
    )


# ---- settings ----------------------------------------------------------------------------------


def test_it_needs_velocities_and_a_reference_that_moves():
    with pytest.raises(ConfigError, match="takes velocities"):
        Nft(NftConfig(), LikelihoodTerms)
    name = "algorithm={name='nft'}"
    with pytest.raises(ConfigError, match="its reference follows the policy"):
        demo_config(overrides=[name])
    config = demo_config(overrides=[name, *MOVING])
    assert config.build_algorithm().rollouts == "reference"
