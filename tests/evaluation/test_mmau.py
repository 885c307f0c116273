"""The MMAU evaluation: its rules of judging, its files, and endpoints as they misbehave."""

from __future__ import annotations

import base64
import io
import json
import math
import os
import threading
import time
import wave
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from adrpo_scale.cli import main as cli
from adrpo_scale.core.errors import ConfigError, EndpointError, PromptError, RunFolderError
from adrpo_scale.core.folder_lock import RunLock
from adrpo_scale.core.types import Prompt
from adrpo_scale.data.clips import read_clip
from adrpo_scale.data.prepare.mmau import MmauOptions, prepare_mmau
from adrpo_scale.evaluation.mmau import evaluate, local, predictions
from adrpo_scale.evaluation.mmau.base import (
    PAPER,
    Answer,
    MmauConfig,
    PublishedRow,
    Question,
    evenly,
    load_benchmark,
)
from adrpo_scale.evaluation.mmau.endpoint import Endpoint, answer_of, retry_after, wav
from adrpo_scale.evaluation.mmau.judging import benchmark_match, judge, submitted, tallies
from adrpo_scale.evaluation.mmau.tables import NO_PAPER, main_table, page
from adrpo_scale.run import train as running
from adrpo_scale.run.load import LoadedConfig
from adrpo_scale.run.registry import DOMAINS
from tests.support.ranks import forkserver, run_ranks
from tests.support.sounds import cut, write_audio
from tests.support.tiny_audio import audio_config, save_clip, save_thinker
from tests.support.tiny_text import text_config

CONFIG = Path(__file__).parents[2] / "configs" / "omni" / "mmau.toml"
KEY = "sk-very-secret"
ANIMALS = ("Cat", "Dog", "Big dog", "Rain")


def question(answer="Dog", choices=ANIMALS, task="sound", id="q", **row):
    prompt = Prompt(0, "?", {"id": id, "audio": "a.wav", "audio_folder": "."} | row)
    return Question(id, tuple(choices), answer, task, "kind", "easy", prompt)


# ---- judgements ------------------------------------------------------------------------------

# (prediction, answer, choices): strict, strict without a tag too, the benchmark's, parsed
RULES = [
    ("<answer>Dog</answer>", "Dog", ANIMALS, (1, 1, 1, 1)),
    ("<think>A cat?\nNo, rain.</think>\n<answer>\ndog.\n</answer>", "Dog", ANIMALS, (1, 1, 1, 1)),
    ("Dog", "Dog", ANIMALS, (0, 1, 1, 1)),  # no tag
    ("<answer>B</answer>", "Dog", ANIMALS, (1, 1, 0, 1)),  # a letter alone
    ("(B)", "Dog", ANIMALS, (0, 1, 0, 1)),
    ("<answer>(B) Dog</answer>", "Dog", ANIMALS, (1, 1, 1, 1)),
    ("<answer>Rain</answer>", "Dog", ANIMALS, (0, 0, 0, 1)),
    ("<answer>Rain</answer> then <answer>Dog</answer>", "Dog", ANIMALS, (1, 1, 1, 1)),
    # An option inside another: its words stand there, and one that only the other has.
    ("<answer>Big dog</answer>", "Dog", ANIMALS, (0, 0, 0, 1)),
    ("<answer>Dog</answer>", "Big dog", ANIMALS, (0, 0, 0, 1)),
    # The wrong option has the right one's words and no others: right by the benchmark's rule.
    ("<answer>dog dog</answer>", "Dog", ("Dog", "Dog dog"), (0, 0, 1, 1)),
    ("<answer>piano, violin</answer>", "violin, piano", ("violin, piano", "piano, violin"),
     (0, 0, 1, 1)),
    # In a sentence: the benchmark's rule takes it, unless another option has a word of it.
    ("The answer is Dog.", "Dog", ANIMALS, (0, 0, 1, 0)),
    ("<answer>The answer is dog</answer>", "Dog", ("Dog", "The cat"), (0, 0, 0, 0)),
    # Both options: a word of the wrong one.
    ("<answer>Dog or Cat</answer>", "Dog", ANIMALS, (0, 0, 0, 0)),
    # Options that stand there twice, right and wrong.
    ("<answer>D</answer>", "six", ("one", "six", "two", "six"), (1, 1, 0, 1)),
    ("<answer>six</answer>", "six", ("one", "six", "two", "six"), (1, 1, 1, 1)),
    ("<answer>A</answer>", "six", ("one", "six", "one"), (0, 0, 0, 1)),
    # Options that are letters.
    ("<answer>D</answer>", "D", ("G", "A#", "D", "E"), (1, 1, 1, 1)),
    ("<answer>A#</answer>", "A#", ("A", "A#"), (1, 1, 1, 1)),
    ("<answer>A</answer>", "A#", ("A", "A#"), (0, 0, 1, 1)),  # the benchmark drops the "#"
    ("", "Dog", ANIMALS, (0, 0, 0, 0)),
    ("<answer> </answer>", "Dog", ANIMALS, (0, 0, 0, 0)),
    ("...", "Dog", ANIMALS, (0, 0, 0, 0)),
    ("<answer>Dog", "Dog", ANIMALS, (0, 0, 1, 0)),  # cut off; "answer" is no option's word
]  # fmt: skip


