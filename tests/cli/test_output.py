"""Commands that only print: a reader who leaves is no error, output that is lost is one."""

from __future__ import annotations

import os
import subprocess
import sys

from tests.support.starts import Started
from tests.support.tiny import CONFIGS

CONFIG = ["config", str(CONFIGS / "demo" / "image_adrpo.toml")]


def nobody_reads(rank):
    reader, writer = os.pipe()
    os.close(reader)
    os.dup2(writer, 1)


def full_disk(rank):
    os.dup2(os.open("/dev/full", os.O_WRONLY), 1)


def old_terminal(rank):
    sys.stdout.reconfigure(encoding="latin-1")


def ended(folder, prepare, arguments=CONFIG):
    start = Started(folder, 1, arguments, prepare=prepare)
    return start.wait()[0], start.output().read_bytes().decode("latin-1")


def test_a_closed_pipe_ends_a_command_that_prints_quietly(tmp_path):
    assert ended(tmp_path, nobody_reads) == (0, "")


def test_a_closed_pipe_leaves_the_exit_code_of_a_fault(tmp_path):
    code, shown = ended(tmp_path, nobody_reads, ["config", "nowhere.toml"])
    assert code == 2 and shown.startswith("error: config nowhere.toml is not there")


def test_output_that_a_full_disk_does_not_take_is_an_error(tmp_path):
    code, shown = ended(tmp_path, full_disk)
    assert code == 2
    message = "error: the output cannot be written: No space left on device; send it elsewhere\n"
    assert shown == message


def test_a_latin_1_terminal_shows_tables(tmp_path):
    code, shown = ended(tmp_path, old_terminal)
    assert code == 0 and "optimizer.updates" in shown and "Traceback" not in shown


def test_help_goes_to_a_closed_pipe(tmp_path):
    reader, writer = os.pipe()
    os.close(reader)
    command = [sys.executable, "-m", "adrpo_scale", "--help"]
    done = subprocess.run(command, stdout=writer, stderr=subprocess.PIPE, timeout=240)
    assert (done.returncode, done.stderr) == (0, b"")
