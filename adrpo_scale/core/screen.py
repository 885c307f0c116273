"""Standard output and error of a command: a console that cannot be written ends nothing.

Inside `guarded()`, sys.stdout and sys.stderr never raise, and no control characters of other
people's text get through, which a terminal would obey. Characters that the terminal's encoding
lacks are written in ASCII; what a closed pipe, a full disk or a closed descriptor does not take is
left out, and `lost` tells why. Every writer is covered: print, rich, logging, warnings, progress
bars, and the code of users. Inside `unblocked()`, a reader that has stopped reading (a pager, a
terminal after Ctrl-S) does not hold up the process either.

Nothing heavy is imported here: it is the first thing that a command does.
"""

from __future__ import annotations

import codecs
import errno
import io
import os
import re
import select
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

from adrpo_scale.core.printable import printable

PATIENCE = 5.0  # seconds for a reader that has stopped reading, in `unblocked`
_PIECE = 4096  # bytes that a pipe takes at once (PIPE_BUF) when poll calls it writable
_PASSING = (errno.ENOSPC, errno.EDQUOT)  # a disk may have room again
_ASCII = dict(
    pair.split(" ", 1)
    for pair in ("… ...", "→ ->", "– -", "— -", "× x", "✓ +", "✗ x", "• *", "µ u", "│ |", "─ -")
)


def _in_ascii(error: UnicodeError) -> tuple[str | bytes, int]:
    """The error handler of encodings that lack a character, and of lone surrogates."""
    if not isinstance(error, UnicodeEncodeError):
        raise error
    text = error.object[error.start : error.end]
    written = "".join(_ASCII.get(c) or c.encode("ascii", "backslashreplace").decode() for c in text)
    return written, error.end


codecs.register_error("adrpo-screen", _in_ascii)

_COLOURS = re.compile(r"(\x1b\[[0-9;]*m)")
_MOVES = re.compile(r"(?:[\r\n]|\x1b\[A)*")  # what progress bars of libraries begin a piece with


class _Stream(io.TextIOWrapper):
    """A stream of printable text."""

    def write(self, text: str) -> int:
        own = _MOVES.match(text)
        begin = own.end() if own else 0
        return super().write(text[:begin] + printable(text[begin:]))

    @property
    def rich_proxied_file(self) -> _Coloured:
        """Where rich writes, also for other libraries, as typer does its errors."""
        return _Coloured(self)


class _Coloured:
    """The same stream for printable text with colours in it."""

    def __init__(self, stream: _Stream) -> None:
        self._stream = stream
        self.flush, self.fileno, self.isatty = stream.flush, stream.fileno, stream.isatty
        self.encoding = stream.encoding

    def write(self, text: str) -> int:
        parts = _COLOURS.split(text)
        parts[::2] = map(printable, parts[::2])
        return io.TextIOWrapper.write(self._stream, "".join(parts))

    @property
    def as_it_is(self) -> _AsItIs:
        """Where `core.console` writes: it has cleaned the texts between its own moves."""
        return _AsItIs(self._stream)


class _AsItIs(_Coloured):
    """The same stream for all that is written."""

    def write(self, text: str) -> int:
        return io.TextIOWrapper.write(self._stream, text)