@pytest.mark.parametrize(("prediction", "answer", "choices", "expected"), RULES)
def test_the_rules(prediction, answer, choices, expected):
    found = judge(question(answer, choices), Answer(prediction))
    assert (
        found.strict,
        found.strict_untagged,
        found.benchmark,
        not found.is_unparsed,
    ) == tuple(map(bool, expected))


def test_the_benchmarks_rule_counts_words_without_case_and_needs_all_of_them():
    assert benchmark_match("A LOUD dog!", "loud dog", ["loud dog", "cat"])
    assert not benchmark_match("dog", "loud dog", ["loud dog", "cat"])
    assert benchmark_match("1.63 seconds", "1.63 seconds", ["1.63 seconds", "2.74 seconds"])
    assert not benchmark_match("", "", ["", "x"])  # no word is never right
    assert benchmark_match("dog", "dog", ["dog", "Dog"])  # a choice of the same words is not wrong


def test_reasoning_is_not_handed_in():
    assert submitted("<think>Cat?</think><answer>\nDog\n</answer>") == "Dog"
    assert submitted(" no tag ") == "no tag"


def test_tallies_by_task_difficulty_and_sub_category():
    asked = [question(task=task, id=str(n)) for n, task in enumerate(["sound"] * 3 + ["music"] * 2)]
    texts = ["<answer>Dog</answer>", "Dog", None, "<answer>what?</answer>", "<answer>Cat</answer>"]
    answers = [None if text is None else Answer(text, text == "Dog") for text in texts]
    found = {t.subset: t.metrics for t in tallies(asked, list(map(judge, asked, answers)))}
    assert list(found) == ["sound", "music", "speech", "total", "difficulty:easy",
                           "sub_category:kind"]  # fmt: skip
    assert found["sound"]["strict"] == (1 / 3, 3)
    assert found["sound"]["strict_untagged"] == (2 / 3, 3)
    assert found["sound"]["benchmark"] == (1.0, 2)  # without a prediction: left out, as it does
    assert found["sound"]["cut_off"] == (1, 3) and found["music"]["cut_off"] == (0, 2)
    assert found["sound"]["unanswered"] == (1, 3) and found["sound"]["untagged"] == (1, 3)
    assert found["music"]["unparsed"] == (1, 2) and found["music"]["strict"] == (0.0, 2)
    assert math.isnan(found["speech"]["strict"][0]) and found["speech"]["strict"][1] == 0
    assert found["total"] == found["difficulty:easy"] == found["sub_category:kind"]
    assert found["total"]["strict"] == (1 / 5, 5) and found["total"]["benchmark"] == (2 / 4, 4)


def test_the_table_has_published_lines_where_the_config_has_them():
    asked = [question()]
    found = tallies(asked, [judge(asked[0], Answer("<answer>B</answer>", is_cut=True))])
    plain = main_table("mine", found, {})
    assert "| strict: the option inside `<answer>` | 100.00 | – | – | 100.00 |" in plain
    assert "| unparsed: names no option | 0 of 1 | 0 of 0 | 0 of 0 | 0 of 1 |" in plain
    assert (
        "| cut off: reached the limit of its length | 1 of 1 | 0 of 0 | 0 of 0 | 1 of 1 |" in plain
    )
    assert "paper" not in plain and "not shown" in NO_PAPER
    row = PublishedRow(sound=1.0, music=2.0, speech=3.0, total=2.5)  # not the paper's
    others = row.model_copy(update={"source": "a board"})
    lines = main_table("mine", found, {"theirs": row, "another": others}).splitlines()
    assert lines[-2] == "| paper, table 2: theirs | 1.00 | 2.00 | 3.00 | 2.50 |"
    assert lines[-1] == "| a board: another | 1.00 | 2.00 | 3.00 | 2.50 |"
    assert NO_PAPER not in page("", [], "mine", found, {"theirs": row})
    assert NO_PAPER in page("", [], "mine", found, {"another": others})


# ---- data ------------------------------------------------------------------------------------


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


