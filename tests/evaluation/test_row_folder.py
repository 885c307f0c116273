"""Folders that `evaluate` writes, as `report` reads them."""

from __future__ import annotations

import pytest

from adrpo_scale.evaluation.asked import SamplingConfig
from adrpo_scale.evaluation.report.comparison import comparison, table_lines
from adrpo_scale.evaluation.report.evaluated import read_runs
from adrpo_scale.evaluation.report.text import report_text, trace
from adrpo_scale.run.load import load_config
from tests.support.judged import named_set, write_evaluation, write_row
from tests.support.tiny import CONFIGS

CONFIG = load_config(CONFIGS / "demo" / "image_adrpo.toml").config.resolved()


@pytest.fixture
def to(tmp_path):
    write_evaluation(tmp_path / "to", CONFIG, seeds=(0, 1, 2))
    return tmp_path / "to"


def test_an_evaluation_and_its_rows_are_the_same_table(to):
    whole = read_runs(str(to))
    rows = [run for path in sorted((to / "rows").iterdir()) for run in read_runs(str(path))]
    assert sorted(comparison(whole)) == sorted(comparison(rows))
    table = comparison(whole)
    assert table[0] == ["", "clip (demo)", "checker (demo)", "clip_diversity_l2 (demo)"]
    assert [line[0] for line in table[1:]] == ["ours ×3", "flux"]


def test_seeds_are_joined_and_a_published_model_has_no_training_seed(to):
    ours, flux = sorted(table_lines(read_runs(str(to))), key=lambda line: -len(line.runs))
    assert ours.is_trained and [run.seed for run in ours.runs] == [0, 1, 2]
    clip = ("demo", "clip")
    assert ours.cells[clip].seed_error > 0 and ours.cells[clip].sampling_error > 0
    assert not flux.is_trained and flux.cells[clip].seed_error is None
    assert flux.cells[clip].sampling_error > 0 and flux.cells[clip].prompt_interval is not None
    assert "nobody trained it" in report_text(read_runs(str(to)))
    assert ours.runs[0].settings["algorithm.beta0"] == 1.0  # of the copied config


def test_trajectories_and_other_settings_are_rows_of_their_own(tmp_path):
    sets, sampling = (named_set(),), SamplingConfig(per_prompt=2)
    for iteration in (10, 20):
        write_row(tmp_path, "ours", sets, sampling, config=CONFIG, iteration=iteration, several=1)
    rows = sorted((tmp_path / "rows").iterdir())
    table = comparison([run for row in rows for run in read_runs(str(row))])
    assert [line[0] for line in table[1:]] == ["ours ×1, iteration = 10", "ours ×1, iteration = 20"]


def test_weights_of_the_command_line_are_those_of_runs_alone(to):
    assert report_text(read_runs(str(to), "ema")) == report_text(read_runs(str(to)))
    assert "hub/" not in trace(read_runs(str(to)))
