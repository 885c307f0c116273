"""Figures of a report: the same bytes twice, values from rows, and what is said to be absent."""

from __future__ import annotations

import pytest

from adrpo_scale.core.errors import ConfigError
from adrpo_scale.evaluation.report.figures.base import Figure
from adrpo_scale.evaluation.report.figures.catalogue import FIGURES, figures_of
from adrpo_scale.evaluation.report.figures.series import series_of
from tests.evaluation.test_report import COLUMN, made, read


def test_a_series_is_the_mean_and_standard_error_over_seeds_at_common_iterations(tmp_path):
    a = [made(tmp_path, "a", 0, [1.0, 2.0]), made(tmp_path, "a", 1, [3.0])]
    (row,) = series_of(read(*a))
    assert row.label == "a ×2" and row.seeds == 2
    before, after = row.points[COLUMN]  # iteration 2 has one seed alone
    assert (before.iteration, before.value, before.error) == (0, pytest.approx(1.375), None)
    assert (after.iteration, after.value) == (1, pytest.approx(1.375 + 1.35 * 2))
    assert after.error == pytest.approx(1.35)  # half of the difference of 1.35 · 2


def test_the_same_runs_give_the_same_bytes(tmp_path):
    names = [made(tmp_path, "a", seed, [1.0, 2.0]) for seed in (0, 1)]
    figures, _ = figures_of(read(*names))
    assert figures == figures_of(read(*names))[0] and figures
    for figure in figures:
        assert isinstance(figure, Figure) and figure.png.startswith(b"\x89PNG")
        assert figure.svg.startswith("<svg") and figure.svg.endswith("</svg>\n")
        for word in ("atplotlib v", "rdf:", "<dc:date>", "<?xml"):
            assert word not in figure.svg and word.encode() not in figure.png


def test_an_unknown_figure_is_refused_with_those_there_are():
    with pytest.raises(ConfigError, match=f"'pie'; figures: {', '.join(FIGURES)}"):
        figures_of([], ["pie"])


def test_without_data_each_figure_says_what_is_absent():
    figures, left_out = figures_of([])
    assert figures == [] and [each.name for each in left_out] == list(FIGURES)
