"""A small process beside a watched one, for the case that no Python code runs there any more.

A thread of the watched process cannot act while another holds Python's lock inside C code. A timer
of the kernel's could, but there is one of a kind, and other code sets it: a verifier's time limit
would switch the watch off, and the watch the time limit. So the guard is a process: it is told in
time, again and again, that Python runs, or sends the signal whose handler, C code too, writes the
stacks; its default action then ends the process. Where the signal does not help, SIGKILL does.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from contextlib import suppress

from adrpo_scale.core.errors import given

STACKS = signal.SIGVTALRM  # other libraries leave it alone; ends as code 154, which is requeued
_GRACE = 5.0  # seconds for the stacks to be written

# Half of the seconds at a time: a whole machine that was suspended goes on with a new half.
_SCRIPT = f"""
import os, select, signal, sys, time
for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGHUP):
    signal.signal(number, signal.SIG_IGN)
parent, half, silent = int(sys.argv[1]), float(sys.argv[2]) / 2, 0
while silent < 2:
    if not select.select([0], [], [], half)[0]:
        silent += 1
    elif os.read(0, 4096):
        silent = 0
    else:
        sys.exit()
for number in ({int(STACKS)}, {int(signal.SIGKILL)}):
    if os.getppid() == parent:
        os.kill(parent, number)
        time.sleep({_GRACE})
"""


class Guard:
    """Ends this process `seconds` after the last call of `tell`, or of its start."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._process = self._start()

    def _start(self) -> subprocess.Popen[bytes]:
        command = [sys.executable, "-I", "-S", "-c", _SCRIPT, str(os.getpid()), str(self._seconds)]
        return subprocess.Popen(
            command,
            bufsize=0,
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,  # who reads it would wait for the guard's end, too
            start_new_session=True,  # out of reach of the terminal's Ctrl-C
        )

    def tell(self) -> None:
        """Says that Python runs. A guard that somebody has killed is replaced."""
        try:
            given(self._process.stdin).write(b".")
        except OSError:
            self.close()
            self._process = self._start()

    def close(self) -> None:
        with suppress(OSError):
            given(self._process.stdin).close()
        try:
            self._process.wait(_GRACE)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
