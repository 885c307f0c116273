"""The watchdog, in processes of their own: it ends the one that it is in."""

from __future__ import annotations

import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest

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
    assert "rank-0007.txt; a reward that may take longer wants a time_limit" in done.stderr
    assert "told: rank 7 on" in done.stdout


def test_the_end_comes_also_where_nothing_can_be_written(tmp_path):
    (tmp_path / "stacks").write_text("a file where the folder should be")
    done, _ = outcome(tmp_path, "time.sleep(99)")
    assert done.returncode == STOPPED and "in start" in done.stderr


ALIVE = ["watchdog._BACKSTOP = 0.5", "import ctypes, os, signal, subprocess"]


def lines(*body):
    return "\n            ".join(body)


def script(folder, *body, seconds=0.5):
    """As `outcome`, with the guard's seconds short from the beginning."""
    first = [f"watch = watchdog.Watchdog(Path(sys.argv[1]), 7, {seconds})", "with watch:"]
    text = "\n".join(
        ["import sys, time", "from pathlib import Path", "from adrpo_scale.core import watchdog"]
        + [*ALIVE, *first]
        + [f"    {line}" for line in body]
    )
    command = [sys.executable, "-c", text, str(folder)]
    return subprocess.run(command, capture_output=True, text=True, timeout=240)


def test_a_thread_that_never_lets_go_of_pythons_lock_is_ended_too(tmp_path):
    """As a broken driver does it: no Python code runs any more, not even the watchdog's."""
    done = script(tmp_path, "ctypes.PyDLL(None).sleep(99)")
    assert done.returncode == -signal.SIGVTALRM  # 154 to a shell: requeued
    assert 'File "<string>"' in done.stderr and "Current thread" in done.stderr


def test_a_time_limit_by_the_kernels_timer_and_the_watch_do_not_meet(tmp_path):
    """Math-verify's limit is an alarm: the watch must neither stop it nor be stopped by it."""
    limit = [
        "def told(*_): raise TimeoutError",
        "signal.signal(signal.SIGALRM, told)",
        "signal.alarm(1)",
        "try: time.sleep(99)",
        "except TimeoutError: print('in time', flush=True)",
        "watchdog.beat()",
    ]
    done = script(tmp_path, *limit, seconds=60)
    assert (done.returncode, done.stdout) == (0, "in time\n")
    endless = ["signal.signal(signal.SIGALRM, lambda *_: None)", "signal.alarm(1)"]
    lock = "lock = ctypes.create_string_buffer(64)"  # taken twice, which no signal interrupts
    stuck = "for _ in range(2): ctypes.PyDLL(None).pthread_mutex_lock(lock)"
    done = script(tmp_path, *endless, lock, stuck)
    assert done.returncode == -signal.SIGVTALRM


@pytest.mark.slow
def test_a_process_that_has_taken_the_signal_is_killed(tmp_path):
    body = ["signal.signal(signal.SIGVTALRM, lambda *_: None)"]
    lock = "lock = ctypes.create_string_buffer(64)"
    stuck = "for _ in range(2): ctypes.PyDLL(None).pthread_mutex_lock(lock)"
    done = script(tmp_path, *body, lock, stuck, seconds=2)
    assert done.returncode == -signal.SIGKILL


def test_a_killed_guard_is_replaced_and_none_is_left_behind(tmp_path):
    body = [
        "find = ['pgrep', '-P', str(os.getpid()), '-f', 'getppid']",
        "def guards(): return subprocess.run(find, capture_output=True, text=True).stdout.split()",
        "(first,) = guards()",
        "os.kill(int(first), signal.SIGKILL)",
        "end = time.monotonic() + 60",
        "while guards() in ([first], []) and time.monotonic() < end: time.sleep(.1)",
        "(second,) = guards()",
    ]
    done = script(tmp_path, *body, "print(second != first, second)", seconds=8)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("True ")
    assert not Path(f"/proc/{done.stdout.split()[1]}").exists()


def test_who_waits_for_others_with_a_time_limit_may_wait_longer(tmp_path):
    body = lines("with watchdog.patience(30):", "    time.sleep(2)", "time.sleep(99)")
    done, _ = outcome(tmp_path, body)
    assert done.returncode == STOPPED
    assert 0.5 < float(done.stderr.split("no progress for ")[1].split()[0]) < 2


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
