"""One bad line or file of a run folder ends neither a run nor a command: every reader of each."""

from __future__ import annotations

import json
import shutil

import pytest
from typer.testing import CliRunner

from adrpo_scale.checkpoint.base import CheckpointConfig
from adrpo_scale.checkpoint.retention import read_values
from adrpo_scale.cli import main as cli
from adrpo_scale.cluster.status.read import read as read_status
from adrpo_scale.cluster.status.state import judge
from adrpo_scale.core.errors import RunFolderError
from adrpo_scale.evaluation.report.comparison import comparison
from adrpo_scale.evaluation.report.evaluated import read_run
from adrpo_scale.run import starts
from adrpo_scale.run.api import open_run
from adrpo_scale.run.figures import curves
from adrpo_scale.run.folder import cut_back, left_behind
from adrpo_scale.run.summary import summarise
from tests.core.test_json_files import NO_EVALUATION, NO_ROW, ODD, metric, written
from tests.run.test_old_runs import GOLDEN

FILES = ("metrics.jsonl", "eval.jsonl", "lives/01.json")
BAD = {**ODD, **NO_ROW, **NO_EVALUATION}
RECORDS = {  # objects, and yet no records as we write them
    "lists": {"versions": [1], "gpus": [2], "commit": {"a": 1}, "began": [3], "outcome": [4]},
    "numbers": {"versions": 1, "gpus": 2, "commit": 3, "began": 4, "found": 5, "job_id": 17},
    "texts": {"versions": "1", "gpus": "2", "found": "3", "restart_count": "x", "iteration": "4"},
    "other times": {"began": "0001-01-01", "ended": "9999-12-31T23:59:59+00:00", "found": {}},
    "nothing": {},
}


@pytest.fixture
def run(tmp_path):
    """The folder of a run of two iterations, evaluated at 0 and at 2."""
    to = tmp_path / "run"
    shutil.copytree(GOLDEN / "runs" / "image", to, ignore=shutil.ignore_patterns("expected"))
    return to


def read_everything(run):
    """Every reader of the three files; returns what is to be the same with and without damage."""
    ours = open_run(run)
    judge(read_status(run))
    best = read_values(run / "eval.jsonl", CheckpointConfig(keep_best=1, best_split="train"))
    table = comparison([read_run(run)])
    before = starts.previous_start(run) or {}
    starts.changes(before, before)
    starts.stalled_starts(run, "17", None)
    left_behind(run, 1)
    cut_back(run, 2, 2)
    return ours.metrics(), ours.evaluations(), best, table


@pytest.mark.parametrize("line", BAD.values(), ids=BAD)
def test_every_reader_leaves_a_bad_line_out(run, line):
    whole = read_everything(run)
    texts = {name: (run / name).read_bytes() for name in FILES}
    for name in ("metrics.jsonl", "eval.jsonl"):
        (run / name).write_bytes(texts[name] + line + b"\n")
    (run / "lives" / "01.json").write_bytes(line)
    assert read_everything(run) == whole
    for name in ("metrics.jsonl", "eval.jsonl"):  # the reader cut it off
        assert (run / name).read_bytes() == texts[name]


@pytest.mark.parametrize("record", RECORDS.values(), ids=RECORDS)
def test_a_record_of_other_contents_ends_nothing(run, record):
    (run / "lives" / "01.json").write_text(json.dumps(record))
    read_everything(run)
    assert open_run(run).starts() == ([record] if record else [])


@pytest.mark.parametrize("content", [b"", b"\n\n", b'{"iteration": 7, "spl', *NO_ROW.values()])
def test_a_run_without_one_whole_evaluation_ends_well(run, content, capsys):
    (run / "eval.jsonl").write_bytes(content + b"\n" * bool(content))
    summarise(run)
    assert "TensorBoard" in capsys.readouterr().out
    assert not (run / "curves.png").exists()
    assert CliRunner().invoke(cli.app, ["report", str(run)]).exit_code == 0
    with pytest.raises(RunFolderError, match="no curve can be drawn"):
        curves([read_run(run).rows], run / "curves.png")


def test_lines_of_two_writers_are_cut_back_to_one_an_iteration(run):
    path = run / "metrics.jsonl"
    written(path, metric(1), metric(2), metric(6), metric(2, seconds=9.0), metric(3), metric(7))
    assert left_behind(run, 2)["iterations"] == 3
    cut_back(run, 6, 6)
    kept = [json.loads(line) for line in path.read_text().splitlines()]
    assert kept == [metric(1), metric(2, seconds=9.0), metric(3), metric(6)]


@pytest.mark.parametrize("name", ["metrics.jsonl", "eval.jsonl"])
def test_a_name_that_is_no_file_is_refused_and_nothing_is_cut(run, name):
    (run / name).unlink()
    (run / name).mkdir()
    for action in (lambda: left_behind(run, 2), lambda: cut_back(run, 2, 2)):
        with pytest.raises(RunFolderError, match=f"{name} cannot be read .* move it away"):
            action()
    assert read_status(run) is not None


@pytest.mark.parametrize("content", [b"", b"[]", b"[" * 9999, b'{"a"'])
def test_a_config_that_cannot_be_read_is_one_message(run, content):
    (run / "config.json").write_bytes(content)
    for action in (lambda: read_run(run), lambda: open_run(run).config):
        with pytest.raises(RunFolderError, match="is not JSON"):
            action()
