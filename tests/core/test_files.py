"""What a link, a FIFO or a device that somebody put in a file's place does to a writer: nothing."""

from __future__ import annotations

import os
import stat

import pytest

from adrpo_scale.core.caches import why_unwritable
from adrpo_scale.core.chat_endpoint import Answer
from adrpo_scale.core.file_hashes import write_cached
from adrpo_scale.core.files import own, remove_folder, replace_file, replace_json, write_durably
from adrpo_scale.core.tensor_files import TensorFileWriter
from adrpo_scale.core.watchdog import Watchdog
from adrpo_scale.evaluation.mmau import predictions
from adrpo_scale.training.metrics import MetricsLog, _LogFile
from tests.support.obstacles import OBSTACLES, Precious


@pytest.fixture
def precious(tmp_path):
    return Precious(tmp_path / "elsewhere")


def test_a_replaced_file_has_no_name_that_can_be_foreseen(tmp_path, precious):
    """A link under the name that temporary files had is not written through."""
    for name in ("config.json", "config.json.tmp"):
        (tmp_path / name).symlink_to(precious.file)
    replace_json(tmp_path / "config.json", {"a": 1})
    assert precious.is_whole() and not (tmp_path / "config.json").is_symlink()
    assert (tmp_path / "config.json").read_text() == '{\n  "a": 1\n}\n'
    assert sorted(os.listdir(tmp_path)) == ["config.json", "config.json.tmp", "elsewhere"]


@pytest.mark.parametrize("obstacle", OBSTACLES)
def test_no_writer_of_new_files_takes_what_has_the_name(tmp_path, precious, obstacle):
    OBSTACLES[obstacle](tmp_path / "x", precious)
    for write in (
        lambda: write_durably(tmp_path / "x", b"new"),
        lambda: TensorFileWriter(tmp_path / "x", []),
    ):
        with pytest.raises(FileExistsError):
            write()
    assert precious.is_whole()


@pytest.mark.parametrize("obstacle", OBSTACLES)
def test_what_is_written_in_one_step_takes_the_place_of_anything(tmp_path, precious, obstacle):
    OBSTACLES[obstacle](tmp_path / "x", precious)
    for write in (replace_file, write_cached):
        if obstacle == "a folder":
            with pytest.raises(IsADirectoryError):
                write(tmp_path / "x", b"new")
        else:
            write(tmp_path / "x", b"new")
            assert stat.S_ISREG(os.lstat(tmp_path / "x").st_mode)
            assert (tmp_path / "x").read_bytes() == b"new"
            (tmp_path / "x").unlink()
            OBSTACLES[obstacle](tmp_path / "x", precious)
        assert not list(tmp_path.glob("*.tmp"))
    assert precious.is_whole()


def appends_a_line(folder, name):
    with open(folder / name, "a", opener=own) as file:
        file.write("line")


APPENDERS = {
    "own": ("x", lambda folder: appends_a_line(folder, "x")),
    "metrics": (
        "metrics.jsonl",
        lambda folder: MetricsLog(folder, 1)._append("metrics.jsonl", [{"iteration": 1}]),
    ),
    "log": ("rank-000.log", lambda folder: _LogFile(folder / "rank-000.log", encoding="utf-8")),
    "answers": (
        "answers-000.jsonl",
        lambda folder: predictions.append(folder, 0, {"q": Answer("a", False)}),
    ),
}


@pytest.mark.parametrize("obstacle", [name for name in OBSTACLES if name != "a file"])
@pytest.mark.parametrize("name", APPENDERS)
def test_no_file_that_is_continued_is_a_link_or_waits(tmp_path, precious, name, obstacle):
    place, append = APPENDERS[name]
    OBSTACLES[obstacle](tmp_path / place, precious)
    with pytest.raises(Exception, match=r"link|regular|No such device|directory"):
        append(tmp_path)
    assert precious.is_whole()


def test_stacks_are_not_written_through_a_link(tmp_path, precious, capfd):
    (tmp_path / "stacks").mkdir()
    (tmp_path / "stacks" / "rank-0000.txt").symlink_to(precious.file)
    Watchdog(tmp_path, 0, 60.0)._tell("a line")
    assert precious.is_whole() and "a line" in capfd.readouterr().err


def test_a_folder_is_probed_with_a_name_of_its_own(tmp_path, precious):
    (tmp_path / f".adrpo-writable-{os.getpid()}").symlink_to(precious.file)
    assert why_unwritable(tmp_path) is None
    assert precious.is_whole() and len(os.listdir(tmp_path)) == 2


@pytest.mark.parametrize("obstacle", OBSTACLES)
def test_a_removal_takes_the_name_and_nothing_behind_it(tmp_path, precious, obstacle):
    for place in (tmp_path / "x", tmp_path / "folder" / "inner" / "x"):
        place.parent.mkdir(parents=True, exist_ok=True)
        OBSTACLES[obstacle](place, precious)
    remove_folder(tmp_path / "x")
    remove_folder(tmp_path / "folder")
    assert os.listdir(tmp_path) == ["elsewhere"] and precious.is_whole()
    remove_folder(tmp_path / "x")  # gone already
    remove_folder(tmp_path / "nowhere" / "x")


def test_a_removal_of_endless_folders_is_an_error_and_no_crash(tmp_path):
    deep = tmp_path / "x"
    for _ in range(70):
        deep = deep / "d"
    deep.mkdir(parents=True)
    with pytest.raises(OSError, match="too many folders in folders"):
        remove_folder(tmp_path / "x")
