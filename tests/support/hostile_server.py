"""A server that answers HTTP requests with raw bytes: slow, endless, deep, or no HTTP at all."""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from collections.abc import Callable, Iterator

Answer = Callable[[socket.socket], None] | bytes

OK = b"HTTP/1.1 200 OK\r\n"
PAUSE = 0.05  # seconds between drops; each is a wait that a client's own timeout would forgive


def with_length(body: bytes, status: bytes = OK) -> bytes:
    return status + b"Content-Length: %d\r\n\r\n" % len(body) + body


def drips(begin: bytes, drop: bytes) -> Answer:
    """Sends `begin`, then `drop` again and again, for a minute or until the client goes."""

    def answer(client: socket.socket) -> None:
        client.sendall(begin)
        end = time.monotonic() + 60
        while time.monotonic() < end:
            client.sendall(drop)
            time.sleep(PAUSE)

    return answer


def floods(begin: bytes, piece: bytes) -> Answer:
    """Sends `begin`, then `piece` without an end, as fast as the client reads."""

    def answer(client: socket.socket) -> None:
        client.sendall(begin)
        while True:
            client.sendall(piece)

    return answer


class HostileServer:
    """answers: to the first, second, ... connection; the last one to all further ones. reads:
    whether it reads the request first."""

    def __init__(self, *answers: Answer, reads: bool = True) -> None:
        self.answers, self.count, self._reads = answers, 0, reads
        self._socket = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._socket.getsockname()[1]}/v1"
        self._lock = threading.Lock()
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self) -> None:
        with contextlib.suppress(OSError):  # closed
            while True:
                client, _ = self._socket.accept()
                threading.Thread(target=self._answer, args=(client,), daemon=True).start()

    def _answer(self, client: socket.socket) -> None:
        with client, contextlib.suppress(OSError, ValueError):
            if self._reads:
                _read_request(client)
            with self._lock:
                answer = self.answers[min(self.count, len(self.answers) - 1)]
                self.count += 1
            if callable(answer):
                answer(client)
            else:
                client.sendall(answer)

    def close(self) -> None:
        self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()


def _read_request(client: socket.socket) -> None:
    with client.makefile("rb") as file:
        length = 0
        while line := file.readline().strip():
            name, _, value = line.partition(b":")
            length = int(value) if name.lower() == b"content-length" else length
        file.read(length)


@contextlib.contextmanager
def hostile_server(*answers: Answer, reads: bool = True) -> Iterator[HostileServer]:
    server = HostileServer(*answers, reads=reads)
    try:
        yield server
    finally:
        server.close()
