"""Figures of a report: the same bytes twice, values from rows, and what is said to be absent."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest

from adrpo_scale.core.errors import ConfigError
from adrpo_scale.core.histogram import histogram
from adrpo_scale.evaluation.report.figures.base import Figure, LeftOut
from adrpo_scale.evaluation.report.figures.betas import beta_histograms, betas_of
from adrpo_scale.evaluation.report.figures.catalogue import FIGURES, figures_of
from adrpo_scale.evaluation.report.figures.fronts import families, fronts
from adrpo_scale.evaluation.report.figures.series import series_of
from adrpo_scale.evaluation.report.figures.trajectories import reward_divergence
from tests.evaluation.test_report import COLUMN, made, read, written


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


def with_metrics(name, betas):
    """The run with a metrics.jsonl whose iterations 1, 2, … had these coefficients."""
    lines = [
        {
            "iteration": k,
            "beta_mean": sum(values) / len(values),
            "beta_histogram": histogram(np.array(values)).as_json(),
        }
        for k, values in enumerate(betas, 1)
    ]
    written(Path(name) / "metrics.jsonl", lines)
    return name


def test_shares_of_betas_are_those_of_the_samples_over_seeds(tmp_path):
    names = [made(tmp_path, "a", seed, [1.0]) for seed in (0, 1)]
    with_metrics(names[0], [[0.0, 2.0], [1.0, 2.0]])
    with_metrics(names[1], [[0.0, 0.0], [1.0, 1.0]])
    (row,) = betas_of(read(*names))
    lows = row.edges_B[:-1]
    assert row.label == "a ×2" and row.edges_T.tolist() == [0.5, 1.5, 2.5]
    assert row.shares_BT.sum(axis=0).tolist() == [1.0, 1.0] and row.mean == {1: 0.5, 2: 1.25}
    assert row.shares_BT[lows == 0.0].tolist() == [[0.75, 0.0]]
    assert row.shares_BT[lows == 2.0].tolist() == [[0.25, 0.25]]
    assert isinstance(beta_histograms(read(*names)), Figure)


@pytest.mark.parametrize("line", ["", '{"iteration": 1}', '{"iteration": 1, "beta_histogram": 3}'])
def test_runs_without_histograms_have_no_figure_of_them(tmp_path, line):
    name = made(tmp_path, "a", 0, [1.0])
    (Path(name) / "metrics.jsonl").write_text(f"{line}\n")
    assert "logging.histograms_every" in beta_histograms(read(name)).reason
    with_metrics(name, [[0.0, 0.0]])
    assert isinstance(beta_histograms(read(name)), LeftOut)  # an algorithm without a coefficient


def diverging(name, by):
    """The run with a `w2_sum` of `by` · iteration beside each reward."""
    path = Path(name) / "eval.jsonl"
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    more = [row | {"metric": "w2_sum", "value": by * row["iteration"]} for row in rows]
    written(path, [*rows, *more])
    return name


def test_a_family_of_a_front_differs_in_numbers_alone_and_is_ordered_by_them(tmp_path):
    names = [
        diverging(made(tmp_path, "adrpo", 0, [1.0], overrides=[f"optimizer.{o}"]), 0.5)
        for o in ("learning_rate=0.5", "learning_rate=0.25", "schedule=linear")
    ]
    one, other = families(read(*names))
    assert one.label == "adrpo, schedule = constant" and other.label == "adrpo, schedule = linear"
    assert [s.tag for s in one.settings] == ["learning_rate = 0.25", "learning_rate = 0.5"]
    assert len(other.settings) == 1
    assert isinstance(fronts(read(*names)), Figure)
    assert isinstance(fronts(read(names[0])), LeftOut)  # one point is no front


def test_points_of_a_trajectory_are_in_the_picture_where_the_rows_say(tmp_path):
    """The points lie as their numbers do: divergence to the right, reward upwards."""
    gains = [1.0, 4.0, 3.0]
    name = diverging(made(tmp_path, "a", 0, gains), 0.5)
    figure = reward_divergence(read(name))
    assert isinstance(figure, Figure)
    group = figure.svg.partition('id="PathCollection_1"')[2].partition('id="LineCollection_')[0]
    places = re.findall(r'<use [^>]*x="([-.0-9]+)" y="([-.0-9]+)"', group)
    x, y = np.array(places[: 1 + len(gains)], dtype=float).T
    assert (x - x[0]) / (x[-1] - x[0]) == pytest.approx([0, 1 / 3, 2 / 3, 1], abs=1e-4)
    assert (y - y[0]) / (y[1] - y[0]) == pytest.approx([0.0, *gains], abs=1e-3)
    assert y[1] < y[0] and x[1] > x[0]  # y of an SVG goes downwards


def test_numbers_that_are_not_finite_are_left_out(tmp_path):
    name = diverging(made(tmp_path, "a", 0, [1.0, 2.0, 3.0]), 0.5)
    path = Path(name) / "eval.jsonl"
    lines = path.read_text().splitlines()
    for place, value in ((2, "null"), (3, "NaN")):
        row = json.loads(lines[place]) | {"value": None}
        lines[place] = json.dumps(row).replace("null", value)
    path.write_text("\n".join(lines) + "\n")
    (row,) = series_of(read(name))
    assert [point.iteration for point in row.points[COLUMN]] == [0, 1]
    figures, _ = figures_of(read(name))
    assert figures and not any("nan" in figure.svg for figure in figures)
