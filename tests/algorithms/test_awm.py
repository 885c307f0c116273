"""Advantage-weighted matching against its published formulas, on one update and on several."""

from __future__ import annotations

import pytest
import torch

from adrpo_scale.algorithms.awm import Awm, AwmConfig
from adrpo_scale.algorithms.base import included_sum
from adrpo_scale.algorithms.grpo import Grpo, GrpoConfig
from adrpo_scale.algorithms.old_error_terms import OldErrorTerms
from adrpo_scale.algorithms.regulariser import ControllerConfig, RegulariserConfig
from adrpo_scale.algorithms.terms import LikelihoodTerms, RegressionTerms
from adrpo_scale.core.errors import ConfigError
from tests.support.terms_by_hand import Flow, credit_of, scored
from tests.support.tiny import demo_config

ROWS = 6
A = [-7.0, -2.0, 0.0, 1.0, 4.0, 9.0]  # before the clip at 5
EXACT = {"rtol": 1e-10, "atol": 1e-12}
WEIGHTINGS = ["ghuber", "uniform"]


def awm(**settings):
    return Awm(AwmConfig(**settings), RegressionTerms, OldErrorTerms)


def credit(algorithm):
    advantage, c = torch.tensor(A, dtype=torch.float64), algorithm.config.clip
    return credit_of(advantage, algorithm.config.beta0, clipped=advantage.clamp(-c, c) / c)


class Moved(Flow):
    """A policy some updates after `before`, the old policy's velocities."""

    def __init__(self, by):
        super().__init__(ROWS)
        random = torch.Generator().manual_seed(9)
        self.before = self.v.detach() + by * torch.randn(self.v.shape, generator=random).double()
        self.noise_N = torch.rand(ROWS, generator=random).double()

    def measured(self):
        old_N = ((self.before - self.u) ** 2).mean(1)
        return OldErrorTerms.of(self.terms(), old_N, self.noise_N)


def published(flow, config):
    """The released loss, sample by sample, with diffusers' velocities, which are ours with the
    other sign, and with a clean sample and noise whose difference they predict."""
    random = torch.Generator().manual_seed(3)
    total, ratios = 0.0, []
    for n in range(ROWS):
        sigma, clean = flow.noise_N[n], torch.randn(6, generator=random, dtype=torch.float64)
        noise = clean - flow.u[n]

        def log_prob(velocity, sigma=sigma, clean=clean, noise=noise):
            found = -((-velocity - (noise - clean)) ** 2)
            found = found.mean()
            if config.weighting == "uniform":
                return found
            floor = torch.tensor(1e-10, dtype=torch.float64) ** config.power
            return -((-found + 1e-10) ** config.power - floor) * sigma / config.power

        advantage = min(max(A[n], -config.clip), config.clip) / config.clip
        ratio = (log_prob(flow.v[n]) - log_prob(flow.before[n])).exp()
        clipped = ratio.clamp(1.0 - config.clip_range, 1.0 + config.clip_range)
        policy = torch.maximum(-advantage * ratio, -advantage * clipped)
        total = total + policy + config.beta0 * ((flow.v[n] - flow.v_ref[n]) ** 2).mean()
        ratios.append(float(ratio.detach()))
    return total, ratios


@pytest.mark.parametrize("weighting", WEIGHTINGS)
@pytest.mark.parametrize(
    ("by", "clip_range"), [(0.0, 1.0), (0.4, 1.0), (0.4, 0.15)], ids=["one", "several", "clipped"]
)
def test_the_loss_is_the_released_one(weighting, by, clip_range):
    flow = Moved(by)
    algorithm = awm(weighting=weighting, clip_range=clip_range, beta0=0.7, clip=5.0)
    loss = algorithm.loss(flow.measured(), credit(algorithm))
    expected, ratios = published(flow, algorithm.config)
    off = [abs(ratio - 1) for ratio in ratios]
    assert max(off) == 0 if by == 0 else min(off) > 1e-4
    if clip_range < 1:  # on both sides, and some are inside
        assert min(ratios) < 0.85 and max(ratios) > 1.15 and min(off) < 0.15
    torch.testing.assert_close(loss, expected, **EXACT)
    torch.testing.assert_close(flow.gradient(loss), flow.gradient(expected), **EXACT)


