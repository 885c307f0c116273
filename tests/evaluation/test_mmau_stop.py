"""A signal stops an evaluation of MMAU after the questions under way; the same command goes on."""

from __future__ import annotations

import json
import signal
import threading

from tests.support.mmau import CONFIG, DOG, FAST, KEY, make_data
from tests.support.starts import Started


def test_a_signal_stops_it_with_85_and_keeps_the_answers(server, tmp_path):
    data, to = make_data(tmp_path / "data"), tmp_path / "out"
    reached, told = threading.Barrier(3), threading.Event()

    def stalls(_):
        reached.wait(120)
        told.wait(120)
        return DOG

    server.replies = {1: [stalls], 7: [stalls]}  # the second question of each rank
    sets = [f"endpoint.{key}={value}" for key, value in FAST.items()] + [
        "endpoint.timeout_seconds=240"
    ]
    words = ["evaluate", str(CONFIG), "--endpoint", "a-model", "--data", str(data), "--to", str(to)]
    words += [word for text in sets for word in ("--set", text)]
    env = {"OPENAI_BASE_URL": server.url, "OPENAI_API_KEY": KEY, "NO_PROXY": "127.0.0.1"}
    first = Started(tmp_path / "first", 2, words, environment=env)
    reached.wait(120)
    first.signal(signal.SIGUSR1)
    first.signal(signal.SIGTERM)  # Slurm sends several
    told.set()
    assert first.wait(120, others=60) == [85, 85], first.text()
    assert sorted(server.asked) == [0, 1, 6, 7]
    kept = [json.loads(line)["id"] for line in (to / "answers.jsonl").read_text().splitlines()]
    assert sorted(kept) == ["id-00", "id-01", "id-06", "id-07"]
    second = Started(tmp_path / "second", 2, words, environment=env)
    assert second.wait(120) == [0, 0], second.text()
    assert sorted(server.asked[4:]) == [2, 3, 4, 5, 8, 9, 10, 11]
    assert "| strict: the option inside `<answer>` | 100.00 |" in (to / "table.md").read_text()