def test_questions_are_worded_as_in_training_and_know_their_revision(tmp_path):
    data = make_data(tmp_path)
    found = load_benchmark(data, "think")
    assert len(found.questions) == 12 and found.revision == "v05.15.25" and len(found.sha256) == 64
    first = found.questions[0]
    assert first.prompt.text.startswith("Question 00: which animal?")
    assert "['Cat', 'Dog']" in first.prompt.text and "<think>" in first.prompt.text
    assert "<think>" not in load_benchmark(data, "answer").questions[0].prompt.text
    assert first.clip == ("clip.wav", data) and "audio_folder" not in first.row
    spread = evenly(found.questions, 3)
    assert [one.task for one in spread] == ["sound", "music", "speech"]
    assert evenly(found.questions, 99) == evenly(found.questions, None) == list(found.questions)


def test_the_shipped_config_has_no_figure_of_the_papers():
    config = evaluate.load_settings(CONFIG, [], None)
    assert config.variant == "think" and PAPER not in {
        row.source for row in config.published.values()
    }


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"task": "video"}, "task 'video'"),
        ({"id": "id-00"}, "one id"),
        ({"id": None}, "id None"),
        ({"original": None}, "original None, the benchmark's own row .*prepare mmau` again"),
    ],
)
def test_what_is_no_benchmark_is_refused(tmp_path, change, expected):
    data = make_data(tmp_path)
    rewrite(data, 1, **change)
    with pytest.raises(PromptError, match=expected):
        load_benchmark(data, "answer")


def test_a_folder_that_was_not_prepared_is_refused(tmp_path):
    with pytest.raises(PromptError, match="prepare mmau"):
        load_benchmark(tmp_path, "answer")


def test_what_prepare_writes_is_read(tmp_path):
    """With the benchmark's own names of files and keys."""
    theirs = {
        "id": "3fe6",
        "audio_id": "./test-mini-audios/3fe6.wav",
        "question": " Who speaks in the video? ",
        "choices": ["Man ", "Woman"],
        "answer": "Man ",
        "dataset": "AudioSet",
        "task": "speech",
        "split": "test-mini",
        "category": "Reasoning",
        "sub-category": "Acoustic Source Inference",
        "difficulty": "medium",
    }
    (tmp_path / "audio").mkdir()
    save_clip(tmp_path / "audio" / "3fe6.wav", 0.3, 0)
    (tmp_path / "mini.json").write_text(json.dumps([theirs]))
    options = MmauOptions(tmp_path / "mini.json", tmp_path / "audio", tmp_path / "out", "v05.15.25")
    prepare_mmau(options)
    found = load_benchmark(tmp_path / "out", "answer")
    (one,) = found.questions
    assert found.revision == "v05.15.25" and one.sub_category == theirs["sub-category"]
    (row,) = predictions.submission([one], {"3fe6": Answer("<answer>Man</answer>")})
    assert list(row.items()) == [
        *theirs.items(),
        ("model_prediction", "Man"),
        ("model_output", "Man"),
    ]
    assert judge(one, Answer("<answer>man</answer>")).strict and "original" not in one.row
    assert len(read_clip(*one.clip)) == 4800


# ---- a server ----------------------------------------------------------------------------------


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


@pytest.fixture
def server(monkeypatch):
    made = Server()
    monkeypatch.setenv("OPENAI_BASE_URL", made.url)
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    yield made
    made.http.shutdown()
    made.http.server_close()


FAST = {"first_wait_seconds": 0.01, "timeout_seconds": 5.0, "attempts": 3, "at_once": 1}


def endpoint(data, **settings):
    config = MmauConfig(data=str(data), endpoint=FAST | settings)
    return Endpoint("a-model", config), load_benchmark(data, "think").questions


def fails(status, text="no", **headers):
    return status, {k.replace("_", "-"): v for k, v in headers.items()}, text.encode()


# ---- the endpoint ------------------------------------------------------------------------------


def test_a_request_has_the_clip_as_wav_the_words_and_the_key(server, tmp_path):
    model, questions = endpoint(make_data(tmp_path), extra={"reasoning_effort": "low"})
    assert model.answers(questions[:1]) == [Answer("<think>Woof.</think><answer>Dog</answer>")]
    ((_, path, body),) = server.requests
    assert path == "/v1/chat/completions" and server.keys == [f"Bearer {KEY}"]
    assert body["model"] == "a-model" and body["temperature"] == 0 and body["max_tokens"] == 512
    assert body["reasoning_effort"] == "low"
    sound, text = body["messages"][0]["content"]
    assert text == {"type": "text", "text": questions[0].prompt.text}
    assert sound["type"] == "input_audio" and sound["input_audio"]["format"] == "wav"
    with wave.open(io.BytesIO(base64.b64decode(sound["input_audio"]["data"]))) as file:
        assert (file.getframerate(), file.getnchannels(), file.getnframes()) == (16_000, 1, 3200)
        heard = np.frombuffer(file.readframes(3200), "<i2") / 32767
    assert np.abs(heard - 0.5 * np.sin(np.arange(3200) / 9)).max() < 1e-4


