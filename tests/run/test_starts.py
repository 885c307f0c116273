"""The record of each start of a run, and the differences that it states between starts."""

from __future__ import annotations

import json
import os
import platform
import subprocess
from importlib.metadata import version

import pytest
import torch

from adrpo_scale.core import secrets
from adrpo_scale.run.starts import (
    PACKAGES,
    StartRecord,
    changes,
    code_commit,
    command_line,
    disagreements,
    driver_version,
    environment,
    last_command,
    previous_start,
    records,
)


def an_environment(host="a6000-03", gpu="NVIDIA RTX A6000", **facts):
    return {
        "host": host,
        "commit": "59503a935fc7e7cecb44f13436231d5b06a0617d",
        "versions": {"python": "3.11.7", "torch": "2.11.0"},
        "cuda": "12.8",
        "driver": "550.54.15",
        "gpu": gpu,
    } | facts


def begin(run, environments=None, **facts):
    given = {"launcher": "srun", "resumed_from": None, "changed_settings": []} | facts
    return StartRecord.begin(run, environments or [an_environment()], **given)


def read(run, name):
    return json.loads((run / "lives" / name).read_text())


def git(folder, *arguments):
    who = ["-c", "user.name=a", "-c", "user.email=a@b.example"]
    done = subprocess.run(
        ["git", "-C", folder, *who, *arguments], check=True, capture_output=True, text=True
    )
    return done.stdout.strip()


@pytest.fixture
def checkout(tmp_path):
    """A checkout of a project of our name."""
    root = tmp_path / "checkout"
    (root / "adrpo_scale").mkdir(parents=True)
    (root / "adrpo_scale" / "code.py").write_text("x = 1\n")
    (root / "pyproject.toml").write_text('[project]\nname = "adrpo_scale"\n')
    git(root.parent, "init", "--quiet", root)
    git(root, "add", ".")
    git(root, "commit", "--quiet", "--message", "first")
    return root


def test_environment_of_this_process():
    found = environment()
    assert found["host"] == platform.node()
    assert found["versions"].keys() == {"python", *PACKAGES}
    assert found["versions"]["python"] == platform.python_version()
    assert found["versions"]["torch"] == version("torch")
    assert found["cuda"] == torch.version.cuda
    assert found["gpu"] is None  # and asking has not started CUDA:
    assert not torch.cuda.is_initialized()
    json.dumps(found)


def test_commit_is_the_checkout_s_and_says_whether_the_package_was_edited(checkout, monkeypatch):
    head = git(checkout, "rev-parse", "HEAD")
    assert code_commit(checkout) == head
    (checkout / "runs").mkdir()
    (checkout / "runs" / "notes.txt").write_text("not code")
    assert code_commit(checkout) == head
    monkeypatch.setenv("GIT_DIR", "/nowhere")  # as a hook of another repository leaves it
    assert code_commit(checkout) == head
    (checkout / "adrpo_scale" / "new.py").write_text("y = 2\n")
    assert code_commit(checkout) == f"{head}+changes"


def test_commit_of_another_project_s_checkout_is_not_taken_for_ours(checkout, tmp_path):
    site_packages = checkout / ".venv" / "site-packages"
    site_packages.mkdir(parents=True)
    assert code_commit(site_packages) is None
    (checkout / "pyproject.toml").write_text('[project]\nname = "another"\n')
    assert code_commit(checkout) is None
    (checkout / "pyproject.toml").write_text("[")
    assert code_commit(checkout) is None
    (checkout / "pyproject.toml").unlink()
    assert code_commit(checkout) is None


def test_commit_is_unknown_where_git_cannot_say_it(checkout, monkeypatch):
    monkeypatch.setenv("PATH", "/nowhere")
    assert code_commit(checkout) is None


@pytest.mark.parametrize(
    "text, expected",
    [
        (
            "NVRM version: NVIDIA UNIX x86_64 Kernel Module  535.129.03  Thu Oct 19 18:56:32\n"
            "GCC version:  gcc version 11.4.0\n",
            "535.129.03",
        ),
        (
            "NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  550.54  Release Build\n",
            "550.54",
        ),
        ("something else", None),
    ],
)
def test_driver_version(tmp_path, text, expected):
    (tmp_path / "version").write_text(text)
    assert driver_version(tmp_path / "version") == expected
    assert driver_version(tmp_path / "nothing") is None


def test_record_of_a_start_from_its_beginning_to_its_end(tmp_path, monkeypatch):
    monkeypatch.setenv("SLURM_JOB_ID", "4711")
    monkeypatch.setenv("SLURM_RESTART_COUNT", "1")
    ranks = [an_environment(f"a6000-0{rank // 8}") for rank in range(16)]
    record = begin(tmp_path, ranks, resumed_from=120, changed_settings=["seed: 0 → 1"])
    content = read(tmp_path, "01.json")
    assert content == record.content
    assert (content["job_id"], content["restart_count"]) == ("4711", 1)
    assert (content["world_size"], content["hosts"]) == (16, 2)
    assert content["gpus"] == {"NVIDIA RTX A6000": 16}
    assert (content["launcher"], content["resumed_from"]) == ("srun", 120)
    assert content["changed_settings"] == ["seed: 0 → 1"]
    assert content["versions"]["torch"] == "2.11.0"
    assert content["disagreements"] == []
    assert "ended" not in content  # as of a start that was killed
    record.end("stopped by SIGUSR1", 85, 134, 12.5)
    ended = read(tmp_path, "01.json")
    assert ended.items() >= content.items()
    assert (ended["outcome"], ended["exit_code"]) == ("stopped by SIGUSR1", 85)
    assert (ended["iteration"], ended["seconds_from_signal"]) == (134, 12.5)


