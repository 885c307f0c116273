"""A signal while C code holds the main thread, where no handler of Python's runs."""

from __future__ import annotations

import os
import signal
import subprocess
import sys

from adrpo_scale.core.errors import STOPPED
from adrpo_scale.core.leaving import Leaving
from adrpo_scale.core.signals import Signals

STUCK = """
import ctypes, sys
from adrpo_scale.core.leaving import Leaving
from adrpo_scale.core.signals import Signals

with Signals(), Leaving(0.1) as leaving:
    leaving.acts += [lambda *_: print("second"), lambda name, _: print(name)]
    leaving.acts += [lambda *_: 1 / 0, lambda *_: sys.stdout.flush()]
    leaving.acts[:0] = [lambda *_: sys.stdout.flush()]
    print("ready", flush=True)
    lock = ctypes.create_string_buffer(64)
    for _ in range(2):  # the second waits for the first, and no signal interrupts that
        ctypes.CDLL(None).pthread_mutex_lock(lock)
"""


def test_c_code_that_does_not_return_is_left() -> None:
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    with subprocess.Popen([sys.executable, "-c", STUCK], **pipes) as process:
        assert process.stdout.readline() == "ready\n"
        process.send_signal(signal.SIGWINCH)  # of a terminal: it asks for nothing
        process.send_signal(signal.SIGTERM)
        said, errors = process.communicate(timeout=120)
    assert process.returncode == STOPPED, errors
    assert said == "SIGTERM\nsecond\n" and "SIGTERM: stopped" in errors


def test_a_signal_that_is_answered_in_time_ends_nothing() -> None:
    before = signal.set_wakeup_fd(-1)
    signal.set_wakeup_fd(before)
    with Signals() as signals, Leaving(60.0) as leaving:
        os.kill(os.getpid(), signal.SIGUSR1)
        leaving.over()
        assert signals.name == "SIGUSR1"
    assert signal.set_wakeup_fd(before) == before
    with Signals(), Leaving(0.0):
        pass