def test_what_may_pass_is_tried_again(server, tmp_path):
    def hang_up(handler):
        handler.connection.close()
        raise ConnectionError

    server.replies = {
        0: [fails(500), fails(503)],
        1: [(200, {}, b"<html>"), (200, {}, b'{"choices": []}')],
        2: [completion(None), completion([{"type": "text"}])],
        3: [hang_up],
        4: [(200, {}, json.dumps({"choices": [{"message": {"refusal": "No."}}]}).encode())],
    }
    model, questions = endpoint(make_data(tmp_path))
    assert model.answers(questions[:5]) == [DOG_TEXT] * 4 + [Answer("No.")]
    assert server.asked == [0] * 3 + [1] * 3 + [2] * 3 + [3] * 2 + [4]


DOG_TEXT = answer_of(DOG[2])


def test_what_was_cut_off_is_an_answer_also_without_a_word(server, tmp_path, caplog):
    nothing = {"choices": [{"finish_reason": "length", "message": {"role": "assistant"}}]}
    server.replies = {
        0: [THOUGHT],
        1: [(200, {}, json.dumps(nothing).encode())],
        2: [completion("<think>Wo", "length")],
        3: [completion(None)],  # neither cut off nor a text: no answer
    }
    model, questions = endpoint(make_data(tmp_path))
    cut = [Answer("", True), Answer("", True), Answer("<think>Wo", True), DOG_TEXT]
    assert model.answers(questions[:4]) == cut
    assert server.asked == [0, 1, 2, 3, 3]
    assert "question id-01: no text" in caplog.text and "id-02" not in caplog.text


def test_fields_that_a_model_refuses_are_left_out(server, tmp_path):
    without = ["max_tokens", "temperature"]
    extra = {"max_completion_tokens": 99}
    model, questions = endpoint(make_data(tmp_path), without=without, extra=extra)
    model.answers(questions[:1])
    ((_, _, body),) = server.requests
    assert body.keys() == {"model", "messages", "max_completion_tokens"}


def test_retry_after_is_waited_for(server, tmp_path):
    server.replies = {0: [fails(429, Retry_After="1")]}
    model, questions = endpoint(make_data(tmp_path))
    assert model.answers(questions[:1]) == [DOG_TEXT]
    first, second = server.times
    assert 1.0 <= second - first < 3
    assert retry_after(None) == retry_after("soon") == retry_after("-3") == 0
    assert retry_after("2.5") == 2.5
    assert retry_after("Wed, 21 Oct 2015 07:28:00 GMT") == 0
    assert retry_after("Wed, 21 Oct 2065 07:28:00 GMT") > 1e8


def test_a_time_out_is_tried_again_and_given_up_for_this_question_alone(server, tmp_path, caplog):
    def sleeps(handler):
        time.sleep(0.6)
        return DOG

    server.replies = {0: [sleeps], 1: [sleeps, sleeps]}
    model, questions = endpoint(make_data(tmp_path), timeout_seconds=0.2, attempts=2)
    assert model.answers(questions[:3]) == [DOG_TEXT, None, DOG_TEXT]
    assert "question id-01: 2 tries;" in caplog.text and "timed out" in caplog.text


def test_what_one_question_cannot_get_does_not_stop_the_others(server, tmp_path, caplog):
    server.replies = {0: [fails(400, "too long")]}
    data = make_data(tmp_path)
    rewrite(data, 2, audio="gone.wav")
    model, questions = endpoint(data)
    assert model.answers(questions[:4]) == [None, DOG_TEXT, None, DOG_TEXT]
    assert server.asked == [0, 1, 3]
    assert "says 400: too long" in caplog.text and "gone.wav" in caplog.text


def test_a_refused_key_ends_it_at_once_and_is_not_repeated(server, tmp_path, caplog):
    server.replies = {0: [fails(401, f"Incorrect key: {KEY}")]}
    model, questions = endpoint(make_data(tmp_path))
    with pytest.raises(EndpointError, match=r"says 401: Incorrect key: \*\*\*") as error:
        model.answers(questions[:1])
    assert KEY not in str(error.value) + caplog.text and "OPENAI_API_KEY" in str(error.value)


def test_a_redirect_does_not_take_the_key_elsewhere(server, tmp_path):
    other = Server()
    server.replies = {0: [fails(302, Location=other.url + "/chat/completions")]}
    model, questions = endpoint(make_data(tmp_path))
    with pytest.raises(EndpointError, match="says 302"):
        model.answers(questions[:1])
    assert other.requests == []
    other.http.shutdown()
    other.http.server_close()


