"""Messages over a socket between two processes of one machine: JSON, bytes, and open files.

A message is a header of twelve bytes (the lengths of what follows, little endian), JSON, and bytes
that the JSON describes. Nothing that is read can name code. Files travel as descriptors.
"""

from __future__ import annotations

import json
import socket
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

_HEAD = struct.Struct("<IQ")
_FILES = 1  # at most, of a message


@dataclass(frozen=True)
class Message:
    """content: of the JSON. payload: the bytes. files: descriptors, which the receiver closes."""

    content: dict[str, Any]
    payload: bytes = b""
    files: tuple[int, ...] = ()


class Channel:
    """One end of a connected Unix stream socket. Its timeout is that of every operation."""

    def __init__(self, connected: socket.socket) -> None:
        self.socket = connected

    def send(
        self, content: Mapping[str, Any], payload: bytes = b"", files: Sequence[int] = ()
    ) -> None:
        """Raises OSError where the other end is gone, TimeoutError where it does not read."""
        text = json.dumps(content, allow_nan=False).encode()
        head = _HEAD.pack(len(text), len(payload))
        sent = socket.send_fds(self.socket, [head], files) if files else 0
        self.socket.sendall(head[sent:] + text)
        self.socket.sendall(payload)

    def receive(self) -> Message:
        """The next message. Raises EOFError where the other end has closed, OSError where it is
        gone, TimeoutError where nothing comes."""
        head, files = self._head()
        text, payload = (bytes(self._exactly(count)) for count in _HEAD.unpack(head))
        return Message(json.loads(text), payload, files)

    def _head(self) -> tuple[bytes, tuple[int, ...]]:
        head, files, _, _ = socket.recv_fds(self.socket, _HEAD.size, _FILES)
        if not head:
            raise EOFError("the other end has closed the socket")
        return head + bytes(self._exactly(_HEAD.size - len(head))), tuple(files)

    def _exactly(self, count: int) -> bytearray:
        found = bytearray(count)
        rest = memoryview(found)
        while rest:
            got = self.socket.recv_into(rest)
            if not got:
                raise EOFError("the other end has closed the socket inside a message")
            rest = rest[got:]
        return found
