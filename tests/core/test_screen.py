"""Streams that never fail, in processes of their own: what stands behind them is real."""

from __future__ import annotations

import os
import pty
import subprocess
import sys
import textwrap
import time

import pytest

from adrpo_scale.core import screen


def process(body, around="screen.guarded()", encoding="utf-8", **options):
    """A process that runs `body` with its streams guarded, and ends with code 7."""
    script = f"""
        import os, subprocess, sys
        from adrpo_scale.core import screen
        screen.PATIENCE = .2
        with {around}:
{textwrap.indent(textwrap.dedent(body), " " * 12)}
        sys.exit(7)
    """
    return subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(script)],
        env=os.environ | {"PYTHONIOENCODING": encoding},
        encoding=encoding,
        **{"stdin": subprocess.DEVNULL, **options},
    )


def ended(body, around="screen.guarded()", **options):
    """(exit code, stdout, stderr) of such a process."""
    captured = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE} | options
    started = process(body, around, **captured)
    out, err = started.communicate(timeout=60)
    return started.returncode, out, err


def test_a_full_disk_behind_standard_output():
    body = """
        print("a line")
        sys.stdout.buffer.write(b"more")
        subprocess.run(["echo", "a child writes there, too"])
        print(screen.lost("stdout"), screen.newly_lost(), screen.newly_lost(), file=sys.stderr)
    """
    with open("/dev/full", "w") as full:
        code, _, err = ended(body, stdout=full)
    assert code == 7  # 120, where the interpreter's last flush fails
    assert "No space left on device [('stdout', 'No space left on device')] []" in err


def test_a_closed_pipe():
    body = """
        for line in range(20000):
            print("line", line)
        print(screen.lost("stdout"), screen.lost("stderr"), file=sys.stderr)
    """
    started = process(body, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert started.stdout.readline() == "line 0\n"
    started.stdout.close()
    err = started.stderr.read()
    assert started.wait(60) == 7
    assert err == "Broken pipe None\n"


@pytest.mark.parametrize("closed", [1, 2])
def test_a_closed_descriptor_is_not_given_to_the_next_file(closed, tmp_path):
    """What libraries in C print would otherwise be written into it: into a checkpoint, perhaps."""
    body = f"""
        with open({str(tmp_path / "file")!r}, "wb") as file:
            os.write({closed}, b"from a library")
            print("out"), print("err", file=sys.stderr)
        told = [sys.stderr, sys.stdout][{closed} - 1]
        print(screen.lost("stdout"), screen.lost("stderr"), file=told)
    """
    code, out, err = ended(body, preexec_fn=lambda: os.close(closed))
    assert code == 7
    assert (tmp_path / "file").read_bytes() == b""
    assert "it is closed" in out + err and "Traceback" not in out + err


@pytest.mark.parametrize(
    ("encoding", "shown"),
    [
        ("ascii", "0 -> 1... + \\u4e2d \\xe9 \\ud800"),
        ("latin-1", "0 -> 1... + \\u4e2d é \\ud800"),
        ("utf-8", "0 → 1… ✓ 中 é \\ud800"),
    ],
)
def test_characters_that_the_encoding_lacks(encoding, shown):
    body = r'print("0 \u2192 1\u2026 \u2713 \u4e2d \xe9 \ud800"); print("\u2713", file=sys.stderr)'
    code, out, err = ended(body, encoding=encoding)
    assert code == 7 and out == shown + "\n"
    assert err == ("✓\n" if encoding == "utf-8" else "+\n")


def test_a_reader_that_has_stopped_reading_is_waited_for_once():
    """As a pager does it: its pipe is full after 64 KiB."""
    body = """
        for line in range(5000):
            print("x" * 99)
        print("all done", file=sys.stderr, flush=True)
        sys.stdin.readline()
        print("the end")
    """
    around = "screen.guarded(), screen.unblocked()"
    pipes = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.PIPE)
    started = process(body, around, **pipes)
    begin = time.monotonic()
    assert started.stderr.readline() == "all done\n"
    assert time.monotonic() - begin < 30
    read = os.read(started.stdout.fileno(), 60000)
    out, _ = started.communicate("\n", timeout=60)
    assert started.returncode == 7 and len(read) + len(out) < 200_000
    assert "bytes of output were left out: nobody read them]\nthe end\n" in out


def test_a_pipe_that_others_have_set_to_non_blocking():
    """As a parent process does to its own end; a full pipe is then an error, not a pause."""
    body = """
        os.set_blocking(1, False)
        print("x" * 300_000)
        print("the end")
    """
    started = process(body, stdout=subprocess.PIPE)
    time.sleep(0.5)  # the pipe is full
    out, _ = started.communicate(timeout=60)
    assert started.returncode == 7
    assert out == "x" * 300_000 + "\nthe end\n"


def test_a_terminal_that_is_stopped_holds_up_nothing():
    """Ctrl-S on a terminal stops its output; the first write after it would wait for Ctrl-Q."""
    body = """
        print("before")
        sys.stdin.readline()
        print("after")
        sys.stderr.write("done")
    """
    keyboard, terminal = pty.openpty()
    around = "screen.guarded(), screen.unblocked()"
    started = process(body, around, stdin=subprocess.PIPE, stdout=terminal, stderr=subprocess.PIPE)
    assert b"before" in os.read(keyboard, 100)
    os.write(keyboard, b"\x13")  # Ctrl-S
    assert started.communicate("\n", timeout=60)[1] == "done"
    assert started.returncode == 7
    os.close(keyboard), os.close(terminal)


def test_streams_of_somebody_else_stay(capsys):
    before = sys.stdout, sys.stderr
    with screen.guarded():
        assert (sys.stdout, sys.stderr) == before
        print("captured")
    assert capsys.readouterr().out == "captured\n"
