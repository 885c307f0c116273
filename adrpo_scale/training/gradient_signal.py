"""How much of the gradient is signal, from Adam's own moments.

    rho = Σ m̂² / Σ v̂    over all trained elements, m̂ and v̂ with Adam's corrections for step t

Gradients are a mean μ and noise of covariance C, independent from step to step. Then rho is about
(|μ|² + f·tr C) / (|μ|² + tr C): 1 without noise, and f where there is nothing else, with

    f(t) = (1 - β₁)/(1 + β₁) · (1 + β₁ᵗ)/(1 - β₁ᵗ)    .053 at β₁ = .9 and t → ∞

    signal = (rho - f) / (1 - f),    which estimates c = |μ|² / (|μ|² + tr C)

c is the expected cosine of the gradients of two independent batches, and n·(1 - c)/c is the simple
noise scale of McCandlish et al. (2018, arXiv 1812.06162) for batches of n samples: so many
make a gradient of which half is signal.

What it leaves out: Adam gets gradients after clipping to `max_grad_norm`, which changes their scale
from step to step; where every one is clipped, c is of directions alone. v̂ remembers 1/(1 - β₂)
steps and m̂ 1/(1 - β₁): a gradient that has shrunk since counts as less signal, one that has grown
as more. A mean that turns within 1/(1 - β₁) steps counts as noise, and a policy that swings around
its resting place has less than f. Passes over one rollout share its samples: U passes over equal
gradients give (1 - β₁ᵁ)/(1 + β₁ᵁ), .105 for two. On the image demo, at one draw, at most a fifth of
the noise was the samples', so that noise reads as a signal of .01.
"""

from __future__ import annotations

import math
from collections import deque
from statistics import fmean

import torch

from adrpo_scale.core import dist
from adrpo_scale.engines.base import Engine, OptimizerConfig
from adrpo_scale.training.guidance import FIRST, has_risen

STEPS = 3  # times 1/(1 - beta1): before, rho is of too few gradients


def noise_ratio(beta1: float, steps: int) -> float:
    """f(t) of the module docstring: rho of pure noise after so many steps; 1 at the first step."""
    left = beta1**steps
    return (1 - beta1) / (1 + beta1) * (1 + left) / (1 - left)


def moment_ratio(engine: Engine, optimizer: OptimizerConfig) -> float | None:
    """rho; None before the first step, and where every gradient was 0. Collective."""
    sums = torch.zeros(2, dtype=torch.float64)
    for steps, (first, second) in engine.moment_sums().items():
        if steps:
            sums[0] += first / (1 - optimizer.beta1**steps) ** 2
            sums[1] += second / (1 - optimizer.beta2**steps)
    first, second = dist.all_sum(sums).tolist()
    return first / second if second > 0 else None


def gradient_signal(
    engine: Engine, optimizer: OptimizerConfig, done: float = math.inf
) -> float | None:
    """The signal of the module docstring, an estimate that may fall below 0. None before
    3/(1 - beta1) steps, where every gradient was 0, and where beta1 = 0 keeps no mean.
    Collective.

    done: the run's optimizer steps, skipped ones included. Too few need no look at the device.
    """
    enough = STEPS / (1 - optimizer.beta1) - 1e-9
    if optimizer.beta1 == 0 or done < enough:
        return None
    rho, steps = moment_ratio(engine, optimizer), max(engine.optimizer_steps().values(), default=0)
    if rho is None or steps < enough:
        return None
    noise = noise_ratio(optimizer.beta1, steps)
    return (rho - noise) / (1 - noise)


class Recent:
    """The iterations of a start, to say whether it is noise."""

    def __init__(self) -> None:
        self._signals: deque[float] = deque(maxlen=FIRST)
        self._rewards: list[float] = []

    def add(self, signal: float | None, reward: float | None) -> None:
        if signal is not None:
            self._signals.append(signal)
        if reward is not None:
            self._rewards.append(reward)

    @property
    def mean(self) -> float | None:
        """The mean signal of the last `FIRST` iterations; None before there are so many, and where
        the reward has risen in this start."""
        if len(self._signals) < FIRST or has_risen(self._rewards):
            return None
        return fmean(self._signals)
