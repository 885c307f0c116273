"""HTTP answers of a server that nobody vouches for, bounded in bytes and, as a whole, in time.

The timeout of `urllib` is that of one wait for the network. A server that sends a byte a second, or
whose headers or body have no end, would hold a client for ever and fill its memory. Here status
line, headers and body together have as long as one wait, and `LARGEST` bytes. Redirects are
refused: urllib would send the key to the other address.
"""

from __future__ import annotations

import http.client
import io
import math
import socket
import time
import urllib.request
from typing import Any

_PIECE = 1 << 16
LARGEST = 1 << 24  # bytes of an answer; one of 32,000 tokens has 200 KB


class _Bounded(io.RawIOBase):
    """What a socket receives from now on, within its timeout from now on."""

    def __init__(self, sock: socket.socket) -> None:
        self._sock, self._file = sock, sock.makefile("rb", buffering=0)
        self._seconds = sock.gettimeout() or math.inf
        self._end = time.monotonic() + self._seconds
        self._left = LARGEST

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int | None:
        seconds = self._end - time.monotonic()
        if seconds <= 0:
            raise TimeoutError(f"timed out: the answer is not whole after {self._seconds:g} s")
        if seconds < math.inf:
            self._sock.settimeout(seconds)
        count = self._file.readinto(buffer)
        self._left -= count or 0
        if self._left < 0:
            raise http.client.HTTPException(f"its answer has more than {LARGEST} bytes")
        return count

    def close(self) -> None:
        self._file.close()
        super().close()


class _Response(http.client.HTTPResponse):
    def __init__(self, sock: socket.socket, *args: Any, **options: Any) -> None:
        super().__init__(sock, *args, **options)
        self.fp.close()
        self.fp = io.BufferedReader(_Bounded(sock))


class _Connection(http.client.HTTPConnection):
    response_class = _Response


class _SecureConnection(http.client.HTTPSConnection):
    response_class = _Response


class _Http(urllib.request.HTTPHandler):
    def http_open(self, request: urllib.request.Request) -> http.client.HTTPResponse:
        return self.do_open(_Connection, request)


class _Https(urllib.request.HTTPSHandler):
    def https_open(self, request: urllib.request.Request) -> http.client.HTTPResponse:
        return self.do_open(_SecureConnection, request)


class _NoRedirects(urllib.request.HTTPRedirectHandler):
    def redirect_request(self, *_: Any) -> None:
        return None


def bounded_opener() -> urllib.request.OpenerDirector:
    """An opener whose answers are bounded. Reading one raises OSError (a time-out) or
    HTTPException; the timeout given to `open` is that of the whole answer."""
    return urllib.request.build_opener(_NoRedirects, _Http, _Https)


def read_body(response: Any, most: int | None = None) -> bytes:
    """The body of an answer, or its first `most` bytes or a few more. Raises as `bounded_opener`
    says."""
    parts, size = [], 0
    try:
        # In pieces: the library makes room for all bytes that the server has announced.
        while (most is None or size < most) and (part := response.read(_PIECE)):
            parts.append(part)
            size += len(part)
    except ValueError as error:  # a chunk of a negative size
        raise http.client.HTTPException(str(error)) from None
    return b"".join(parts)
