"""Kills at random moments, also inside saves.

`python -m tests.support.chaos` does as many as asked.
"""

from __future__ import annotations

import pytest

from tests.support.chaos import CASES, run_case

KILLS = 6
pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]


@pytest.mark.parametrize(("kind", "world"), CASES)
def test_a_run_that_is_killed_again_and_again_is_the_quiet_one(tmp_path, kind, world):
    report = run_case(tmp_path, kind, world, KILLS, seed=0)
    print(f"\n{report}")
    assert report.kills == KILLS
    assert report.lost_commits == report.broken_met == report.differences == 0