def test_starts_are_numbered_on_and_nothing_else_is_left_beside_them(tmp_path):
    for _ in range(2):
        begin(tmp_path)
    (tmp_path / "lives" / "01.json").unlink()  # the numbers of the others stay theirs
    begin(tmp_path)
    (tmp_path / "lives" / "100.json").write_text("{}")
    begin(tmp_path)
    names = [path.name for path in records(tmp_path)]
    assert names == ["02.json", "03.json", "100.json", "101.json"]
    assert sorted(os.listdir(tmp_path / "lives")) == sorted(names)


def test_filesystem_without_hard_links_numbers_on_too(tmp_path, monkeypatch):
    def no_links(source, target):
        raise PermissionError("Operation not permitted")

    monkeypatch.setattr(os, "link", no_links)
    for _ in range(2):
        begin(tmp_path)
    assert sorted(os.listdir(tmp_path / "lives")) == ["01.json", "02.json"]
    assert read(tmp_path, "02.json")["world_size"] == 1


def test_record_that_cannot_be_written_is_a_warning(tmp_path, caplog):
    (tmp_path / "lives").write_text("in the way")
    record = begin(tmp_path)
    record.end("done", 0, 10, None)
    assert record.content["outcome"] == "done"
    assert "record cannot be written" in caplog.text

    other = begin(tmp_path / "other")
    other.path = tmp_path / "lives" / "01.json"
    other.end("done", 0, 10, None)
    assert "the end of this start cannot be written" in caplog.text


def test_previous_start_is_the_newest_that_can_be_read(tmp_path):
    assert previous_start(tmp_path) is None
    begin(tmp_path, launcher="torchrun")
    for name, text in (("02.json", ""), ("03.json", "[]"), ("04.json", "{")):
        (tmp_path / "lives" / name).write_text(text)
    assert previous_start(tmp_path)["launcher"] == "torchrun"


def test_changes_between_two_starts_are_one_readable_line_each(tmp_path):
    before = begin(tmp_path, [an_environment(f"host-{rank // 8}") for rank in range(80)]).content
    assert changes(before, before) == []
    later = an_environment(
        commit="fa5ef6c2bde90582585c34f30cc362568edb2ea4+changes",
        versions={"python": "3.11.7", "torch": "2.15.0", "peft": "0.19.0"},
        cuda="13.0",
        driver=None,
    )
    ranks = [later | {"host": "a"}] * 8 + [later | {"host": "b", "gpu": "NVIDIA H200"}]
    assert changes(before, begin(tmp_path, ranks).content) == [
        "commit: 59503a935fc7 → fa5ef6c2bde9+changes",
        "torch: 2.11.0 → 2.15.0",
        "cuda: 12.8 → 13.0",
        "driver: 550.54.15 → none",
        "hosts: 10 → 2",
        "world_size: 80 → 9",
        "gpus: 80 × NVIDIA RTX A6000 → 1 × NVIDIA H200, 8 × NVIDIA RTX A6000",
        "peft: none → 0.19.0",
    ]


def test_ranks_that_disagree_are_named_by_host_and_value():
    ranks = [an_environment(f"a6000-{host:02}") for host in range(7) for _ in range(8)]
    assert disagreements(ranks) == []
    versions = {"python": "3.11.7", "torch": "2.15.0"}
    ranks += [an_environment("b", versions=versions, commit="0123456789abcdef")] * 2
    ranks += [an_environment("c", versions=versions, commit=None)]  # without git
    others = "a6000-00, a6000-01, a6000-02, a6000-03 and 3 more hosts"
    assert disagreements(ranks) == [
        f"commit: 0123456789ab on b, 59503a935fc7 on {others}",
        f"torch: 2.15.0 on b, c, 2.11.0 on {others}",
    ]


def test_a_record_has_the_command_that_a_shell_takes(tmp_path, monkeypatch):
    for name in ("_bare", "_forms"):
        monkeypatch.setattr(secrets, name, [])
    secret = secrets.keep("a-secret-of-many-letters")
    monkeypatch.setattr("sys.argv", ["/x/adrpo-scale", "train", "my runs/a.toml", secret])
    begin(tmp_path)
    assert last_command(tmp_path) == "adrpo-scale train 'my runs/a.toml' ***"
    started_by_torchrun = ["/x/adrpo_scale/__main__.py", "train", "a.toml"]
    assert command_line(started_by_torchrun) == "adrpo-scale train a.toml"
    assert command_line(["/x/pytest/__main__.py", "train"]) is command_line([]) is None
    (tmp_path / "lives" / "01.json").write_text("{}")  # of before
    assert last_command(tmp_path) is None
