"""The watchdog, in processes of their own: it ends the one that it is in."""

from __future__ import annotations

import signal
import subprocess
import sys
import textwrap
import time

from adrpo_scale.core import watchdog
from adrpo_scale.core.errors import STOPPED
from adrpo_scale.core.watchdog import Watchdog


def outcome(folder, body, seconds=0.5):
    """(exit code, standard error, stacks) of a process with such a watch."""
    script = f"""
        import sys, threading, time
        from pathlib import Path
        from adrpo_scale.core import watchdog
        def told(line):
            print("told:", line.split(":")[0])
        with watchdog.Watchdog(Path(sys.argv[1]), 7, {seconds}, told):
            {body}
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script), str(folder)],
        capture_output=True,
        text=True,
        timeout=240,
    )
    stacks = folder / "stacks/rank-0007.txt"
    return done, stacks.read_text() if stacks.exists() else ""


def test_a_process_that_hangs_writes_where_and_ends(tmp_path):
    body = "\n            ".join(
        [
            "def stuck_here():",
            "    time.sleep(99)",
            "with watchdog.phase('reward'):",
            "    stuck_here()",
        ]
    )
    done, stacks = outcome(tmp_path, body)
    assert done.returncode == STOPPED
    assert "rank 7 on " in done.stderr and "in reward (limits.hang_seconds = 0.5)" in done.stderr
    assert "stuck_here" in stacks and "in reward" in stacks
    assert "told: rank 7 on" in done.stdout


def test_the_end_comes_also_where_nothing_can_be_written(tmp_path):
    (tmp_path / "stacks").write_text("a file where the folder should be")
    done, _ = outcome(tmp_path, "time.sleep(99)")
    assert done.returncode == STOPPED and "in start" in done.stderr


def test_a_thread_that_never_lets_go_of_pythons_lock_is_ended_too(tmp_path):
    """As a broken driver does it: no Python code runs any more, not even the watchdog's."""
    body = "\n            ".join(
        [
            "import ctypes",
            "watchdog._BACKSTOP = 0.5",
            "time.sleep(0.3)  # until the alarm is set anew",
            "ctypes.PyDLL(None).sleep(99)",
        ]
    )
    done, _ = outcome(tmp_path, body)
    assert done.returncode == -signal.SIGALRM  # 142 to a shell: requeued
    assert 'File "<string>"' in done.stderr and "Current thread" in done.stderr


def test_progress_keeps_it_quiet(tmp_path):
    body = "[(time.sleep(.25), watchdog.beat()) for _ in range(24)]"
    done, stacks = outcome(tmp_path, body, seconds=5)
    assert (done.returncode, done.stderr, stacks) == (0, "", "")


def test_phases_are_named_from_the_inside_out(tmp_path):
    with Watchdog(tmp_path, 0, 60):
        with watchdog.phase("evaluation"), watchdog.phase("rollout"):
            assert watchdog.where() == "rollout"
        assert watchdog.where() == "start"
    begin = time.monotonic()
    with Watchdog(tmp_path, 0, 60):
        pass
    assert time.monotonic() - begin < 10  # it does not keep its process waiting
