"""The gradient signal of gradients whose mean and noise are known."""

from __future__ import annotations

import math

import pytest
import torch

from adrpo_scale.core.types import FlatRange
from adrpo_scale.engines.base import Engine, OptimizerConfig
from adrpo_scale.training.gradient_signal import (
    Recent,
    gradient_signal,
    moment_ratio,
    noise_ratio,
)

DEFAULT = OptimizerConfig()
ELEMENTS = 10_000
PARTS = {"a": slice(0, 7), "b": slice(7, 3007), "c": slice(3007, ELEMENTS)}


class Moments:
    """The moments of torch's own AdamW, fed with gradients; the rest of an engine is left out."""

    moment_sums = Engine.moment_sums

    def __init__(self, config):
        self.parameters = {
            n: torch.zeros(s.stop - s.start).requires_grad_() for n, s in PARTS.items()
        }
        betas = (config.beta1, config.beta2)
        self.adamw = torch.optim.AdamW(self.parameters.values(), lr=1e-9, betas=betas)

    def step(self, gradient, names=PARTS):
        for name, parameter in self.parameters.items():
            parameter.grad = gradient[PARTS[name]].clone() if name in names else None
        self.adamw.step()

    def _state(self, key):
        return {n: self.adamw.state[p][key] for n, p in self.parameters.items()}

    def moments(self):
        return {key: self._state(key) for key in ("exp_avg", "exp_avg_sq")}

    def optimizer_steps(self):
        return {name: int(step) for name, step in self._state("step").items()}

    def places(self):
        return {n: FlatRange((s.stop - s.start,), 0, s.stop - s.start) for n, s in PARTS.items()}


def fed(gradients, config=DEFAULT):
    engine = Moments(config)
    for gradient in gradients:
        engine.step(gradient)
    return engine


def noise(steps, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(ELEMENTS, generator=generator) for _ in range(steps)]


def error(floor, snr):
    """Five standard deviations of rho around its mean, for noise of one size in every element: of
    Σ m̂², with variance f of m̂'s elements; that of Σ v̂ is smaller."""
    variance = 2 * floor**2 + 4 * floor * snr
    return 5 * math.sqrt(2 * variance / ELEMENTS) / (1 + snr)


@pytest.mark.parametrize("steps", [2, 5, 30, 100])
@pytest.mark.parametrize("beta1", [0.9, 0.5])
def test_noise_alone_gives_its_floor(beta1, steps):
    config = OptimizerConfig(beta1=beta1)
    rho = moment_ratio(fed(noise(steps), config), config)
    floor = noise_ratio(beta1, steps)
    assert rho == pytest.approx(floor, abs=error(floor, 0.0))


def test_the_floor_is_that_of_the_moments_without_an_end():
    assert noise_ratio(0.9, 1) == 1  # one gradient is its own mean
    assert noise_ratio(0.9, 30) == pytest.approx(0.0573, abs=5e-5)
    assert noise_ratio(0.9, 10_000) == pytest.approx(0.1 / 1.9)


def test_a_constant_gradient_is_signal_alone():
    config = OptimizerConfig()
    engine = fed([noise(1)[0]] * 40, config)
    assert moment_ratio(engine, config) == pytest.approx(1.0, rel=1e-5)
    assert gradient_signal(engine, config) == pytest.approx(1.0, rel=1e-5)


@pytest.mark.parametrize("snr", [0.01, 0.1, 1.0])
def test_a_known_signal_is_found(snr):
    config, mean = OptimizerConfig(), math.sqrt(snr)  # of each element, beside noise of size 1
    engine, floor = fed([g + mean for g in noise(60)], config), noise_ratio(0.9, 60)
    rho = (snr + floor) / (snr + 1)
    assert moment_ratio(engine, config) == pytest.approx(rho, abs=error(floor, snr))
    expected = snr / (1 + snr)  # the cosine of two batches
    assert gradient_signal(engine, config) == pytest.approx(
        expected, abs=error(floor, snr) / (1 - floor)
    )


@pytest.mark.parametrize("passes", [2, 4])
def test_passes_over_equal_gradients_give_at_most_what_is_stated(passes):
    fresh = noise(36)
    engine = fed([g for g in fresh for _ in range(passes)])
    floor = (1 - 0.9**passes) / (1 + 0.9**passes)
    left = 0.9 ** (36 * passes)  # m̂ is not quite without a beginning
    rho = moment_ratio(engine, DEFAULT)
    assert rho == pytest.approx(floor, abs=error(floor, 0.0) + 3 * left)


def test_there_is_none_before_there_are_enough_steps():
    config = OptimizerConfig()
    engine = fed([])
    engine.step(torch.zeros(ELEMENTS))
    assert moment_ratio(engine, config) is None  # no gradient at all
    engine = fed(noise(29), config)
    assert gradient_signal(engine, config) is None
    engine.step(noise(1, seed=1)[0])
    assert abs(gradient_signal(engine, config)) < 0.01
    without = OptimizerConfig(beta1=0.0)
    assert gradient_signal(fed(noise(30), without), without) is None


def test_parts_with_fewer_steps_are_corrected_for_theirs():
    config, constant = OptimizerConfig(), noise(1)[0]
    engine = fed([constant] * 3, config)
    for _ in range(30):
        engine.step(constant, names=("a", "c"))
    assert engine.moment_sums().keys() == {3, 33}
    assert moment_ratio(engine, config) == pytest.approx(1.0, rel=1e-5)


def test_the_last_twenty_of_a_start_are_averaged():
    recent = Recent()
    for value in [None, 9.0, *[1.0] * 18]:
        recent.add(value, None)
    assert recent.mean is None
    recent.add(1.0, None)
    assert recent.mean == pytest.approx((9 + 19) / 20)
    recent.add(None, 3.0)  # an iteration without a signal
    recent.add(1.0, 3.0)
    assert recent.mean == 1


def test_a_start_whose_reward_has_risen_is_not_noise():
    flat, risen = Recent(), Recent()
    for n in range(40):
        flat.add(0.0, 0.5 + 0.1 * (n % 2))
        risen.add(0.0, 0.5 + 0.1 * (n % 2) + 0.01 * n)
    assert flat.mean == 0 and risen.mean is None
