"""Questions of MMAU and a server that answers them, for the tests of the benchmark."""

from __future__ import annotations

import json
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np

from adrpo_scale.core.types import Prompt
from adrpo_scale.evaluation.mmau.base import (
    MmauConfig,
    Question,
    load_benchmark,
)
from adrpo_scale.evaluation.mmau.endpoint import Endpoint, wav

CONFIG = Path(__file__).parents[2] / "configs" / "omni" / "mmau.toml"
KEY = "sk-very-secret"
ANIMALS = ("Cat", "Dog", "Big dog", "Rain")


def question(answer="Dog", choices=ANIMALS, task="sound", id="q", **row):
    prompt = Prompt(0, "?", {"id": id, "audio": "a.wav", "audio_folder": "."} | row)
    return Question(id, tuple(choices), answer, task, "kind", "easy", prompt)


# ---- data ----------------------------------------------------------------------------------------


def make_data(folder, count=12, seconds=0.2):
    """What `prepare mmau` writes: `count` questions, all of them about dogs, in blocks of tasks."""
    folder.mkdir(parents=True, exist_ok=True)
    samples = 0.5 * np.sin(np.arange(int(16_000 * seconds)) / 9)
    (folder / "clip.wav").write_bytes(wav(samples.astype(np.float32)))
    rows = [
        {
            "id": f"id-{n:02d}",
            "question": f"Question {n:02d}: which animal?",
            "choices": ["Cat", "Dog"],
            "answer": "Dog",
            "audio": "clip.wav",
            "task": ("sound", "music", "speech")[3 * n // count],
            "category": "Reasoning",
            "sub_category": "Animals" if n % 2 else "Pets",
            "difficulty": "hard" if n % 3 else "easy",
            "original": {"id": f"id-{n:02d}", "audio_id": "./mini/clip.wav", "answer": " Dog"},
        }
        for n in range(count)
    ]
    (folder / "mmau.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "report.json").write_text(json.dumps({"revision": "v05.15.25"}))
    return folder


def rewrite(folder, number, **changes):
    lines = (folder / "mmau.jsonl").read_text().splitlines()
    lines[number] = json.dumps(json.loads(lines[number]) | changes)
    (folder / "mmau.jsonl").write_text("\n".join(lines) + "\n")


# ---- a server ------------------------------------------------------------------------------------


def completion(text, finish="stop"):
    message = {"role": "assistant", "content": text}
    body = {"choices": [{"message": message, "finish_reason": finish}]}
    return 200, {}, json.dumps(body).encode()


DOG = completion("<think>Woof.</think><answer>Dog</answer>")
THOUGHT = completion(None, "length")  # and wrote nothing


class Server:
    """A real HTTP server. replies: by the question's number, what to say to its first, second, ...
    request: (status, headers, body), or a function that the request is given; DOG after these."""

    def __init__(self):
        self.replies, self.requests, self.keys, self.times = {}, [], [], []
        server = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self):
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                text = next(p["text"] for p in body["messages"][0]["content"] if "text" in p)
                number = int(text.split()[1].rstrip(":"))
                server.requests.append((number, self.path, body))
                server.keys.append(self.headers.get("Authorization"))
                server.times.append(time.monotonic())
                waiting = server.replies.get(number) or []
                reply = waiting.pop(0) if waiting else DOG
                status, headers, data = reply(self) if callable(reply) else reply
                self.send_response(status)
                for name, value in {**headers, "Content-Length": str(len(data))}.items():
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(data)

            def log_message(self, *_):
                pass

        class Quiet(ThreadingHTTPServer):
            daemon_threads = True

            def handle_error(self, *_):
                """A client that went away: what these tests are about."""

        self.http = Quiet(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.http.server_port}/v1"
        threading.Thread(target=self.http.serve_forever, args=(0.02,), daemon=True).start()

    @property
    def asked(self):
        return [number for number, _, _ in self.requests]


FAST = {"first_wait_seconds": 0.01, "timeout_seconds": 5.0, "attempts": 3, "at_once": 1}


def endpoint(data, **settings):
    config = MmauConfig(data=str(data), endpoint=FAST | settings)
    return Endpoint("a-model", config), load_benchmark(data, "think").questions


def fails(status, text="no", **headers):
    return status, {k.replace("_", "-"): v for k, v in headers.items()}, text.encode()
