"""Whether there is room, on small real disks and by real quota commands."""

from __future__ import annotations

import os
import resource
import subprocess
import time
from pathlib import Path

import pytest

from adrpo_scale.core import disk_space
from adrpo_scale.core.disk_space import Space, check_space, free_space, size_text
from adrpo_scale.core.errors import ConfigError, DiskSpaceError


@pytest.fixture
def disk(tmp_path):
    """A small disk of its own: 1 MiB, 20 files of which one is its folder."""
    folder = tmp_path / "disk"
    folder.mkdir()
    done = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=1m,nr_inodes=20", "tmpfs", folder],
        capture_output=True,
        text=True,
    )
    if done.returncode:
        pytest.skip(f"mounting is not permitted here: {done.stderr.strip()}")
    yield folder
    subprocess.run(["umount", "--lazy", folder], check=True)


@pytest.mark.parametrize(
    "count, text",
    [
        (0, "0 bytes"),
        (999, "999 bytes"),
        (1000, "1.0 kB"),
        (1_234_000_000, "1.2 GB"),
        (999_999, "1.0 MB"),
        (5e15, "5000.0 TB"),
    ],
)
def test_sizes_as_people_read_them(count, text):
    assert size_text(count) == text


def test_free_space_of_a_disk_counts_bytes_and_files(disk):
    assert free_space(disk) == Space(2**20, 19, "disk")
    (disk / "file").write_bytes(bytes(2**19))
    assert free_space(disk) == Space(2**19, 18, "disk")


def test_free_space_of_a_folder_that_does_not_exist_is_that_of_its_disk(disk, monkeypatch):
    monkeypatch.chdir(disk)
    assert (
        free_space(disk / "runs" / "mine") == free_space(disk.relative_to(disk)) == free_space(disk)
    )


def test_filesystem_that_does_not_count_files_sets_no_limit_to_them():
    assert os.statvfs("/proc").f_files == 0
    assert free_space(Path("/proc")).free_files is None


@pytest.mark.parametrize(
    "answer, space",
    [
        ("1000", Space(1000, 19, "quota")),
        ("1000 7", Space(1000, 7, "quota")),
        ("1000 900", Space(1000, 19, "quota")),
        (f"{10**15} 7", Space(2**20, 7, "disk")),
        ("-4096 -1", Space(0, 0, "quota")),  # over a soft limit
    ],
)
def test_of_disk_and_quota_the_smaller_counts(disk, answer, space):
    assert free_space(disk, f"echo {answer}") == space


def test_quota_command_is_told_a_folder_that_exists(tmp_path):
    command = f'test "$ADRPO_RUN_DIR" = "{tmp_path}" && echo 5'
    assert free_space(tmp_path / "checkpoints", command).free_bytes == 5


@pytest.mark.parametrize(
    "command, printed",
    [
        ("echo 12 GB", "12 GB"),
        ("true", "''"),
        ("echo 1 2 3", "1 2 3"),
        ("echo 5; exit 3", "exited with 3"),
        ("no-such-command-here", "not found"),
        ("echo ²", "²"),
        ("printf '%0500d' 0; echo x", "…"),
    ],
)
def test_quota_command_that_answers_something_else_is_quoted(tmp_path, command, printed):
    with pytest.raises(ConfigError) as caught:
        free_space(tmp_path, command)
    for part in ("checkpoint.quota_command", repr(command), printed, "expected the free bytes"):
        assert part in str(caught.value)


@pytest.mark.parametrize(
    ("command", "said"),
    [
        ("yes", "printed more than 10,000 bytes"),
        ("yes >&2", "printed more than 10,000 bytes"),
        ("cat /dev/zero", "printed more than 10,000 bytes"),
        ("head -c 20000 /dev/zero; echo 5", "printed more than 10,000 bytes"),
        ("echo " + "9" * 5000, "printed '9999"),
        ("# " + "x" * 3_000_000, "cannot be started"),
    ],
)
def test_quota_command_without_an_end_costs_little(tmp_path, command, said):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(ConfigError) as caught:
        free_space(tmp_path, command)
    assert said in str(caught.value) and len(str(caught.value)) < 1000
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 50_000  # kB
    left = subprocess.run(["pgrep", "-P", str(os.getpid()), "-x", "yes"], capture_output=True)
    assert left.stdout == b""


def test_quota_command_that_closes_its_output_and_goes_on_is_ended(tmp_path, monkeypatch):
    monkeypatch.setattr(disk_space, "QUOTA_SECONDS", 0.3)
    with pytest.raises(ConfigError, match=r"has not answered in 0\.3 s"):
        free_space(tmp_path, "echo 5; exec >&- 2>&-; sleep 60")


def test_quota_command_that_hangs_is_ended_with_all_that_it_started(tmp_path, monkeypatch):
    monkeypatch.setattr(disk_space, "QUOTA_SECONDS", 0.3)
    begin = time.monotonic()
    with pytest.raises(ConfigError, match=r"has not answered in 0\.3 s"):
        free_space(tmp_path, f"(sleep 60; touch {tmp_path}/later) | cat; echo 5")
    assert time.monotonic() - begin < 4
    left = subprocess.run(["pgrep", "-f", f"{tmp_path}/later"], capture_output=True, text=True)
    assert left.stdout == ""


@pytest.mark.parametrize(
    "needed, files, quota, parts",
    [
        (2**20 + 1, 1, None, ["1.0 MB, and 1.0 MB are free", "by the disk"]),
        (1, 20, None, ["20 files, and 19 more", "by the disk"]),
        (1001, 1, "echo 1000", ["1.0 kB, and 1.0 kB are free", "by the quota"]),
        (1, 8, "echo 1000 7", ["8 files, and 7 more", "by the quota"]),
    ],
)
def test_lack_of_room_names_the_limit_and_what_to_do(disk, needed, files, quota, parts):
    with pytest.raises(DiskSpaceError) as caught:
        check_space(disk, needed, files, quota, "checkpoint step-000120")
    for part in [*parts, "step-000120", "--run-dir", "checkpoint.keep_last", "Delete"]:
        assert part in str(caught.value)


def test_room_that_is_just_enough_is_enough(disk):
    check_space(disk, 2**20, 19, None, "a checkpoint")
    check_space(disk, 1000, 7, "echo 1000 7", "a checkpoint")
