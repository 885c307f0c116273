"""Commands that only print: a reader who leaves is no error, output that is lost is one."""

from __future__ import annotations

import contextlib
import os
import pty
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


WAITING = """
import sys
from adrpo_scale.cli import main as cli

def said(words, say=cli._say_what_takes_seconds):
    say(words)
    print("torch is imported:", "torch" in sys.modules, file=sys.stderr)

cli._say_what_takes_seconds = said
sys.argv = ["adrpo-scale", "config", sys.argv[1]]
try:
    cli.main()
except SystemExit:
    pass
heavy = {"transformers", "diffusers", "peft", "accelerate", "pyarrow", "deepspeed"}
print("imported:", sorted(heavy & sys.modules.keys()), file=sys.stderr)
"""


def test_the_first_line_comes_before_libraries_and_settings_need_few(tmp_path):
    """On a terminal of 80 columns, where the settings are lines and no table of narrow columns."""
    keyboard, terminal = pty.openpty()
    command = [sys.executable, "-c", WAITING, CONFIG[1]]
    environment = {**os.environ, "COLUMNS": "80", "TERM": "xterm"}
    started = subprocess.Popen(command, stdout=terminal, stderr=terminal, env=environment)
    os.close(terminal)
    text = b""
    with contextlib.suppress(OSError):
        while part := os.read(keyboard, 65536):
            text += part
    started.wait(240)
    lines = text.decode().splitlines()
    assert lines[:2] == [
        "adrpo-scale config: loading libraries, which takes seconds",
        "torch is imported: False",
    ]
    assert lines[-1] == "imported: []"
    assert "optimizer.updates = 2   (file)" in lines
    place = lines.index('algorithm.combine = "sum"   (default)')
    assert lines[place + 1].startswith("    combination of rewards")
    assert max(map(len, lines[3:])) <= 80


def test_help_goes_to_a_closed_pipe(tmp_path):
    reader, writer = os.pipe()
    os.close(reader)
    command = [sys.executable, "-m", "adrpo_scale", "--help"]
    done = subprocess.run(command, stdout=writer, stderr=subprocess.PIPE, timeout=240)
    assert (done.returncode, done.stderr) == (0, b"")
