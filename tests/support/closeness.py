"""How near two computations of the same numbers must be, from the arithmetic of float32.

Two runs of the same mathematics round differently where the processor, the number of threads, of
processes or of rows in a product differs: sums are then added up in another order. Tolerances of
tests that compare across these follow from three facts.

*A sum.* Adding n terms in any order errs by at most n eps |terms|, and by about sqrt(n) eps |terms|
as a rule (Higham, Accuracy and Stability of Numerical Algorithms, 4.2). ROUNDINGS of them leave
room for sums of a few hundred terms, one after the other through the layers of the models here.
The error follows the size of the *terms*: a sum that cancels keeps it, so it is absolute.

*A gradient* is such a sum over rows, positions and layers whose terms cancel, so its elements err
by delta = CANCELLED eps times their root mean square (of their tensor, or of all where that is
more: a key's bias has a gradient of nothing but rounding). Measured on the models of these tests:
at most 123 eps, over two processors' instructions and over `tests.support.rounding`. The norm of
all of it, where errors average out, is held as a sum without cancelling.

*A parameter after Adam* moves in a step by rate * m / (sqrt(v) + eps), at most by about the rate
whatever the gradient's size (by Cauchy-Schwarz m <= sqrt(v), but for the different weights of the
two averages). Differentiated, an error of delta in the gradients moves it by at most
rate * 2 delta / (sqrt(v) + eps), and never by more than twice the rate: an element whose gradient
is nothing but rounding may go up in one run and down in the other. So the tolerance of an element
is absolute and follows from its own second moment, which every optimizer and checkpoint has. From
the second step on the gradients are those of parameters that differ already: DRIFT of the movement
(measured: up to .0015). An update that is missing or wrong is a hundred times farther away.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest
import torch
from torch import Tensor

EPS = torch.finfo(torch.float32).eps
ROUNDINGS, CANCELLED, DRIFT = 100, 1000, 0.01
NEAR = ROUNDINGS * EPS  # 1.2e-5
ADAM_EPS, BETA2 = 1e-8, 0.999  # torch's
# Of log-probabilities and entropies, for `torch.testing.assert_close`: differences of logits and of
# the logarithm of their sum, which are of size eight.
LOGP = {"rtol": NEAR, "atol": 8 * NEAR}


def near(expected: Any, terms: float = 0.0) -> Any:
    """`found == near(expected)`: but for rounding. terms: the size of what was added up, where the
    sum may be much smaller; a norm, or a sum of one sign, needs none. After several updates: see
    `drifted`."""
    return pytest.approx(expected, rel=NEAR, abs=NEAR * terms)


def drifted(expected: Any, updates: int, terms: float = 0.0) -> Any:
    """The same for what is measured after `updates` steps of Adam, or is their mean: the parameters
    differ by then, by about a thousandth of the movement that such a number follows."""
    factor = 1 + 10 * updates
    return pytest.approx(expected, rel=factor * NEAR, abs=factor * NEAR * terms)


def assert_near(found: Tensor, expected: Tensor, terms: float = 0.0) -> None:
    """Elements but for rounding. terms: as of `near`; at least the largest element."""
    size = max(terms, float(expected.abs().max()) if expected.numel() else 0.0)
    torch.testing.assert_close(found, expected, rtol=NEAR, atol=NEAR * size)


def adam_tolerances(
    second_moments: Mapping[str, Tensor], rate: float, steps: int, before: int = 0
) -> dict[str, Tensor]:
    """By how much each element may differ after `steps` of Adam (see above), its own rounding
    excepted. second_moments: `exp_avg_sq` of every trained parameter. rate: the learning rate.
    before: steps that came earlier and are the same to the bit."""
    correction = 1 - BETA2 ** (before + steps)
    sizes = {n: (v.double() / correction).sqrt() for n, v in second_moments.items()}
    of_all = _root_mean_square(torch.cat([size.flatten() for size in sizes.values()]))
    found = {}
    for name, size in sizes.items():
        delta = CANCELLED * EPS * torch.maximum(_root_mean_square(size), of_all)
        share = (2 * delta / (size + ADAM_EPS)).clamp(DRIFT if before + steps > 1 else 0.0, 2.2)
        found[name] = rate * steps * share
    return found


def _root_mean_square(values: Tensor) -> Tensor:
    return values.square().mean().sqrt()


def assert_adam_near(
    found: Mapping[str, Tensor],
    expected: Mapping[str, Tensor],
    second_moments: Mapping[str, Tensor],
    rate: float,
    steps: int,
    before: int = 0,
) -> None:
    """Parameters after Adam but for rounding. Names of `expected`; the message has the worst."""
    tolerances = adam_tolerances(second_moments, rate, steps, before)
    held = []
    for name, wanted in expected.items():
        tolerance = tolerances[name] + NEAR * wanted.double().abs()
        ratio = (found[name].double() - wanted.double()).abs() / tolerance
        held.append((float(ratio.max()), name))
    worst, name = max(held)
    assert worst <= 1, f"{name}: an element is {worst:.3g} times its tolerance away"
    # Most elements are held tightly: a tolerance that everything passes would hold nothing. Of an
    # adapter one in eight is not: its A has no gradient until its B has left 0.
    loose = sum(int((t > 0.2 * rate * steps).sum()) for t in tolerances.values())
    assert loose <= 0.25 * sum(t.numel() for t in tolerances.values())


def second_moments(
    optimizer: torch.optim.Optimizer, named: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """`exp_avg_sq` by name of torch's Adam; parameters that had no gradient are left out."""
    state = optimizer.state
    return {name: state[p]["exp_avg_sq"] for name, p in named.items() if p in state}
