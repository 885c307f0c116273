"""Processes that can be ended and begin at once: forks of a server that has imported what they use.

The run itself cannot be forked: it has threads, a GPU and sockets. Its server has none of these. It
forks a child when asked, and ends one; children end with the server, and the server with the run.
"""

from __future__ import annotations

import importlib
import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from multiprocessing.connection import Connection

from adrpo_scale.core.parent import end_with, hear_no_stop

_SCRIPT = (
    "import sys; sys.path[:] = {path!r}; "
    "from adrpo_scale.rewards.forks import serve; from {module} import {target}; "
    "serve({fd}, {target})"
)


class Server:
    """The server of this process. target: (module, function) that each child runs, with the file
    descriptors that it reads from and writes to."""

    def __init__(self, target: tuple[str, str]) -> None:
        self._socket, theirs = socket.socketpair()
        self._control = Connection(os.dup(self._socket.fileno()))
        fd, (module, function) = theirs.fileno(), target
        script = _SCRIPT.format(path=sys.path, module=module, target=function, fd=fd)
        self.process = subprocess.Popen(
            [sys.executable, "-c", script],
            stdin=subprocess.DEVNULL,
            pass_fds=(fd,),
            start_new_session=True,  # the terminal's Ctrl-C asks the run to stop, not it
        )
        theirs.close()
        self.owner = os.getpid()

    def is_there(self) -> bool:
        return self.owner == os.getpid() and self.process.poll() is None

    def preload(self, modules: Sequence[str]) -> None:
        """Imports modules that children need; errors are theirs."""
        self._tell({"import": list(modules)})

    def start(self) -> Child:
        """One more child. Raises OSError where the server is gone."""
        reads, there = os.pipe()
        here, writes = os.pipe()
        try:
            self._tell({"start": True})
            socket.send_fds(self._socket, [b"."], [reads, writes])
        finally:
            os.close(reads)
            os.close(writes)
        to, answers = Connection(there, readable=False), Connection(here, writable=False)
        return Child(self, self._answer(), to, answers)

    def end(self, pid: int) -> int:
        """Ends a child; returns how it ended, a signal as a negative number."""
        try:
            self._tell({"end": pid})
            return self._answer()
        except (OSError, EOFError):
            return -signal.SIGKILL  # with the server

    def close(self) -> None:
        """Ends it with its children. A fork of this process has no part in it and ends nothing."""
        if self.owner == os.getpid():
            self._socket.close()
            self._control.close()
            self.process.kill()
            self.process.wait()

    def _tell(self, message: dict[str, object]) -> None:
        self._control.send_bytes(json.dumps(message).encode())

    def _answer(self) -> int:
        return int(json.loads(self._control.recv_bytes()))


class Child:
    """A child of the server: messages to it and from it."""

    def __init__(self, server: Server, pid: int, to: Connection, answers: Connection) -> None:
        self.pid, self.to, self.answers = pid, to, answers
        self._server = server

    def end(self) -> int:
        self.to.close()
        self.answers.close()
        return self._server.end(self.pid)


def serve(fd: int, target: Callable[[int, int], None]) -> None:
    """Forks and ends children until the run closes the socket."""
    _follow(os.getppid())
    control, messages = socket.socket(fileno=fd), Connection(os.dup(fd))
    while True:
        try:
            message = json.loads(messages.recv_bytes())
        except (EOFError, OSError):
            return
        for module in message.get("import", ()):
            with suppress(Exception):
                importlib.import_module(module)
        if "start" in message:
            _, fds, _, _ = socket.recv_fds(control, 1, 2)
            pid = os.fork()
            if pid == 0:
                control.close()
                messages.close()
                _run(target, fds)
            for one in fds:
                os.close(one)
            messages.send_bytes(json.dumps(pid).encode())
        if "end" in message:
            messages.send_bytes(json.dumps(_ended(message["end"])).encode())


def _run(target: Callable[[int, int], None], fds: Sequence[int]) -> None:
    code = 1
    try:
        _follow(os.getppid())
        target(*fds)
        code = 0
    finally:
        os._exit(code)  # never back into the server's loop


def _ended(pid: int) -> int:
    with suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)  # nothing happens to one that has died already
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def _follow(parent: int) -> None:
    """Signals that stop the run are not for a child; a handler does nothing, because ignored ones
    would stay ignored in what a reward starts."""
    hear_no_stop(lambda *_: None)
    end_with(parent)