class _Descriptor(io.RawIOBase):
    """A file descriptor whose writes never fail. lost: why something was not written, else None;
    waits: whether a write waits for a reader that has stopped reading."""

    def __init__(self, number: int, lost: str | None = None) -> None:
        self._number, self.lost = number, lost
        self.waits, self._skipped = True, 0

    def fileno(self) -> int:
        return self._number

    def writable(self) -> bool:
        return True

    def isatty(self) -> bool:
        return os.isatty(self._number)

    def write(self, data: Any) -> int:
        rest = memoryview(data).cast("B")
        size = len(rest)
        if self._skipped and self._takes(0.0):
            note = f"\n[{self._skipped} bytes of output were left out: nobody read them]\n"
            self._skipped = 0
            rest = memoryview(note.encode("ascii") + bytes(rest))
        try:
            while len(rest):
                if not self.waits and not self._takes(0.0 if self._skipped else PATIENCE):
                    self._skipped += len(rest)
                    break
                with suppress(BlockingIOError):  # a descriptor that others set to non-blocking
                    rest = rest[os.write(self._number, rest[:_PIECE]) :]
                    continue
                self._takes(PATIENCE)
        except OSError as error:
            self._lose(error)
        return size

    def _takes(self, seconds: float) -> bool:
        """Whether the descriptor can be written, or fails at once, within `seconds`."""
        poll = select.poll()
        poll.register(self._number, select.POLLOUT)
        return bool(poll.poll(1000 * seconds))

    def _lose(self, error: OSError) -> None:
        self.lost = self.lost or error.strerror or str(error)
        if error.errno not in _PASSING:
            # Others write there as well: libraries in C, processes started by this one.
            with suppress(OSError):
                null = os.open(os.devnull, os.O_WRONLY)
                os.dup2(null, self._number)
                os.close(null)


_guards: dict[str, _Descriptor] = {}  # by "stdout" and "stderr", while they are guarded
_noted: set[str] = set()


@contextmanager
def guarded() -> Iterator[None]:
    """Puts streams that never fail in the place of sys.stdout and sys.stderr, where these are the
    process's own: not inside a notebook, nor where something else has taken their place."""
    if _guards:
        yield
        return
    _fill_closed()
    before: dict[str, Any] = {}
    for number, name in ((1, "stdout"), (2, "stderr")):
        stream = getattr(sys, name)
        guard = _guard_of(stream, number)
        if guard is not None:
            before[name], _guards[name] = stream, guard
            setattr(sys, name, _text(guard, stream))
    try:
        yield
    finally:
        for name, stream in before.items():
            with suppress(OSError, ValueError):
                getattr(sys, name).flush()
            setattr(sys, name, stream)
        _guards.clear()
        _noted.clear()


def _fill_closed() -> None:
    """Opens /dev/null as every standard descriptor that is closed. Otherwise the next file that is
    opened, a checkpoint perhaps, would get its number, and what libraries print."""
    for number in (0, 1, 2):
        try:
            os.fstat(number)
        except OSError:
            null = os.open(os.devnull, os.O_RDWR)  # the lowest free number: this one
            os.set_inheritable(null, True)


def _guard_of(stream: Any, number: int) -> _Descriptor | None:
    if stream is None:  # closed when the process started
        return _Descriptor(os.open(os.devnull, os.O_WRONLY), "it is closed")
    try:
        if stream.fileno() != number:
            return None
    except (OSError, ValueError, AttributeError):
        return None
    guard = _Descriptor(number)
    try:
        stream.flush()
    except OSError as error:
        guard._lose(error)
    return guard


def _text(guard: _Descriptor, stream: Any) -> io.TextIOWrapper:
    encoding = getattr(stream, "encoding", None) or "utf-8"
    buffer = io.BufferedWriter(guard)
    return _Stream(buffer, encoding, errors="adrpo-screen", line_buffering=True)


@contextmanager
def unblocked() -> Iterator[None]:
    """Inside, a reader that has stopped reading is waited for once, for PATIENCE seconds; what is
    written until it reads again is left out."""
    for guard in _guards.values():
        guard.waits = False
    try:
        yield
    finally:
        for guard in _guards.values():
            guard.waits = True


def lost(name: str) -> str | None:
    """Why "stdout" or "stderr" did not take everything; None where it did."""
    guard = _guards.get(name)
    return None if guard is None else guard.lost


def newly_lost() -> list[tuple[str, str]]:
    """(name, why) of each stream that was lost since the last call."""
    new = [(name, guard.lost) for name, guard in _guards.items() if guard.lost]
    found = [(name, why) for name, why in new if name not in _noted and why is not None]
    _noted.update(name for name, _ in found)
    return found


def flush() -> None:
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError, ValueError, AttributeError):
            stream.flush()
