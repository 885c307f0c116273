"""Names that somebody wrote for files and folders, and that the system refuses, or that have no
end: one error at each place that takes one."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from adrpo_scale.checkpoint.inspect import inspect
from adrpo_scale.checkpoint.locate import open_checkpoint
from adrpo_scale.cli import main as cli
from adrpo_scale.core.errors import AdrpoError, ConfigError, PromptError
from adrpo_scale.core.paths import read_given, resolve_path, usual_path
from adrpo_scale.data import formats
from adrpo_scale.data.prompts import load_prompts
from adrpo_scale.hub.lock import find_here
from adrpo_scale.hub.needs import HubNeed
from adrpo_scale.run.build import build_domain
from tests.support.tiny_text import text_config

ODD = ["a" * 300, "a/" * 2500, "a\0b"]


@pytest.mark.parametrize("name", ODD)
@pytest.mark.parametrize(
    "take",
    [
        usual_path,
        resolve_path,
        load_prompts,
        lambda name: load_prompts(f"{name}:train"),
        open_checkpoint,
        lambda name: open_checkpoint(f"{name}@3"),
        inspect,
        lambda name: find_here(HubNeed(name)),
    ],
)
def test_a_name_that_the_system_refuses_is_one_error(take, name):
    with pytest.raises(AdrpoError) as error:
        take(name)
    assert "cannot be a path here (" in str(error.value) and len(str(error.value)) < 400


def test_names_that_need_not_exist_are_paths(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "file").touch()
    for name in ("gone", "~/file", "~/file/below", "~nobody_of_that_name/x", "~~"):
        assert usual_path(name) == Path(os.path.expanduser(name))


def test_a_file_that_has_no_end_is_not_read(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "large").write_bytes(bytes(11))
    for path in (tmp_path / "pipe", Path("/dev/zero"), tmp_path / "large", tmp_path):
        with pytest.raises(OSError):
            read_given(path, 10)
    (tmp_path / "pipe").rename(tmp_path / "pipe.txt")
    with pytest.raises(PromptError, match=r"cannot read this prompt file .*no regular file"):
        load_prompts(tmp_path / "pipe.txt")
    reader, writer = os.pipe()
    os.write(writer, b"a red fox")
    os.close(writer)
    assert read_given(Path(f"/dev/fd/{reader}"), 10) == b"a red fox"
    os.close(reader)


def test_a_folder_without_an_end_is_no_dataset(tmp_path, monkeypatch):
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "rows.jsonl").write_text('{"prompt": "a red fox"}\n')
    monkeypatch.setattr(formats, "MOST_NAMES", 2)
    assert [prompt.text for prompt in load_prompts(tmp_path)] == ["a red fox"]
    (tmp_path / "b").touch()
    with pytest.raises(PromptError, match="more than 2 files and folders; name the folder of"):
        load_prompts(tmp_path)


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("gone.jinja", "no such file; name a Jinja file"),
        (".", "no regular file"),
        ("/dev/zero", "no regular file"),
        ("/proc/self/mem", "Input/output error"),
        ("latin.jinja", "can't decode"),
        ("a" * 300, "cannot be a path here (File name too long)"),
    ],
)
def test_a_template_file_that_cannot_be_read_is_one_error(tmp_path, monkeypatch, name, said):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "latin.jinja").write_bytes(b"\xff\xfe")
    config = text_config(tmp_path / "model", [f"domain.chat.template_file={name}"])
    with pytest.raises(ConfigError) as error:
        build_domain(config)
    assert said in str(error.value)


@pytest.mark.parametrize(
    "words",
    [
        ["status", "a" * 300],
        ["report", "a" * 300],
        ["plan", "a" * 300],
        ["train", "configs/demo/image_adrpo.toml", "--run-dir", "a" * 300],
        ["sample", "demo:image", "--prompts", "a" * 300, "--to", "x"],
        ["prepare", "avqa", "--rows", "a/" * 2500, "--to", "x"],
    ],
)
def test_a_command_refuses_such_names(monkeypatch, capsys, words):
    monkeypatch.setattr("sys.argv", ["adrpo-scale", *words])
    assert cli._run() == 2
    said = capsys.readouterr().err
    assert said.startswith("error: ") and said.count("\n") == 1 and len(said) < 400