@pytest.mark.parametrize("power", [0.25, 0.5, 1.0])
def test_on_the_first_update_it_is_the_fixed_beta_control_with_the_weights_of_its_errors(power):
    """Gradient for gradient; values differ by constants."""
    flow = Moved(0.0)
    algorithm = awm(power=power, beta0=1.5)
    loss = algorithm.loss(flow.measured(), credit(algorithm))
    error_N = flow.terms().error_N.detach()
    weight_N = flow.noise_N * (error_N + 1e-10) ** (power - 1)
    clipped = credit(algorithm).advantage_clipped * weight_N
    grpo = Grpo(GrpoConfig(beta0=1.5), RegressionTerms)
    control = grpo.loss(flow.terms(), credit_of(A, 1.5, clipped=clipped))
    torch.testing.assert_close(flow.gradient(loss), flow.gradient(control), **EXACT)


def test_without_weights_it_is_the_fixed_beta_control_itself_until_the_second_update():
    grpo = Grpo(GrpoConfig(beta0=1.5), RegressionTerms)
    algorithm = awm(weighting="uniform", beta0=1.5)
    for by in (0.0, 0.4):
        flow = Moved(by)
        loss = algorithm.loss(flow.measured(), credit(algorithm))
        control = grpo.loss(flow.terms(), credit(algorithm))
        off = (flow.gradient(loss) - flow.gradient(control)).abs().max()
        assert off < 1e-10 if by == 0 else off > 1e-3


def test_a_row_that_is_left_out_adds_nothing_and_unmeasured_errors_are_the_policys_own():
    flow, algorithm = Moved(0.4), awm()
    whole = credit(algorithm)
    some = credit_of(whole.advantage, 1.0, whole.advantage_clipped, include=[1, 0, 1, 1, 0, 1])
    each = [
        algorithm.loss(flow.measured(), credit_of(A, 1.0, whole.advantage_clipped, one.tolist()))
        for one in torch.eye(ROWS)
    ]
    torch.testing.assert_close(
        algorithm.loss(flow.measured(), some), included_sum(torch.stack(each), some), **EXACT
    )
    fresh = OldErrorTerms.of(flow.terms(), None, flow.noise_N)
    begun = Moved(0.0).measured()
    assert torch.equal(fresh.old_error_N, begun.old_error_N)


def test_the_credit_divides_clipped_advantages_by_the_clip_and_beta_is_constant():
    rewards = scored([[0.0, 1.0, 2.0, 9.0], [3.0, 3.0, 3.0, 3.0]])
    found = awm(scale="none", clip=4.0, beta0=0.5).credit(rewards)
    assert found.advantage.tolist() == [-3, -2, -1, 6, 0, 0, 0, 0]
    assert found.advantage_clipped.tolist() == [-0.75, -0.5, -0.25, 1, 0, 0, 0, 0]
    assert found.beta.tolist() == [0.5] * 8
    assert awm().needs_reference(found) and awm().needs_old and awm().rollouts == "policy"


# ---- settings ----------------------------------------------------------------------------------


def test_its_defaults_are_the_released_ones():
    config = AwmConfig()
    assert (config.beta0, config.clip, config.scale) == (1.0, 5.0, "global_std")
    assert (config.weighting, config.power, config.clip_range) == ("ghuber", 0.25, 1.0)


def test_what_does_not_go_with_it_is_refused():
    with pytest.raises(ConfigError, match="takes squared errors of two policies"):
        Awm(AwmConfig(), LikelihoodTerms)
    moving = ["reference.kind=ema"]
    for settings, message in [
        (["algorithm={name='awm'}"], r"decay = 0.3 and ramp = 0.001 as released, or take grpo"),
        (["algorithm={name='awm', rollouts='base'}", *moving], "its ratio is to the policy that"),
        (["algorithm={name='awm', weighting='uniform', power=0.5}", *moving], "leave power out"),
        (["algorithm={name='awm'}", *moving, "regulariser.shape=tanh"], "leave the section out"),
    ]:
        with pytest.raises(ConfigError, match=message):
            demo_config(overrides=settings)


def test_a_controller_may_steer_its_beta0():
    section = RegulariserConfig(controller=ControllerConfig(target=0.1, low=0.5, high=2.0))
    algorithm = Awm(AwmConfig(), RegressionTerms, OldErrorTerms, regulariser=section)
    assert algorithm.at(2.0).credit(scored([[1.0, 2.0]])).beta.tolist() == [2.0, 2.0]
