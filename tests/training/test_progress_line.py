"""The progress line of a terminal, in the columns that it has."""

from __future__ import annotations

from adrpo_scale.training.metrics import progress_line

RECORD = {
    "reward": 21.234,
    "beta_min": 0.0,
    "beta_max": 2.0,
    "divergence": 9.21e-05,
    "entropy": 0.4,
    "samples_per_second": 59.5,
}


def test_a_narrow_terminal_loses_whole_numbers_and_the_least_important_first():
    whole = "reward 21.23  beta 0.00…2.00  divergence 9.21e-05  entropy 0.400  59.5 samples/s"
    assert progress_line(RECORD) == progress_line(RECORD, len(whole)) == whole
    assert progress_line(RECORD, len(whole) - 1) == whole.removesuffix("  59.5 samples/s")
    assert progress_line(RECORD, 50) == "reward 21.23  divergence 9.21e-05  entropy 0.400"
    assert progress_line(RECORD, 40) == "reward 21.23  divergence 9.21e-05"
    assert progress_line(RECORD, 5) == "reward 21.23"


def test_numbers_that_were_not_measured_are_a_dash():
    line = progress_line({"reward": None, "divergence": float("nan")})
    assert line == "reward –  beta –…–  divergence –  – samples/s"
