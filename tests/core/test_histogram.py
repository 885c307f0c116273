"""Histograms of files: every value in its bin, and sums that do not depend on the order."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest

from adrpo_scale.core.histogram import BINS, Histogram, added, from_json, histogram


def bins(found):
    return {(found.first + k) * found.width: c for k, c in enumerate(found.counts) if c}


def test_each_value_is_in_the_bin_that_holds_it():
    values = np.array([0.0, 0.01, 1.0, 2.0, 2.0, -0.3])
    found = histogram(values)
    assert found.width == 2.0 / BINS and found.total == 6
    expected: dict[float, int] = {}
    for value in values:
        low = math.floor(value / found.width) * found.width
        expected[low] = expected.get(low, 0) + 1
    assert bins(found) == expected


def test_histograms_add_up_to_that_of_all_values_at_the_coarser_width():
    draws = np.random.default_rng(0)
    fine, coarse = draws.normal(size=50) / 100, draws.normal(size=70)
    both = added([histogram(fine), histogram(coarse)])
    whole = histogram(np.concatenate([fine, coarse]))
    assert both == added([histogram(coarse), histogram(fine)]) == whole
    assert added([whole]) == whole


@pytest.mark.parametrize("values", [[0.0], [1e-300], [5e-324, 0.0], [1e300, -1e300], [-2.0] * 3])
def test_any_finite_value_has_a_place(values):
    found = histogram(np.array([*values, math.nan, math.inf]))
    assert found.total == len(values) and len(found.counts) <= 2 * BINS + 1
    assert from_json(json.loads(json.dumps(found.as_json()))) == found


def test_without_a_finite_value_there_is_none():
    assert histogram(np.array([])) is None and histogram(np.array([math.nan])) is None


@pytest.mark.parametrize(
    "found",
    [
        *(None, 3, {}, {"width": 0.0, "first": 0, "counts": [1]}),
        *({"width": w, "first": 0, "counts": [1]} for w in (0.3, -1, math.nan, math.inf, True, "")),
        *({"width": 1, "first": f, "counts": [1]} for f in (1.0, None, 10**9)),
        *({"width": 1, "first": 0, "counts": c} for c in ([], [-1], [1.5], [10**20], 3, [1] * 999)),
    ],
)
def test_what_is_no_histogram_is_none(found):
    assert from_json(found) is None


def test_a_whole_width_is_one():
    assert from_json({"width": 2, "first": 0, "counts": [1]}) == Histogram(2.0, 0, (1,))
