"""Signals set a flag; safe points turn it into a stop."""

from __future__ import annotations

import os
import signal
import subprocess
import sys

import pytest

from adrpo_scale.core.errors import StopRequested
from adrpo_scale.core.preempt import Signals, Stop


def test_signals_set_a_flag_and_the_handlers_come_back():
    before = signal.getsignal(signal.SIGTERM)
    with Signals() as signals:
        stop = Stop(signals)
        stop.check()
        assert signals.seconds is None
        for number in (signal.SIGUSR1, signal.SIGTERM, signal.SIGTERM, signal.SIGINT):
            os.kill(os.getpid(), number)
        assert (signals.name, signals.count) == ("SIGUSR1", 4) and signals.seconds < 5
        with pytest.raises(StopRequested) as stopped:
            stop.check()
        assert stopped.value.saveable
    assert signal.getsignal(signal.SIGTERM) == before


def test_unfinished_updates_go_on_where_there_is_grace_and_end_where_there_is_none():
    with Signals() as signals:
        stop = Stop(signals, grace_seconds=100)
        stop.check_unfinished(1e9)  # nobody has asked
        os.kill(os.getpid(), signal.SIGTERM)
        stop.check_unfinished(90)
        with pytest.raises(StopRequested) as stopped:
            stop.check_unfinished(101)
        assert not stopped.value.saveable


def test_a_stop_that_would_take_longer_than_the_grace_is_said_once(caplog):
    stop = Stop(Signals(), grace_seconds=10)
    stop.warn_if_slow(5, 4)
    assert caplog.text == ""
    stop.warn_if_slow(5, 6)
    stop.warn_if_slow(5, 7)
    assert caplog.text.count("a stop may take 11 s") == 1 and "--signal=USR1@16" in caplog.text


TERMINAL = """
import os, pty, signal, sys, time
pid, master = pty.fork()
if pid == 0:
    from adrpo_scale.core.preempt import Signals
    with Signals() as signals:
        print("ready", flush=True)
        for _ in range(200):
            time.sleep(.05)
            if signals.count == 1:
                print("waits", flush=True)
    sys.exit(0)
out = b""
while b"ready" not in out:
    out += os.read(master, 100)
os.write(master, b"\\x03")
while b"waits" not in out:
    out += os.read(master, 100)
os.write(master, b"\\x03")
try:
    while True:
        out += os.read(master, 1000)
except OSError:
    pass
_, status = os.waitpid(pid, 0)
assert b"KeyboardInterrupt" in out, out
"""


def test_only_a_second_interrupt_on_a_terminal_ends_at_once():
    """On a real pseudo-terminal, by the key."""
    subprocess.run([sys.executable, "-c", TERMINAL], check=True, timeout=240)


HANG_UP = """
import os, pty, sys
reader, writer = os.pipe()
pid, master = pty.fork()
if pid == 0:
    import signal, time
    from adrpo_scale.core import screen
    from adrpo_scale.core.preempt import Signals
    was_ignored = sys.argv[1] == "nohup"  # whatever these tests were started with
    signal.signal(signal.SIGHUP, signal.SIG_IGN if was_ignored else signal.SIG_DFL)
    with screen.guarded(), Signals() as signals:
        print("ready")
        for _ in range(40):
            time.sleep(.05)
            if signals.name:
                break
        print("nobody sees this")
        os.write(writer, f"{signals.name} {screen.lost('stdout')}".encode())
    os._exit(0)
os.close(writer)
os.read(master, 100)
os.close(master)
told = os.read(reader, 1000).decode()
assert told == sys.argv[2], told
"""


@pytest.mark.parametrize(("how", "name"), [("plain", "SIGHUP"), ("nohup", "None")])
def test_a_terminal_that_is_closed_asks_for_a_stop_unless_nohup_was_given(how, name):
    told = f"{name} Input/output error"
    subprocess.run([sys.executable, "-c", HANG_UP, how, told], check=True, timeout=240)