def test_an_endpoint_that_fails_on_and_on_is_given_up(server, tmp_path):
    server.replies = {n: [fails(422)] for n in range(12)}
    model, questions = endpoint(make_data(tmp_path), at_once=4)
    assert model.answers(questions[:4]) == [None] * 4
    with pytest.raises(EndpointError, match="8 questions in a row unanswered"):
        model.answers(questions[4:8])


def test_address_and_key_are_checked_before_anything_is_sent(tmp_path):
    config = MmauConfig(data="x")
    with pytest.raises(ConfigError, match="OPENAI_BASE_URL"):
        Endpoint("m", config, {"OPENAI_BASE_URL": "localhost:8000"})
    for base in (f"https://me:{KEY}@host/v1", f"https://host/v1?key={KEY}"):
        with pytest.raises(ConfigError, match="at host, has a user") as error:
            Endpoint("m", config, {"OPENAI_BASE_URL": base})
        assert KEY not in str(error.value)
    with pytest.raises(ConfigError, match="OPENAI_API_KEY is not set"):
        Endpoint("m", config, {}).answers([question()])


# ---- the command -------------------------------------------------------------------------------


def given(data, to, name="a-model", limit=None):
    fast = [f"endpoint.{key}={value}" for key, value in FAST.items()]
    return evaluate.EvaluateOptions(CONFIG, None, name, data, to, limit, overrides=fast)


