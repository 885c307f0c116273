"""The Euler solver of flow matching: its settings and its times."""

from __future__ import annotations

import torch
from torch import Tensor

from adrpo_scale.core.bounds import NUMBER, REPEATS
from adrpo_scale.core.settings import Section, setting


class SolverConfig(Section):
    """The solver of samples. Every config states it: results depend on it."""

    steps: int = setting(28, "Euler steps", ge=1, le=REPEATS)
    guidance: float = setting(4.5, "classifier-free guidance scale; 1 means none", ge=0, le=NUMBER)


def solver_times(steps: int, shift: float) -> Tensor:
    """t_0 = 0 … t_steps = 1 in the paper's time, float64 [steps + 1].

    Uniform in sigma, shifted once: sigma' = shift·sigma / (1 + (shift - 1)·sigma). diffusers'
    `set_timesteps(N)` shifts twice and spends its last step between sigma = .001 and 0.
    """
    sigma = 1 - torch.arange(steps + 1, dtype=torch.float64) / steps
    return 1 - shift * sigma / (1 + (shift - 1) * sigma)
