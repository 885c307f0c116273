"""The trainer's side of a process that draws rollouts: starts it, asks it, and ends it.

One process a rank, on the rank's own GPU, in no process group with others. It ends with the
trainer, however that ends. Where it fails, dies or does not answer, the rank's error says so with
the last lines that it has printed.
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import threading
import weakref
from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

from torch import OutOfMemoryError, Tensor

from adrpo_scale.core import watchdog
from adrpo_scale.core.errors import GenerationError, given
from adrpo_scale.core.printable import printable
from adrpo_scale.domains.generation.channel import Channel
from adrpo_scale.domains.generation.environment import clean_environment
from adrpo_scale.domains.generation.weight_files import weight_files

_PACKAGE = Path(__file__).parents[2]
# This package alone, not what lies beside it: another environment has libraries of its own.
_SCRIPT = """
import importlib.util, sys
folder, descriptor, parent = sys.argv[1:]
spec = importlib.util.spec_from_file_location(
    "adrpo_scale", f"{folder}/__init__.py", submodule_search_locations=[folder]
)
sys.modules["adrpo_scale"] = importlib.util.module_from_spec(spec)
spec.loader.exec_module(sys.modules["adrpo_scale"])
from adrpo_scale.domains.generation.server import serve
serve(int(descriptor), int(parent))
"""
_LINES, _WIDTH = 20, 400  # of what it printed, in an error
_MARGIN = 60.0  # seconds by which the watchdog leaves the error to this module
_LOADING = 3.0  # factor on the time limit, for a start: it loads a model and compiles it
_GOODBYE = 5.0  # seconds for a process to end by itself


class GenerationProcess:
    """A process with one generator, built.

    name: for errors. generator: its class, as "module:class". settings: of its constructor, JSON.
    device: number of this rank's GPU, None without one. python: an interpreter that has the
    libraries; None: this one.

    Every method raises GenerationError where the process fails, is gone, or does not answer within
    the watchdog's time limit; torch.OutOfMemoryError where its memory ran out.
    """

    def __init__(
        self,
        name: str,
        generator: str,
        settings: Mapping[str, Any],
        device: int | None = None,
        python: str | None = None,
    ) -> None:
        self.name = name
        ours, theirs = socket.socketpair()
        self._channel = Channel(ours)
        place = [str(_PACKAGE), str(theirs.fileno()), str(os.getpid())]
        with theirs:
            self.process = subprocess.Popen(
                # -P: a folder in which a run is started is no place of libraries.
                [python or sys.executable, "-P", "-c", _SCRIPT, *place],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                env=clean_environment(device, same_python=python is None),
                pass_fds=(theirs.fileno(),),
                start_new_session=True,  # the terminal's Ctrl-C asks the run to stop, not it
            )
        self._said: deque[str] = deque(maxlen=_LINES)
        pipe = given(self.process.stdout)
        self._reader = threading.Thread(target=_keep, args=(pipe, self._said), daemon=True)
        self._reader.start()
        self.close = weakref.finalize(self, _end, self.process, ours, os.getpid())
        self._ask({"do": "build", "generator": generator, "settings": dict(settings)}, _LOADING)

    def load(self, weights: Iterable[tuple[str, Tensor]]) -> None:
        """Hands all weights over; the next file is written while the last one is read."""
        with self._limited(), self._named():
            written = False
            for file in weight_files(weights):
                if written:
                    self._answer()
                self._channel.send({"do": "load"}, files=[file])
                written = True
            if written:
                self._answer()
            self._channel.send({"do": "load"})
            self._answer()

    def generate(
        self, request: Mapping[str, Any], tensors: Mapping[str, Tensor]
    ) -> dict[str, Tensor]:
        """The answer of `Generator.generate`."""
        from safetensors.torch import load, save

        return load(self._ask({"do": "generate", **request}, payload=save(dict(tensors))))

    def rest(self) -> None:
        """See `Generator.rest`."""
        self._ask({"do": "rest"})

    def _ask(self, content: Mapping[str, Any], factor: float = 1.0, payload: bytes = b"") -> bytes:
        with self._limited(factor), self._named():
            self._channel.send(content, payload)
            return self._answer()

    def _answer(self) -> bytes:
        message = self._channel.receive()
        if "failed" in message.content:
            self._end_now()  # then all that it has printed is here
            raise self._failed(message.content)
        return message.payload

    @contextmanager
    def _limited(self, factor: float = 1.0) -> Iterator[None]:
        """A block in which no answer may take longer than the watchdog's limit, times `factor`. The
        watchdog lets this module act first."""
        limit = watchdog.limit()
        self._channel.socket.settimeout(None if limit is None else factor * limit)
        with watchdog.patience(0.0 if limit is None else (factor - 1) * limit + _MARGIN):
            yield

    @contextmanager
    def _named(self) -> Iterator[None]:
        """A block whose broken or silent socket is named. It leaves no process that is out of
        step."""
        try:
            yield
        except TimeoutError as error:
            limit = self._channel.socket.gettimeout()
            self._end_now()
            raise self._lost(
                f"has not answered for {limit:g} s (limits.hang_seconds; three times as long at a "
                "start)"
            ) from error
        except (EOFError, ConnectionError) as error:
            code = self._end_now(seconds=1.0)  # a socket closes before its process has ended
            if code < 0:
                raise self._lost(f"was ended by {_signal(-code)}") from error
            raise GenerationError(self._text(f"has ended with exit code {code}")) from error
        except BaseException:
            self._end_now()
            raise

    def _failed(self, told: Mapping[str, Any]) -> Exception:
        """The error for one in the process, of which it has told."""
        if told.get("memory"):
            return OutOfMemoryError(f"out of memory in {self.name}: {told['failed']}")
        if told.get("lost"):
            return self._lost(f"has lost its GPU: {told['failed']}")
        return GenerationError(self._text(f"has failed: {told['failed']}"))

    def _lost(self, what: str) -> GenerationError:
        return GenerationError(self._text(what), is_accident=True)

    def _text(self, what: str) -> str:
        self._reader.join(1.0)
        lines = "".join(f"\n  | {line}" for line in tuple(self._said))
        return f"{self.name}, process {self.process.pid} beside this rank, {what}" + (
            f"; its last lines:{lines}" if lines else "; it has printed nothing"
        )

    def _end_now(self, seconds: float = 0.0) -> int:
        """Ends the process, if it does not end by itself in time; returns its exit code, a signal
        as a negative number."""
        with suppress(subprocess.TimeoutExpired):
            self.process.wait(seconds)
        _kill(self.process)
        self.close()
        return self.process.returncode


def _end(process: subprocess.Popen[bytes], connected: socket.socket, owner: int) -> None:
    """A fork of the trainer has no part in the process and ends nothing."""
    if os.getpid() != owner:
        return
    connected.close()
    with suppress(subprocess.TimeoutExpired):
        process.wait(_GOODBYE)
    _kill(process)


def _kill(process: subprocess.Popen[bytes]) -> None:
    """With what it has started."""
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def _keep(pipe: IO[bytes], lines: deque[str]) -> None:
    """Keeps the last lines of a pipe, until all who write to it have ended."""
    with suppress(OSError, ValueError), pipe:
        while line := pipe.readline(1 << 16):
            text = printable(line.decode(errors="replace").rstrip())
            if text:
                lines.append(text[:_WIDTH])


def _signal(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"
