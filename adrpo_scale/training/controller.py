"""The adaptive KL controller: a beta0 that follows the divergence from the base (arXiv 1909.08593,
section 2.2).

After every iteration, with d its mean divergence over all ranks,

    beta0 ← beta0 · (1 + 0.1 · clip(d / target - 1, ± 0.2)),    within [low, high]

so beta0 changes by at most 2 % an iteration. Where no divergence was measured, it stays. beta0 is
all of the state: every rank holds the same number, and a checkpoint has it to the bit.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from adrpo_scale.algorithms.regulariser import ControllerConfig
from adrpo_scale.core import dist
from adrpo_scale.core.errors import given

GAIN = 0.1
LARGEST = 0.2


@dataclass
class Controller:
    """beta0: of the next iteration; the run's own before the first."""

    config: ControllerConfig
    beta0: float

    def follow(self, divergence: float | None) -> None:
        """Takes over the mean divergence of an iteration. Collective: rank 0's beta0 is taken, so
        no difference in the last bit of a sum over ranks can grow."""
        if divergence is not None:
            beta0 = steered(self.beta0, divergence, self.config)
            self.beta0 = dist.run_on_main(lambda: beta0)

    def document(self) -> dict[str, float]:
        return {"beta0": self.beta0}

    def restore(self, stored: Mapping[str, Any] | None) -> None:
        """Takes over what a checkpoint holds. None, of a run without a controller: beta0 stays."""
        if stored is not None:
            self.beta0 = float(stored["beta0"])


def steered(beta0: float, divergence: float, config: ControllerConfig) -> float:
    """The next beta0. A divergence that is not finite counts as far above the target."""
    excess = divergence / given(config.target) - 1
    excess = max(-LARGEST, min(LARGEST, excess)) if excess == excess else LARGEST
    return max(given(config.low), min(given(config.high), beta0 * (1 + GAIN * excess)))
