"""Whether the loss of a row has a lower bound for every beta_i that a config allows.

With squared errors a row's loss is quadratic in the prediction, and its curvature must be above 0
(`Algorithm.curvature`): A_clip + beta_i + b for ADRPO and GRPO, w + beta_i + b for ORW-CFM-W2,
1 + beta_i + b for RAFT, where b is the coefficient of a second penalty, to the base. DPO has no
such condition. With c = -A_min / beta0 and b = 0 it fails first at

    clip, opposite       c = 1/2
    constant             c = 1
    tanh, opposite       c = .52 at beta0 = 1, sooner for a larger one
    tanh, paper          c = 1.96 at beta0 = 1, never while c <= 1
    rank, closed gates   by the data: beta_i may be 0 (or the floor) at any A_clip below 0

With log-probabilities a beta_i below 0 has no lower bound either. That is a warning.
"""

from __future__ import annotations

import dataclasses
import math
import warnings

import torch

from adrpo_scale.algorithms.regulariser import Regularised, Regulariser, coefficients
from adrpo_scale.algorithms.terms import RegressionTerms
from adrpo_scale.core.errors import ConfigError
from adrpo_scale.core.python_warnings import SettingsWarning


def check_range(algorithm: Regularised, held: Regulariser) -> None:
    """Raises ConfigError where squared errors are trained on and the curvature of a row can reach
    0; warns where log-probabilities are and beta_i can be negative."""
    if held.beta0 == 0 and issubclass(algorithm.terms, RegressionTerms):
        raise ConfigError(
            f"algorithm.{algorithm.beta0_key} = 0: the loss of a sample with advantage 0 has no "
            f"lower bound; {RegressionTerms.bound}. Raise it: the paper has 1 for flow matching"
        )
    is_convex = (
        issubclass(algorithm.terms, RegressionTerms) and algorithm.curvature(0.0, 0.0) is not None
    )
    if not is_convex:
        _warn_of_negative(algorithm, held)
        return
    for beta0 in held.controller.spread(held.beta0):
        steered = dataclasses.replace(held, beta0=beta0)
        if not is_safe(algorithm, steered):
            raise ConfigError(_refusal(algorithm, steered))


def is_safe(algorithm: Regularised, held: Regulariser, share: float = 1.0) -> bool:
    """Whether every curvature is above 0. share: of the clip range, 1 is all of it.

    A look at the ends and at 0 is enough: for A_clip below 0 the curvature is concave in it or
    rises with it, above 0 it is positive wherever it is at the ends.
    """
    low, high = algorithm.limits(held.beta0)
    for advantage in (share * low, 0.0, share * high):
        beta = smallest_beta(algorithm, held, advantage) + algorithm.base_coefficient
        curvature = algorithm.curvature(advantage, beta)
        # A row with coefficients 0 and 0 has no loss.
        is_nothing = _is_of_data(held) and advantage == 0 == beta
        if curvature is not None and curvature <= 0 and not is_nothing:
            return False
    return True


def smallest_beta(algorithm: Regularised, held: Regulariser, advantage: float) -> float:
    """The smallest beta_i of a sample with this A_clip, whatever its rank and its gate are."""
    clipped = torch.tensor([advantage], dtype=torch.float64)
    if held.shape is None:
        beta = float(algorithm.at(held.beta0).beta(clipped))  # type: ignore[attr-defined]
    elif held.shape == "rank":
        beta = 0.0
    else:
        found = coefficients(held.shape, held.sign, clipped, clipped, clipped, held.beta0)
        beta = float(found)
    beta = min(beta, 0.0) if held.gate.is_on else beta
    return beta if held.floor is None else max(beta, held.floor * held.beta0)


def _is_of_data(held: Regulariser) -> bool:
    """Whether beta_i of a given A_clip depends on more than that."""
    return held.shape == "rank" or held.gate.is_on


def safe_share(algorithm: Regularised, held: Regulariser) -> float:
    """The largest share of the clip range that is safe and makes its longer end a multiple of .001
    in units of beta0, found by bisection; 0 where none is."""
    longest = max(map(abs, algorithm.limits(held.beta0))) / held.beta0
    low, high = 0, math.ceil(longest * 1000)  # safe, not safe
    while high - low > 1:
        middle = (low + high) // 2
        is_low = is_safe(algorithm, held, middle / 1000 / longest)
        low, high = (middle, high) if is_low else (low, middle)
    return low / 1000 / longest


def _refusal(algorithm: Regularised, held: Regulariser) -> str:
    low, high = algorithm.limits(held.beta0)
    where = "algorithm" if algorithm.has_advantages else "regulariser"
    said = f"regulariser: shape = {held.shape!r}" if held.shape else "[regulariser]"
    said += f", sign = {held.sign!r}" if held.shape not in ("constant", None) else ""
    text = (
        f"{said} with beta0 = {held.beta0:g} and advantages clipped to {low:g} ... {high:g}: the "
        "curvature of a row's loss can reach 0 (eq. 6), and the loss then has no lower bound. "
    )
    if _is_of_data(held):
        needed = -low / held.beta0
        return text + (
            f"beta_i depends on the other samples here, so set {where}.advantage_clip = "
            f"[0.0, {high / held.beta0:g}], or regulariser.floor above {needed:g}"
        )
    share = safe_share(algorithm, held)
    down, up = (share * end / held.beta0 for end in (low, high))
    clip = f"{up:g}" if low == -high else f"[{down:g}, {up:g}]"
    return text + f"The largest safe {where}.advantage_clip is {clip}"


def _warn_of_negative(algorithm: Regularised, held: Regulariser) -> None:
    for end in algorithm.limits(held.beta0):
        beta = smallest_beta(algorithm, held, end)
        if beta < 0:
            where = "algorithm" if algorithm.has_advantages else "regulariser"
            warnings.warn(
                f"beta of a sample with A_clip = {end:g} is {beta:g}, and a negative beta pushes "
                f"it away from the reference without end; bring {where}.advantage_clip to 1 or "
                "less, or set regulariser.floor = 0.0",
                category=SettingsWarning,
                stacklevel=5,
            )
