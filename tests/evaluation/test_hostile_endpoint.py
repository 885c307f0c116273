"""An endpoint that is slow, endless, deep or no endpoint at all costs one answer, not the rest."""

from __future__ import annotations

import json
import time

import pytest

from adrpo_scale.core import bounded_http
from adrpo_scale.core.chat_endpoint import Answer, answer_of
from adrpo_scale.core.errors import PromptError
from adrpo_scale.core.posting import retry_after
from adrpo_scale.data.prepare.mmau import MmauOptions, prepare_mmau
from adrpo_scale.evaluation.mmau import predictions
from adrpo_scale.evaluation.mmau.evaluate import EvaluateOptions, evaluate
from adrpo_scale.evaluation.mmau.judging import judge
from tests.support.hostile_server import OK, drips, floods, hostile_server, with_length
from tests.support.mmau import CONFIG, DOG, endpoint, make_data, question, rewrite

GOOD = with_length(DOG[2])
DOG_TEXT = answer_of(DOG[2])
CHUNKED = OK + b"Transfer-Encoding: chunked\r\n\r\n"


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return make_data(tmp_path_factory.mktemp("mmau"), count=3)


@pytest.fixture
def asked(data, monkeypatch):
    """Asks the first question once, then another one; returns (the answers, seconds)."""

    def ask(*answers, **settings):
        settings = {"attempts": 1, "timeout_seconds": 0.5} | settings
        with hostile_server(*answers, GOOD) as server:
            monkeypatch.setenv("OPENAI_BASE_URL", server.url)
            monkeypatch.setenv("NO_PROXY", "127.0.0.1")
            model, questions = endpoint(data, **settings)
            begin = time.monotonic()
            return model.answers(questions[:2]), time.monotonic() - begin

    return ask


SLOW = {
    "no status line": drips(b"", b"H"),
    "a status line without an end": drips(b"HTTP/1.1 200 ", b"O"),
    "headers without an end": drips(OK, b"X: y\r\n"),
    "one header without an end": drips(OK + b"X: ", b"y"),
    "continue for ever": drips(b"", b"HTTP/1.1 100 Continue\r\n\r\n"),
    "a body a byte at a time": drips(OK + b"Content-Length: 9999\r\n\r\n", b"{"),
    "a body of spaces without a length": drips(OK + b"\r\n", b" "),
    "chunks without an end": drips(CHUNKED, b"1\r\n \r\n"),
    "an error a byte at a time": drips(b"HTTP/1.1 500 No\r\nContent-Length: 9999\r\n\r\n", b"n"),
    "silence": drips(b"", b""),
}


@pytest.mark.parametrize("answer", SLOW.values(), ids=[*SLOW])
def test_the_time_of_an_answer_is_that_of_all_of_it(asked, answer, caplog):
    answers, seconds = asked(answer)
    assert answers == [None, DOG_TEXT]
    assert 0.4 < seconds < 30  # the server would go on for a minute
    assert "question id-00" in caplog.text


ENDLESS = {
    "a body": floods(OK + b"\r\n", b"x" * 65536),
    "a body with a length of its own": floods(
        OK + b"Content-Length: 999999999999999999\r\n\r\n", b"x" * 65536
    ),
    "chunks": floods(CHUNKED, b"10000\r\n" + b"x" * 65536 + b"\r\n"),
    "headers": floods(OK, b"X: " + b"y" * 60000 + b"\r\n"),
    "continue": floods(b"", b"HTTP/1.1 100 Continue\r\n\r\n" * 2000),
    "a line": floods(b"", b"x" * 65536),
}


@pytest.mark.parametrize("answer", ENDLESS.values(), ids=[*ENDLESS])
def test_an_answer_has_an_end(asked, answer, monkeypatch, caplog):
    monkeypatch.setattr(bounded_http, "LARGEST", 1 << 20)
    answers, _ = asked(answer, timeout_seconds=60.0)
    assert answers == [None, DOG_TEXT]
    assert "question id-00: 1 tries" in caplog.text


def completion_of(text: str) -> bytes:
    return with_length(b'{"choices": [{"message": {"content": "%s"}}]}' % text.encode())


WRONG = {
    "nothing": b"",
    "no HTTP": b"\x16\x03\x01\x02\x00\x01\x00",
    "a binary status line": b"HTTP/1.1 \xff\xfe\r\n\r\n",
    "a status that is no number": b"HTTP/1.1 2OO OK\r\n\r\n",
    "a negative length": OK + b"Content-Length: -5\r\n\r\n{}",
    "a length that is none": OK + b"Content-Length: many\r\n\r\n{}",
    "a chunk that is none": CHUNKED + b"zz\r\n{}\r\n0\r\n\r\n",
    "a negative chunk": CHUNKED + b"-5\r\n{}\r\n0\r\n\r\n",
    "a cut body": OK + b"Content-Length: 500\r\n\r\n{",
    "lists in lists": with_length(b"[" * 200_000),
    "objects in objects": with_length(b'{"a":' * 200_000),
    "a deep answer": with_length(b'{"choices": ' + b"[" * 90_000 + b"]" * 90_000 + b"}"),
    "a number of 5,000 digits": with_length(b'{"choices": ' + b"9" * 5000 + b"}"),
    "no number": with_length(b'{"choices": NaN}'),
    "bytes that are no text": with_length(b'{"choices": [{"message": {"content": "\xff\xfe"}}]}'),
    "UTF-16": with_length('{"choices": []}'.encode("utf-16")),
    "a text of two million characters": completion_of("x" * 2_000_000),
    "choices by name": with_length(b'{"choices": {"0": 1}}'),
    "a list of numbers": with_length(b'{"choices": [1, 2]}'),
    "a message that is none": with_length(b'{"choices": [{"message": "Dog"}]}'),
    "a content that is a number": with_length(b'{"choices": [{"message": {"content": 7}}]}'),
    "a date beyond all time": b"HTTP/1.1 503 No\r\nRetry-After: Mon, 01 Jan 9999 00:00:00 +9999"
    b"\r\nContent-Length: 0\r\n\r\n",
}


