"""The share of its prompts that a run uses."""

from __future__ import annotations

import json
import logging

from adrpo_scale.core.types import Prompt
from adrpo_scale.data.prompts import PromptsConfig
from adrpo_scale.run.coverage import COVERAGE, coverage, report_coverage


def prompts(count):
    return [Prompt(number, f"prompt {number}") for number in range(count)]


def prepared(folder, total, usable):
    folder.mkdir()
    (folder / "report.json").write_text(json.dumps({"rows": {"total": total, "usable": usable}}))
    return str(folder / "train.jsonl")


def test_a_run_records_how_many_of_the_listed_questions_it_uses(tmp_path, caplog):
    caplog.set_level(logging.INFO)
    config = PromptsConfig(
        train=prepared(tmp_path / "avqa", 50, 40),
        held_out=prepared(tmp_path / "mmau", 10, 10),
    )
    every, used = (prompts(40), prompts(10)), (prompts(38), prompts(10))
    report_coverage(config, every, used, tmp_path)
    assert json.loads((tmp_path / COVERAGE).read_text()) == {
        "files": [
            {"file": config.train, "listed": 50, "rows": 40, "used": 38},
            {"file": config.held_out, "listed": 10, "rows": 10, "used": 10},
        ]
    }
    assert [record.getMessage() for record in caplog.records] == [
        f"{config.train}: 38 of 50 listed prompts are used (76.0 %)"
    ]


def test_a_held_out_share_is_of_the_same_file():
    config = PromptsConfig(train="prompts.txt", held_out_share=0.2)
    assert coverage(config, (prompts(8), prompts(2)), (prompts(7), prompts(2))) == [
        {"file": "prompts.txt", "listed": 10, "rows": 10, "used": 9}
    ]


def test_a_report_of_other_rows_says_nothing(tmp_path):
    other = PromptsConfig(train=prepared(tmp_path / "avqa", 50, 40))
    assert coverage(other, (prompts(39), []), (prompts(39), []))[0]["listed"] == 39
    for text in ("no JSON", "[]", '{"rows": 3}', '{"rows": {"total": "x", "usable": 39}}'):
        (tmp_path / "avqa" / "report.json").write_text(text)
        assert coverage(other, (prompts(39), []), (prompts(39), []))[0]["listed"] == 39
    hub = PromptsConfig(train="hub:somebody/a-set:train")
    assert coverage(hub, (prompts(3), []), (prompts(2), []))[0]["listed"] == 3


def test_a_folder_that_takes_no_record_ends_nothing(tmp_path, caplog):
    config = PromptsConfig(train="prompts.txt")
    report_coverage(config, (prompts(1), []), (prompts(1), []), tmp_path / "gone")
    assert "coverage.json cannot be written" in caplog.text
