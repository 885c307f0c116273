"""Errors of means against scipy: its numbers, written down, and scipy itself where it is there.

The numbers are of scipy 1.17.1 (`sem`, `ttest_rel`, `bootstrap` with method="percentile" and the
generator of seed 0, `binomtest`).
"""

from __future__ import annotations

import itertools
import statistics

import numpy as np
import pytest

from adrpo_scale.evaluation.report.statistics import (
    RESAMPLES,
    Interval,
    bootstrap_interval,
    sampling_error,
    sign_test,
    standard_error,
    t_interval,
    t_quantile,
)

ONE = [4.041, -0.556, 2.418, 1.432, 1.547, 1.784, -0.02, 1.768, 1.135, 5.323, 2.226, 1.647]
OTHER = [3.6, -1.19, 1.59, 0.937, 1.488, 1.365, 0.159, 1.368, 0.847, 5.796, 2.199, 1.094]
GAPS = [a - b for a, b in zip(ONE, OTHER, strict=True)]
CLOSE = 1e-12  # of sums of a dozen numbers, and of the bisection


def near(low, high):
    return pytest.approx((low, high), rel=CLOSE)


def test_the_numbers_of_scipy():
    assert standard_error(ONE) == pytest.approx(0.4557481438040183, rel=CLOSE)
    found = t_interval(GAPS)
    assert (found.low, found.high) == near(0.056752402385558925, 0.5252475976144411)
    found = bootstrap_interval(GAPS)
    assert (found.low, found.high) == near(0.08549583333333338, 0.47926666666666645)
    for (first, second), p in {
        (3, 9): 0.14599609375,
        (0, 5): 0.0625,
        (7, 7): 1.0,
        (40, 70): 0.005447429511444476,
    }.items():
        assert sign_test(first, second) == sign_test(second, first) == pytest.approx(p, rel=CLOSE)


@pytest.mark.parametrize(
    ("freedom", "quantile"),
    [
        (1, 12.706204736174694),
        (2, 4.302652729749462),
        (3, 3.1824463052837078),
        (4, 2.7764451051977934),
        (11, 2.200985160091639),
        (999, 1.9623414611334493),
    ],
)
def test_the_quantiles_of_scipy(freedom, quantile):
    assert t_quantile(0.975, freedom) == pytest.approx(quantile, rel=CLOSE)


def test_scipy_itself_where_it_is_installed():
    stats = pytest.importorskip("scipy.stats")
    draws = np.random.default_rng(5)
    for n in (2, 3, 12, 400):
        one = draws.normal(3, 2, n)
        other = one - 0.2 + draws.normal(0, 1, n)
        assert standard_error(one) == pytest.approx(stats.sem(one), rel=CLOSE)
        paired = stats.ttest_rel(one, other).confidence_interval(0.95)
        found = t_interval(one - other)
        assert (found.low, found.high) == near(paired.low, paired.high)
        again = stats.bootstrap(
            (one - other,),
            np.mean,
            n_resamples=RESAMPLES,
            method="percentile",
            rng=np.random.default_rng(0),
        ).confidence_interval
        found = bootstrap_interval(one - other)
        assert (found.low, found.high) == near(again.low, again.high)
    for first, second in itertools.product((0, 1, 12, 300), repeat=2):
        if first + second:
            p = stats.binomtest(first, first + second, 0.5).pvalue
            assert sign_test(first, second) == pytest.approx(p, rel=1e-9)  # its own series


def test_pieces_of_the_bootstrap_are_one_stream(monkeypatch):
    whole = bootstrap_interval(GAPS)
    monkeypatch.setattr("adrpo_scale.evaluation.report.statistics._AT_ONCE", 7 * len(GAPS))
    assert bootstrap_interval(GAPS) == whole


def test_what_one_value_cannot_say_is_not_said():
    assert standard_error([1.0]) is t_interval([1.0]) is bootstrap_interval([1.0]) is None
    assert standard_error([]) is t_interval([]) is bootstrap_interval([]) is None


def test_equal_differences_have_an_interval_of_no_width():
    assert t_interval([0.5, 0.5, 0.5]) == bootstrap_interval([0.5, 0.5]) == Interval(0.5, 0.5)
    assert Interval(0.0, 0.0).has_zero and not Interval(0.1, 0.2).has_zero


def test_the_error_of_sampling_is_the_spread_of_means_over_seeds():
    """One prompt of spread 3 and one of 1, four samples each: the mean over both of many draws."""
    found = sampling_error([3.0, 1.0], [4, 4])
    assert found == pytest.approx(((9 / 4 + 1 / 4) ** 0.5) / 2)
    draws = np.random.default_rng(1).normal(0, 1, (20_000, 2, 4)) * [[[3.0], [1.0]]]
    means = draws.mean(axis=(1, 2)).tolist()
    assert found == pytest.approx(statistics.stdev(means), rel=0.02)  # 1/√(2·20,000) is 0.5 %
    assert sampling_error([3.0, None], [4, 0]) is sampling_error([1.0], [1]) is None
    assert sampling_error([], []) is None