@pytest.mark.parametrize("answer", WRONG.values(), ids=[*WRONG])
def test_a_wrong_answer_is_one_wrong_answer(asked, answer, caplog):
    answers, _ = asked(answer, timeout_seconds=20.0)
    assert answers == [None, DOG_TEXT]
    assert "question id-00: 1 tries" in caplog.text and len(caplog.text) < 2000


def test_half_a_character_loses_no_batch_and_stops_no_later_start(asked, tmp_path):
    """The line of an answer once could not be written, at this start and at every later one."""
    answers, _ = asked(completion_of(r"<answer>Dog</answer> \ud83d\ude00 \ud83d \u0000 x"))
    assert answers == [Answer("<answer>Dog</answer> \U0001f600 \ufffd \x00 x"), DOG_TEXT]
    predictions.append(tmp_path, 0, dict(zip("ab", answers, strict=True)))
    assert predictions.merge(tmp_path) == dict(zip("ab", answers, strict=True))
    predictions.write_lines(tmp_path / "questions.jsonl", [{"prediction": answers[0].text}])
    json.loads((tmp_path / "questions.jsonl").read_text(encoding="utf-8"))


def test_odd_times_to_wait_are_none():
    for value in ("nan", "-inf", "1e-999", "Mon, 01 Jan 0001 00:00:00 +9999", "9" * 5000 + "x"):
        assert retry_after(value) == 0
    assert retry_after("1e999") > 1e300  # bounded by longest_wait_seconds


REPEATS = ("<answer>", "<answer></answer>", "<answer>a", "</answer>", "'\" ", "a) ", "(", "\u0130")


@pytest.mark.parametrize("part", REPEATS)
def test_a_long_answer_is_judged_in_its_own_time(part):
    """A million characters; hours where the time grows with the square."""
    text = part * (1_000_000 // len(part))
    assert not judge(question(), Answer(text)).strict
    assert judge(question(), Answer(text + "</answer><answer>Dog</answer>")).strict


@pytest.mark.parametrize("audio", ["../secret.wav", "{0}/secret.wav", "a/../../secret.wav"])
def test_no_clip_outside_the_data_is_sent(tmp_path, audio):
    data = make_data(tmp_path / "data", count=3)
    rewrite(data, 1, audio=audio.format(tmp_path))
    (tmp_path / "secret.wav").write_bytes((data / "clip.wav").read_bytes())
    options = EvaluateOptions(CONFIG, endpoint="m", data=data, dry_run=True)
    with pytest.raises(PromptError, match=r"secret.wav', which would be sent and is outside"):
        evaluate(options)
    record = {"revision": "v", "audio": str(tmp_path / "clips")}
    (data / "report.json").write_text(json.dumps(record))
    with pytest.raises(PromptError, match=r"is outside .* and .*clips: write it with"):
        evaluate(options)


def test_clips_of_the_folder_that_prepare_was_given_are_sent(tmp_path, capsys):
    rows = [{"id": "q", "audio_id": "clip.wav", "question": "Which?", "answer": "A"}]
    rows[0] |= {"choices": ["A", "B"], "task": "sound"}
    clips = make_data(tmp_path / "clips")
    (tmp_path / "linked").symlink_to(clips)
    (tmp_path / "rows.json").write_text(json.dumps(rows))
    for given in (clips, tmp_path / "linked"):
        prepare_mmau(MmauOptions(tmp_path / "rows.json", given, tmp_path / given.name / "out", "v"))
        evaluate(EvaluateOptions(CONFIG, endpoint="m", data=given / "out", dry_run=True))
        prepare_mmau(MmauOptions(tmp_path / "rows.json", given, tmp_path / "out", "v"))
        evaluate(EvaluateOptions(CONFIG, endpoint="m", data=tmp_path / "out", dry_run=True))
    assert capsys.readouterr().out.count("1 questions to m, nothing sent: 0 s of audio") == 4


@pytest.mark.parametrize("answer", [GOOD, drips(b"", b"\x16"), drips(b"\x16\x03\x03", b"")])
def test_a_server_that_speaks_no_tls_is_not_waited_for(data, monkeypatch, caplog, answer):
    with hostile_server(answer, reads=False) as server:
        monkeypatch.setenv("OPENAI_BASE_URL", server.url.replace("http:", "https:"))
        monkeypatch.setenv("NO_PROXY", "127.0.0.1")
        model, questions = endpoint(data, attempts=1, timeout_seconds=0.5)
        assert model.answers(questions[:1]) == [None]
    assert "question id-00: 1 tries; https://127.0.0.1" in caplog.text
