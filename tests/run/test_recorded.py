"""A run that has recorded iterations is never begun anew by itself."""

from __future__ import annotations

import json
import os
import shutil

import pytest

from adrpo_scale.checkpoint.shelf import FIRST_COMMIT, committed
from adrpo_scale.core.errors import AdrpoError, CheckpointError, RunFolderError
from adrpo_scale.run.folder import make_folder, remove_temporaries
from adrpo_scale.run.recorded import check_may_begin, set_lines_aside
from adrpo_scale.run.resume import find_start
from tests.run.test_find_start import config_of
from tests.run.test_old_runs import GOLDEN
from tests.support import starts
from tests.support.obstacles import OBSTACLES, Precious
from tests.support.tiny import records

NO_FOLDER = [name for name in OBSTACLES if name not in ("a link to a folder", "a folder")]


@pytest.fixture
def run(tmp_path):
    """The folder of a run of two iterations, of an earlier version."""
    to = tmp_path / "run"
    shutil.copytree(GOLDEN / "runs" / "image", to, ignore=shutil.ignore_patterns("expected"))
    return to


def contents(run):
    files = (path for path in run.rglob("*") if path.is_file() and not path.is_symlink())
    return {path.relative_to(run): path.read_bytes() for path in files}


@pytest.mark.parametrize("obstacle", NO_FOLDER)
@pytest.mark.parametrize("name", ["checkpoints", "trajectory", "origin", "logs", "samples"])
def test_a_name_that_is_no_folder_is_an_error(run, tmp_path, name, obstacle):
    if (run / name).exists():
        shutil.rmtree(run / name)
    OBSTACLES[obstacle](run / name, Precious(tmp_path / "elsewhere"))
    before = contents(run)
    with pytest.raises(RunFolderError, match=f"{name} is expected to be a folder"):
        make_folder(run)
    if name == "checkpoints":
        with pytest.raises(AdrpoError, match=r"cannot be listed|has had one"):
            find_start(config_of(), run)
        with pytest.raises(CheckpointError, match="cannot be listed"):
            committed(run / name)
    assert contents(run) == before


@pytest.mark.parametrize("obstacle", [name for name in OBSTACLES if name != "a file"])
@pytest.mark.parametrize("name", ["metrics.jsonl", "eval.jsonl", "eval_prompts.jsonl"])
def test_lines_are_written_into_a_file_alone(run, tmp_path, name, obstacle):
    (run / name).unlink(missing_ok=True)
    OBSTACLES[obstacle](run / name, Precious(tmp_path / "elsewhere"))
    with pytest.raises(RunFolderError, match=f"{name} is expected to be a regular file"):
        make_folder(run)


@pytest.mark.parametrize("empty", [False, True])
def test_a_run_whose_checkpoints_are_gone_is_not_begun_anew(run, empty):
    shutil.rmtree(run / "checkpoints")
    if empty:
        (run / "checkpoints").mkdir()
    before = contents(run)
    with pytest.raises(RunFolderError, match=r"lives/01.json came to the end.*--fresh"):
        find_start(config_of(), run)
    assert contents(run) == before
    assert find_start(config_of(), run, fresh=True).reader is None


@pytest.mark.parametrize(
    ("record", "first", "may"),
    [
        ({"outcome": "done"}, False, False),
        ({"resumed_from": 3}, False, False),
        ({"resumed_from": 0, "outcome": "stopped by SIGTERM"}, False, False),
        ({}, True, False),
        ({"outcome": "stopped by SIGTERM", "resumed_from": None}, False, True),
        ({"outcome": "CUDA error"}, False, True),
        (None, False, True),
    ],
)
def test_what_says_that_there_was_a_checkpoint(tmp_path, record, first, may):
    """A run that was killed before its first one begins anew, as it always has."""
    (tmp_path / "lives").mkdir()
    (tmp_path / "lives" / "01.json").write_text("" if record is None else json.dumps(record))
    (tmp_path / "lives" / "02.json").write_text("{}")
    if first:
        (tmp_path / FIRST_COMMIT).write_text("{}")
    check_may_begin(tmp_path, fresh=True)
    if may:
        check_may_begin(tmp_path, fresh=False)
    else:
        with pytest.raises(RunFolderError, match="has had one"):
            check_may_begin(tmp_path, fresh=False)


@pytest.mark.parametrize("record", [None, {"outcome": "done"}])
def test_who_has_begun_anew_once_is_asked_again_after_the_next_checkpoint_alone(tmp_path, record):
    """A start with --fresh that is killed before its first checkpoint begins anew by itself."""
    (tmp_path / "lives").mkdir()
    if record is None:
        (tmp_path / FIRST_COMMIT).write_text("{}")
    else:
        (tmp_path / "lives" / "01.json").write_text(json.dumps(record))
    with pytest.raises(RunFolderError):
        check_may_begin(tmp_path, fresh=False)
    assert set_lines_aside(tmp_path) == []
    check_may_begin(tmp_path, fresh=False)
    assert "evidence" in json.loads((tmp_path / "first-checkpoint.before-1.json").read_text())
    (tmp_path / FIRST_COMMIT).write_text("{}")
    with pytest.raises(RunFolderError):
        check_may_begin(tmp_path, fresh=False)


def test_lines_are_kept_under_the_first_free_name(tmp_path):
    assert set_lines_aside(tmp_path) == []
    (tmp_path / "eval.jsonl").write_text("")
    for number in (1, 2):
        (tmp_path / "metrics.jsonl").write_text(f"{number}\n")
        assert set_lines_aside(tmp_path) == [f"metrics.before-{number}.jsonl"]
    assert (tmp_path / "metrics.before-1.jsonl").read_text() == "1\n"
    assert sorted(os.listdir(tmp_path)) == [
        "eval.jsonl",
        "metrics.before-1.jsonl",
        "metrics.before-2.jsonl",
    ]


def test_files_that_a_kill_left_unrenamed_are_removed(tmp_path):
    names = ["config.json.00ff.tmp", "config.json", "mine.tmp", "metrics.jsonl"]
    for name in names:
        (tmp_path / name).write_text("x")
    remove_temporaries(tmp_path)
    assert sorted(os.listdir(tmp_path)) == sorted(names[1:])


def test_a_deleted_folder_costs_nothing_and_fresh_begins_beside_it(tmp_path):
    settings = ["checkpoint.every_iterations=1", "iterations=2", "evaluation.every=1"]
    assert starts.train(tmp_path, 1, settings).wait() == [0]
    run = tmp_path / "run"
    assert json.loads((run / FIRST_COMMIT).read_text()) == {"iteration": 1}
    for path in (run / "lives").iterdir():
        path.unlink()  # the note alone says it, as after a kill
    shutil.rmtree(run / "checkpoints")
    lines = {name: (run / name).read_bytes() for name in ("metrics.jsonl", "eval.jsonl")}
    more = [*settings, "iterations=3"]
    start = starts.train(tmp_path, 1, more)
    assert start.wait() == [2]
    assert "first-checkpoint.json" in start.text() and "Traceback" not in start.text()
    assert {name: (run / name).read_bytes() for name in lines} == lines
    again = starts.train(tmp_path, 1, more, "--fresh")
    assert again.wait() == [0], again.text()
    assert "metrics.before-1.jsonl, eval.before-1.jsonl" in again.text()
    assert (run / "metrics.before-1.jsonl").read_bytes() == lines["metrics.jsonl"]
    assert [row["iteration"] for row in records(run)] == [1, 2, 3]
