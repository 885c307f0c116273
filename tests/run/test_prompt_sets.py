"""What `train` says and keeps about its sets of prompts, and `evaluate` about its questions."""

from __future__ import annotations

import json
import logging

import pytest

from adrpo_scale.core.types import Prompt
from adrpo_scale.data.prompt_sets import key_of, set_hash
from adrpo_scale.data.prompts import PromptsConfig
from adrpo_scale.run.prompt_sets import FILE, overlap_text, report_sets, sets_text

TRAIN = [Prompt(0, "a red ring"), Prompt(1, "a blue square")]


@pytest.fixture
def config(tmp_path):
    (tmp_path / "train.txt").write_text("a red ring\na blue square\n")
    return PromptsConfig(train=str(tmp_path / "train.txt"))


def test_a_held_out_prompt_that_is_trained_on_is_a_warning(tmp_path, caplog, capsys):
    with caplog.at_level(logging.WARNING):
        report_sets(TRAIN, [Prompt(2, "A red ring."), Prompt(3, "two dogs")], tmp_path)
    (line,) = caplog.messages
    assert "held-out prompts: 1 of 2 are among the 2 trained on" in line and "A red ring." in line
    stated = json.loads((tmp_path / FILE).read_text())
    assert stated["overlap"] == {"trained": 2, "tested": 2, "shared": 1}
    assert stated["train"] == {"prompts": 2, "hash": set_hash([key_of(p) for p in TRAIN])}
    assert capsys.readouterr().out == ""


def test_disjoint_prompts_are_said_and_a_run_without_any_says_nothing(tmp_path, caplog, capsys):
    report_sets(TRAIN, [Prompt(3, "two dogs")], tmp_path)
    assert "held-out prompts: none of the 1 is among the 2 trained on" in capsys.readouterr().out
    report_sets(TRAIN, [], tmp_path)
    assert capsys.readouterr().out == ""
    assert [r for r in caplog.records if r.levelno >= logging.WARNING] == []


def test_questions_are_compared_with_the_files_that_a_run_trained_on(config, tmp_path):
    assert overlap_text(config, TRAIN[:1]).startswith("1 of 1 are among the 2 trained on")
    (tmp_path / "train.txt").unlink()
    assert overlap_text(config, TRAIN).startswith("whether they were trained on is not known: ")


def test_the_line_under_a_table_names_the_evaluated_prompts(tmp_path):
    assert sets_text(tmp_path) == ""  # a run of before
    row = {"iteration": 0, "split": "train", "weights": "raw", "prompts": ["b", "a"], "metrics": {}}
    (tmp_path / "eval_prompts.jsonl").write_text(json.dumps(row) + "\n")
    assert sets_text(tmp_path) == f"train: 2 prompts, set {set_hash(['a', 'b'])}"
