"""Warnings of an iteration, from its record."""

from __future__ import annotations

from adrpo_scale.algorithms.adrpo import Adrpo, AdrpoConfig
from adrpo_scale.algorithms.terms import RegressionTerms
from adrpo_scale.training.iteration import warnings_of

RECORD = {"advantage_abs_mean": 1.0, "degenerate_groups": 1.0, "masked": 0}


def kinds(**changed):
    return [
        kind
        for kind, _ in warnings_of({**RECORD, **changed}, Adrpo(AdrpoConfig(), RegressionTerms))
    ]


def test_groups_of_equal_rewards_are_warned_of_unless_no_reward_is_left():
    assert kinds() == ["degenerate groups"]
    assert kinds(masked=2) == ["degenerate groups", "masked"]
    # A larger group would not help a reward that fails on every sample.
    assert kinds(masked=8, advantage_abs_mean=None) == ["masked"]
