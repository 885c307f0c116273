"""MMAU asked of an endpoint: what is sent, tried again and given up."""

from __future__ import annotations

import base64
import io
import json
import threading
import wave

import numpy as np
import pytest

from adrpo_scale.core.chat_endpoint import Answer, answer_of
from adrpo_scale.core.errors import ConfigError, EndpointError
from adrpo_scale.core.posting import retry_after
from adrpo_scale.evaluation.mmau.base import (
    MmauConfig,
)
from adrpo_scale.evaluation.mmau.endpoint import Endpoint
from tests.support.mmau import (
    DOG,
    KEY,
    THOUGHT,
    Server,
    completion,
    endpoint,
    fails,
    make_data,
    question,
    rewrite,
)


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
    assert 1.0 <= second - first < 30
    assert retry_after(None) == retry_after("soon") == retry_after("-3") == 0
    assert retry_after("2.5") == 2.5
    assert retry_after("Wed, 21 Oct 2015 07:28:00 GMT") == 0
    assert retry_after("Wed, 21 Oct 2065 07:28:00 GMT") > 1e8


def test_a_time_out_is_tried_again_and_given_up_for_this_question_alone(server, tmp_path, caplog):
    given_up = threading.Event()

    def sleeps(handler):
        given_up.wait(60)
        return DOG

    server.replies = {0: [sleeps], 1: [sleeps, sleeps]}
    model, questions = endpoint(make_data(tmp_path), timeout_seconds=1.0, attempts=2)
    assert model.answers(questions[:3]) == [DOG_TEXT, None, DOG_TEXT]
    given_up.set()
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
        with pytest.raises(ConfigError, match="at host, holds a user") as error:
            Endpoint("m", config, {"OPENAI_BASE_URL": base})
        assert KEY not in str(error.value)
    with pytest.raises(ConfigError, match="OPENAI_API_KEY is not set"):
        Endpoint("m", config, {}).answers([question()])


@pytest.mark.parametrize("status", [400, 401, 429, 500, 200])
@pytest.mark.parametrize("before", [0, 290, 296, 299, 65530])
def test_a_key_that_an_answer_repeats_is_not_shown(server, tmp_path, caplog, status, before):
    """Nor half of it, where a long text is cut in its middle."""
    said = "x" * before + KEY + " is wrong"
    reply = (200, {}, said.encode()) if status == 200 else fails(status, said)
    server.replies = {0: [reply] * 3}
    model, questions = endpoint(make_data(tmp_path), attempts=2, first_wait_seconds=0.01)
    try:
        model.answers(questions[:1])
    except EndpointError as error:
        caplog.text_of_error = str(error)
    shown = caplog.text + getattr(caplog, "text_of_error", "")
    assert shown and KEY[:8] not in shown


def test_a_key_inside_an_answer_is_not_kept(server, tmp_path):
    server.replies = {0: [completion(f"Your key is {KEY}, I hear")]}
    model, questions = endpoint(make_data(tmp_path))
    assert model.answers(questions[:1]) == [Answer("Your key is ***, I hear")]


def test_a_key_with_a_line_end_is_refused_before_anything_is_sent(server, tmp_path, monkeypatch):
    with pytest.raises(ConfigError, match="OPENAI_API_KEY holds a line end") as error:
        Endpoint("a", MmauConfig(data=str(tmp_path)), {"OPENAI_API_KEY": f"{KEY}\n"})
    assert KEY not in str(error.value) and not server.requests
