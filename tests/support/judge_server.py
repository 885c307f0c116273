"""A server that judges samples, for the tests of rewards that ask one."""

from __future__ import annotations

import contextlib
import json
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

Reply = tuple[int, dict[str, str], bytes]
KEY = "sk-judges-secret"
QUICK = {"attempts": 2, "first_wait_seconds": 0.01, "timeout_seconds": 5.0}


def said(text: str | None, finish: str = "stop") -> Reply:
    """A chat completion."""
    choice = {"message": {"role": "assistant", "content": text}, "finish_reason": finish}
    return 200, {}, json.dumps({"choices": [choice]}).encode()


def scored(*scores: Any) -> Reply:
    return 200, {}, json.dumps({"scores": scores}).encode()


class JudgeServer:
    """answer: what it says to the JSON body of a request. most: requests under way at once, the
    largest number seen."""

    def __init__(self, answer: Callable[[dict[str, Any]], Reply]) -> None:
        self.bodies: list[dict[str, Any]] = []
        self.keys: list[str | None] = []
        self.paths: list[str] = []
        self.most = self._now = 0
        lock, server = threading.Lock(), self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                with lock:
                    server._now += 1
                    server.most = max(server.most, server._now)
                    server.bodies.append(body)
                    server.keys.append(self.headers.get("Authorization"))
                    server.paths.append(self.path)
                status, headers, data = answer(body)
                with lock:
                    server._now -= 1
                self.send_response(status)
                for name, value in {**headers, "Content-Length": str(len(data))}.items():
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(data)

            def log_message(self, *_: Any) -> None:
                pass

        class Quiet(ThreadingHTTPServer):
            daemon_threads = True

            def handle_error(self, *_: Any) -> None:
                """A client that went away: what these tests are about."""

        self._http = Quiet(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._http.server_port}/v1"
        threading.Thread(target=self._http.serve_forever, args=(0.02,), daemon=True).start()

    def close(self) -> None:
        """From now on nobody answers at the address."""
        self._http.shutdown()
        self._http.server_close()


@contextlib.contextmanager
def judge_server(answer: Callable[[dict[str, Any]], Reply]) -> Iterator[JudgeServer]:
    server = JudgeServer(answer)
    try:
        yield server
    finally:
        server.close()