def rows_of(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_an_evaluation_leaves_tables_and_what_the_benchmark_takes(server, tmp_path, capsys):
    data, to = make_data(tmp_path / "data"), tmp_path / "out"
    server.replies = {0: [completion("Dog")], 5: [completion("no idea")], 11: [completion("B")]}
    evaluate.evaluate(given(data, to))
    rows = rows_of(to / "eval.jsonl")
    keys = {"run", "algorithm", "seed", "iteration", "split", "metric", "value", "n"}
    assert all(row.keys() == keys for row in rows)
    found = {(row["split"], row["metric"]): (row["value"], row["n"]) for row in rows}
    assert found["mmau:sound", "strict"] == (0.75, 4)
    assert found["mmau:sound", "strict_untagged"] == (1.0, 4)
    assert found["mmau:total", "strict"] == (0.75, 12)
    assert found["mmau:total", "benchmark"] == (pytest.approx(10 / 12), 12)
    assert found["mmau:total", "unparsed"] == (1, 12)
    assert ("mmau:difficulty:easy", "strict") in found
    assert ("mmau:sub_category:Pets", "benchmark") in found

    handed_in = json.loads((to / "predictions.json").read_text())
    assert [row["id"] for row in handed_in] == [f"id-{n:02d}" for n in range(12)]
    assert handed_in[1]["model_prediction"] == handed_in[1]["model_output"] == "Dog"
    assert handed_in[1]["audio_id"] == "./mini/clip.wav" and handed_in[1]["answer"] == " Dog"
    assert handed_in[5]["model_output"] == "no idea"
    lines = rows_of(to / "questions.jsonl")
    assert lines[5]["prediction"] == "no idea" and lines[5]["named"] is None
    assert lines[11]["named"] == "dog" and not lines[11]["tagged"] and not lines[11]["strict"]
    table = (to / "table.md").read_text()
    assert "revision v05.15.25" in table and NO_PAPER in table
    assert "| strict: the option inside `<answer>` | 75.00 | 75.00 | 75.00 | 75.00 |" in table
    shown = capsys.readouterr().out
    assert "12 questions to a-model, 0 answered already" in shown and "75.00" in shown
    assert KEY not in shown + "".join(path.read_text() for path in to.iterdir())


def test_what_has_an_answer_is_not_asked_again(server, tmp_path, capsys):
    data, to = make_data(tmp_path / "data"), tmp_path / "out"
    evaluate.evaluate(given(data, to, limit=3))
    assert server.asked == [0, 4, 8]
    (to / "answers-007.jsonl").write_text('{"id": "id-01", "predic')  # a rank died while it wrote
    server.replies = {n: [fails(400)] for n in (1, 2)}
    evaluate.evaluate(given(data, to))
    assert sorted(server.asked[3:]) == [1, 2, 3, 5, 6, 7, 9, 10, 11]
    (row,) = [
        row
        for row in rows_of(to / "eval.jsonl")
        if (row["split"], row["metric"]) == ("mmau:total", "unanswered")
    ]
    assert row["value"] == 2
    evaluate.evaluate(given(data, to))
    assert server.asked[12:] == [1, 2]
    assert "nothing is asked" not in capsys.readouterr().out
    evaluate.evaluate(given(data, to))
    assert len(server.asked) == 14
    assert "nothing is asked: every question has its answer" in capsys.readouterr().out
    assert len(rows_of(to / "answers.jsonl")) == 12 and not list(to.glob("answers-*"))


def test_a_folder_holds_one_evaluation(server, tmp_path, monkeypatch):
    data, to = make_data(tmp_path / "data"), tmp_path / "out"
    evaluate.evaluate(given(data, to, limit=3))
    with pytest.raises(RunFolderError, match=r"model: 'a-model' → 'b-model'.*--to"):
        evaluate.evaluate(given(data, to, name="b-model"))
    with monkeypatch.context() as patched:  # another server, and a model of the same name
        patched.setenv("OPENAI_BASE_URL", "http://127.0.0.1:9/v1/")
        with pytest.raises(RunFolderError, match=rf"url: '{server.url}' → 'http://127.0.0.1:9/v1'"):
            evaluate.evaluate(given(data, to))
    rewrite(data, 0, question="Another one?")
    with pytest.raises(RunFolderError, match="questions_sha256"):
        evaluate.evaluate(given(data, to))


def test_one_evaluation_at_a_time_in_a_folder(server, tmp_path):
    data, to = make_data(tmp_path / "data"), tmp_path / "out"
    to.mkdir()
    with RunLock(to), pytest.raises(RunFolderError, match="is in use by"):
        evaluate.evaluate(given(data, to))
    assert server.asked == [] and list(to.iterdir()) == []
    evaluate.evaluate(given(data, to, limit=1))
    assert not (to / "lock.json").exists()


@pytest.mark.parametrize(("limit", "asked"), [(None, 8), (3, 3)])
def test_a_model_that_only_thinks_is_given_up_with_a_remedy(server, tmp_path, limit, asked):
    data, to = make_data(tmp_path / "data"), tmp_path / "out"
    server.replies = {n: [THOUGHT] for n in range(12)}
    remedy = rf"all of {asked} answers .*Raise max_new_tokens.*extra\.reasoning_effort.*--to"
    with pytest.raises(EndpointError, match=remedy):
        evaluate.evaluate(given(data, to, limit=limit))
    assert len(server.asked) == asked == len(rows_of(to / "answers.jsonl"))


def test_answers_that_were_cut_off_are_counted_and_old_ones_are_read(server, tmp_path):
    data, to = make_data(tmp_path / "data"), tmp_path / "out"
    server.replies = {n: [THOUGHT] for n in range(1, 12)} | {2: [completion("Do", "length")]}
    evaluate.evaluate(given(data, to))  # one of them has a text
    lines = rows_of(to / "questions.jsonl")
    assert [line["cut"] for line in lines] == [False] + [True] * 11
    assert lines[1]["prediction"] == "" and not lines[1]["benchmark"]
    assert "| cut off: reached the limit of its length | 3 of 4 |" in (to / "table.md").read_text()
    assert "| unanswered | 0 of 4 |" in (to / "table.md").read_text()
    old = [{"id": row["id"], "prediction": row["prediction"]} for row in lines]
    predictions.write_lines(to / "answers.jsonl", old)
    evaluate.evaluate(given(data, to))
    assert answers_in(to) == {row["id"]: row["prediction"] for row in lines}
    assert len(server.asked) == 12


def test_what_has_been_answered_with_a_text_is_no_model_that_only_thinks(server, tmp_path):
    data, to = make_data(tmp_path / "data"), tmp_path / "out"
    server.replies = {8: [fails(400), THOUGHT]}
    for _ in range(2):
        evaluate.evaluate(given(data, to, limit=3))
    assert server.asked == [0, 4, 8, 8]


def test_an_error_in_the_middle_keeps_the_answers_before_it(server, tmp_path):
    data, to = make_data(tmp_path / "data"), tmp_path / "out"
    server.replies = {3: [fails(401)]}
    with pytest.raises(EndpointError, match="401") as error:
        evaluate.evaluate(given(data, to))
    assert error.value.agreed and server.asked == [0, 1, 2, 3]
    assert len(rows_of(to / "answers.jsonl")) == 3 and (to / "table.md").is_file()


def test_a_missing_clip_is_named_and_its_question_counts_as_wrong(server, tmp_path, capsys):
    data, to = make_data(tmp_path / "data"), tmp_path / "out"
    rewrite(data, 2, audio="gone.wav")
    evaluate.evaluate(given(data, to))
    shown = capsys.readouterr().out
    assert "question id-02 is not asked" in shown and "gone.wav" in shown
    assert "questions without an answer: 1 (id-02);" in shown and 2 not in server.asked
    assert len(json.loads((to / "predictions.json").read_text())) == 11


def test_a_dry_run_sends_nothing(server, tmp_path, monkeypatch):
    monkeypatch.delenv("OPENAI_API_KEY")
    data = make_data(tmp_path / "data")
    rewrite(data, 2, audio="gone.wav")
    line = ["evaluate", str(CONFIG), "--endpoint", "a-model", "--data", str(data), "--dry-run"]
    answer = CliRunner().invoke(cli.app, line)
    assert answer.exit_code == 0, answer.output
    text = " ".join(answer.output.split())
    assert "12 questions to a-model, nothing sent: 2 s of audio, 0.1 MB of requests, 1 " in text
    assert server.requests == []
    model, questions = endpoint(data)
    found = model.dry_run(questions[:2])
    model.answers(questions[:2])
    sizes = [len(json.dumps(body)) for _, _, body in server.requests]
    assert found.request_bytes == sum(sizes) and found.seconds == pytest.approx(0.4)


def asks(url, data, to):
    os.environ |= {"OPENAI_BASE_URL": url, "OPENAI_API_KEY": KEY, "NO_PROXY": "127.0.0.1"}
    evaluate.evaluate(given(Path(data), Path(to)))


def test_a_killed_evaluation_goes_on_where_it_was(server, tmp_path):
    data, to = make_data(tmp_path / "data"), tmp_path / "out"
    reached = threading.Event()

    def stalls(_):
        reached.set()
        time.sleep(3)
        return DOG

    server.replies = {5: [stalls]}
    process = forkserver().Process(target=asks, args=(server.url, str(data), str(to)))
    process.start()
    assert reached.wait(120)
    process.kill()
    process.join()
    assert server.asked == [0, 1, 2, 3, 4, 5]
    evaluate.evaluate(given(data, to))
    assert server.asked[6:] == [5, 6, 7, 8, 9, 10, 11]
    assert len(rows_of(to / "questions.jsonl")) == 12


def ranked(rank, world, url, data, to):
    asks(url, data, to)
    return sorted(path.name for path in Path(to).iterdir() if path.name != "lock.json")


def test_two_processes_ask_every_question_once(server, tmp_path):
    data, to = make_data(tmp_path / "data", count=11), tmp_path / "out"
    first, second = run_ranks(ranked, 2, server.url, str(data), str(to), timeout=60)
    assert sorted(server.asked) == list(range(11))
    assert "table.md" in first and first == second
    assert [row["id"] for row in rows_of(to / "questions.jsonl")] == [
        f"id-{n:02d}" for n in range(11)
    ]
    assert all(row["strict"] for row in rows_of(to / "questions.jsonl"))


def fails_on_one_rank(rank, world, url, data, to):
    with pytest.raises(EndpointError, match="401"):
        asks(url, data, to)
    return True


def test_an_error_of_one_process_ends_all_and_keeps_the_others_answers(server, tmp_path):
    data, to = make_data(tmp_path / "data"), tmp_path / "out"
    server.replies = {7: [fails(401)]}  # the second of the second rank
    assert run_ranks(fails_on_one_rank, 2, server.url, str(data), str(to), timeout=60) == [True] * 2
    assert sorted(row["id"] for row in rows_of(to / "answers.jsonl")) == [
        f"id-{n:02d}" for n in range(7)
    ]


# ---- a model of our own --------------------------------------------------------------------------


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    """Where hashes of weights are remembered."""
    monkeypatch.setenv("ADRPO_CACHE", str(tmp_path / "cache"))


HEARS = ["max_new_tokens=8", "domain.chat.max_prompt_tokens=120", "engine.dtype=float32", "batch=3"]


def small_data(folder):
    """Clips of different length, one of them missing."""
    data = make_data(folder, count=5)
    for n, seconds in enumerate([0.3, 0.12, 0.5, 0.2]):
        save_clip(data / f"{n}.wav", seconds, n)
        rewrite(data, n, audio=f"{n}.wav")
    rewrite(data, 4, audio="gone.wav")
    return data


def of_model(model, data, to, *more):
    return evaluate.EvaluateOptions(
        CONFIG, model=str(model), data=data, to=to, overrides=[*HEARS, "variant=answer", *more]
    )


def answers_in(to):
    return {row["id"]: row["prediction"] for row in rows_of(to / "questions.jsonl")}


def test_a_model_answers_greedily_whatever_the_batch(tmp_path, capsys):
    model, data = save_thinker(tmp_path / "model"), small_data(tmp_path / "data")
    evaluate.evaluate(of_model(model, data, tmp_path / "three"))
    evaluate.evaluate(of_model(model, data, tmp_path / "one", "batch=1"))
    found = answers_in(tmp_path / "three")
    assert found == answers_in(tmp_path / "one")
    assert found.pop("id-04") is None and all(found.values()) and len(set(found.values())) > 1
    assert "question id-04 is not asked" in capsys.readouterr().out
    row = rows_of(tmp_path / "one" / "eval.jsonl")[0]
    assert (row["run"], row["algorithm"], row["seed"]) == (str(model), "none", None)
    save_thinker(model, seed=1)  # another export in the same place
    with pytest.raises(RunFolderError, match="weights: "):
        evaluate.evaluate(of_model(model, data, tmp_path / "three"))


def test_a_clip_that_does_not_decode_is_no_question_of_text(tmp_path, capsys, caplog):
    """Its header is whole; what a model says without hearing is not kept, and it is asked again."""
    model, data, to = (
        save_thinker(tmp_path / "model"),
        small_data(tmp_path / "data"),
        tmp_path / "o",
    )
    whole = write_audio(data / "2.flac", seconds=0.5).read_bytes()
    cut(data / "2.flac", 0.5)
    rewrite(data, 2, audio="2.flac")
    evaluate.evaluate(of_model(model, data, to))
    found = answers_in(to)
    assert [id for id, text in found.items() if text is None] == ["id-02", "id-04"]
    assert "questions without an answer: 2 (id-02, id-04);" in capsys.readouterr().out
    assert "question id-02 has no answer: its clip was not heard" in caplog.text
    assert "id-02" not in {row["id"] for row in rows_of(to / "answers.jsonl")}
    assert any(row["cut"] for row in rows_of(to / "questions.jsonl"))  # of 8 tokens
    (data / "2.flac").write_bytes(whole)
    evaluate.evaluate(of_model(model, data, to))
    assert answers_in(to)["id-02"]


def on_ranks(rank, world, run, data, to):
    os.environ["ADRPO_CACHE"] = str(Path(to).parent / "cache")
    evaluate.evaluate(of_model(run, Path(data), Path(to)))


def test_a_runs_checkpoint_answers_the_same_on_two_processes(tmp_path, monkeypatch):
    run, data = tmp_path / "run", small_data(tmp_path / "data")
    config = audio_config(tmp_path / "model", ["iterations=1"])
    running.train(LoadedConfig("small", config, {}), running.TrainOptions(run))
    evaluate.evaluate(of_model(run, data, None))
    here = run / "mmau-000001"
    row = rows_of(here / "eval.jsonl")[0]
    assert (row["run"], row["algorithm"], row["iteration"]) == ("run", "adrpo", 1)
    assert "# MMAU test-mini, revision v05.15.25: run@1" in (here / "table.md").read_text()
    run_ranks(on_ranks, 2, f"{run}@1", str(data), str(tmp_path / "two"), timeout=90)
    assert answers_in(tmp_path / "two") == answers_in(here)


def test_settings_of_the_evaluation_go_over_the_runs(tmp_path):
    config = MmauConfig(data="x", batch=7, domain={"evaluation": {"top_k": 5}})
    mine = local.with_settings(text_config(tmp_path / "model").sampling, config)
    assert (mine.domain.rollout_chunk, mine.domain.evaluation.top_k) == (7, 5)
    assert mine.domain.evaluation.max_new_tokens == 512


def test_models_that_do_not_hear_are_refused(tmp_path, monkeypatch):
    config = MmauConfig(data="x")
    with pytest.raises(ConfigError, match="of the domain 'flow', which hears nothing"):
        local.find_local("demo:image", config)
    with pytest.raises(ConfigError, match="'demo:text' is of type 'qwen3'"):
        local.find_local("demo:text", config)
    monkeypatch.delitem(DOMAINS.entries, "audio")
    with pytest.raises(ConfigError, match=r"no domain that hears .*--endpoint MODEL_NAME"):
        local.find_local("demo:image", config)


def test_help_has_an_example():
    answer = CliRunner().invoke(cli.app, ["evaluate", "--help"])
    assert answer.exit_code == 0 and "Example:" in answer.output


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ([], "name one of --model"),
        (["--model", "x", "--endpoint", "y"], "name one of --model"),
        (["--model", "x", "--dry-run"], "--dry-run tells what asking an endpoint"),
        (["--endpoint", "y", "--set", "variants=1"], "variants: Extra inputs"),
        (["--endpoint", "y", "--set", "variant=loud"], "variant: Input should be 'answer'"),
        (["--endpoint", "y", "--data", "/nowhere"], "prepare mmau"),
    ],
)
def test_wrong_options_are_refused_first(options, expected):
    with pytest.raises((ConfigError, PromptError), match=expected):
        raise CliRunner().invoke(cli.app, ["evaluate", str(CONFIG), *options]).exception


def test_answers_survive_odd_line_breaks(tmp_path):
    odd = "a\u2028b\n\x85<answer>B</answer>"
    predictions.begin(tmp_path, {"model": "m"})
    texts = {"q": Answer(odd, is_cut=True)}
    predictions.append(tmp_path, 0, texts)
    assert predictions.merge(tmp_path) == texts == predictions.begin(tmp_path, {"model": "m"})
    # What another node has written need not be seen yet.
    more = {"r": Answer("x")}
    assert predictions.merge(tmp_path, more) == texts | more
    assert predictions.merge(tmp_path) == texts | more
