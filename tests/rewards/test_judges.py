"""Rewards that ask a server: what is sent, tried again, masked, kept, and never shown."""

from __future__ import annotations

import base64
import io
import json
import logging
import math
import threading
import time

import numpy as np
import pytest
import torch
from PIL import Image
from pydantic import ValidationError

from adrpo_scale.core import secrets, watchdog
from adrpo_scale.core.errors import ConfigError, RewardError
from adrpo_scale.core.types import Completion, Prompt
from adrpo_scale.rewards import asked
from adrpo_scale.rewards.apart import apart
from adrpo_scale.rewards.base import RewardConfig, longest_wait
from adrpo_scale.rewards.calls import ABSTAINED, Info, rewards_of
from adrpo_scale.rewards.http_scorer import HttpScorer, HttpScorerConfig
from adrpo_scale.rewards.judge import Judge, JudgeConfig, filled
from adrpo_scale.rewards.trial import tried
from adrpo_scale.run.load import _fault
from tests.support.hostile_server import OK, drips, floods, hostile_server, with_length
from tests.support.judge_server import KEY, QUICK, judge_server, said, scored

CPU = torch.device("cpu")
TEMPLATE = "Q: {prompt} A: {completion}"
RED = np.full((4, 6, 3), (200, 0, 0), dtype=np.uint8)


@pytest.fixture(autouse=True)
def no_proxy(monkeypatch):
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    for name in ("OPENAI_API_KEY", "OPENAI_BASE_URL"):
        monkeypatch.delenv(name, raising=False)


def judge(url, record=None, **settings):
    given = {"model": "m", "url": url, "template": TEMPLATE, "requests": QUICK} | settings
    made = Judge(JudgeConfig(**given), CPU)
    made.record = record
    return made


def scorer(url, **settings):
    return HttpScorer(HttpScorerConfig(**({"url": url, "requests": QUICK} | settings)), CPU)


def numbers(reward, *texts, info=None):
    """The reward of completions of prompts "p"; None where one is masked."""
    prompts = [Prompt(n, "p", {"answer": f"a{n}"}) for n in range(len(texts))]
    values = rewards_of(reward, [Completion(text) for text in texts], prompts, info).tolist()
    return [None if math.isnan(value) else value for value in values]


def by_length(body):
    """A judge that scores a completion by its length."""
    text = body["messages"][-1]["content"]
    return said(f"Let me see. <score>{len(text) - len('Q: p A: ')}</score>")


# ---- what is asked -------------------------------------------------------------------------------


def test_a_judge_is_asked_by_its_template_and_its_number_is_the_reward(monkeypatch):
    monkeypatch.setenv("JUDGE_API_KEY", KEY)
    template = "{{prompt}} is {prompt}, {answer}: {completion}"
    with judge_server(lambda _: said("From <score>1</score> to <score> -2.5 </score>.")) as server:
        made = judge(
            server.url,
            template=template,
            system="Be fair.",
            key="JUDGE_API_KEY",
            extra={"reasoning_effort": "low"},
            without=["temperature"],
        )
        assert numbers(made, "{prompt} {answer}") == [-2.5]
    (body,) = server.bodies
    assert server.keys == [f"Bearer {KEY}"] and server.paths == ["/v1/chat/completions"]
    assert body == {
        "model": "m",
        "max_tokens": 512,
        "reasoning_effort": "low",
        "messages": [
            {"role": "system", "content": "Be fair."},
            {"role": "user", "content": "{prompt} is p, a0: {prompt} {answer}"},
        ],
    }


def test_a_picture_is_sent_as_a_data_url():
    with judge_server(lambda _: said("<score>7</score>")) as server:
        made = judge(server.url, template="How well does it show {prompt}?")
        assert rewards_of(made, [RED], [Prompt(0, "red")]).tolist() == [7]
    image, text = server.bodies[0]["messages"][0]["content"]
    assert text == {"type": "text", "text": "How well does it show red?"}
    head, _, data = image["image_url"]["url"].partition(",")
    assert image["type"] == "image_url" and head == "data:image/png;base64"
    assert (np.asarray(Image.open(io.BytesIO(base64.b64decode(data)))) == RED).all()


def test_a_scorer_is_sent_samples_in_batches_and_abstains_with_null():
    def score(body):
        return scored(*(len(s.get("completion", "")) or None for s in body["samples"]))

    with judge_server(score) as server:
        made = scorer(server.url + "/mine", model="v2", row_keys=["answer"], batch=2)
        texts = ["a", "bb", "", "dddd", "eeeee"]
        values = rewards_of(made, [Completion(t) for t in texts], [Prompt(0, "p")] * 5).tolist()
    assert values == [1, 2, ABSTAINED, 4, 5]
    assert set(server.paths) == {"/v1/mine"} and server.keys == [None] * 3
    sizes = sorted(len(body["samples"]) for body in server.bodies)
    assert sizes == [1, 2, 2] and {body["model"] for body in server.bodies} == {"v2"}
    sample = next(b for b in server.bodies if len(b["samples"]) == 1)["samples"][0]
    assert sample == {"prompt": "p", "row": {"answer": None}, "completion": "eeeee"}


def test_a_scorer_is_sent_pictures():
    with judge_server(lambda _: scored(3)) as server:
        assert rewards_of(scorer(server.url), [RED], [Prompt(0, "red")]).tolist() == [3]
    assert server.bodies[0]["samples"][0]["image"].startswith("data:image/png;base64,")


def test_at_most_n_requests_are_under_way():
    pairs = threading.Barrier(2, timeout=30)  # breaks unless two are under way together

    def answer(body):
        pairs.wait()
        return by_length(body)

    with judge_server(answer) as server:
        made = judge(server.url, requests=QUICK | {"at_once": 2, "timeout_seconds": 60.0})
        assert numbers(made, *("x" * n for n in range(1, 7))) == [1, 2, 3, 4, 5, 6]
    assert server.most == 2 and len(server.bodies) == 6


def test_a_slow_server_is_no_hang_of_this_process(monkeypatch):
    beats = threading.Semaphore(0)
    monkeypatch.setattr(watchdog, "beat", beats.release)
    monkeypatch.setattr(asked, "_STEP", 0.01)

    def answer(body):
        assert all(beats.acquire(timeout=30) for _ in range(4))
        return by_length(body)

    with judge_server(answer) as server:
        made = judge(server.url, requests=QUICK | {"timeout_seconds": 200.0})
        assert numbers(made, "x") == [1]


def test_equal_samples_are_asked_once():
    with judge_server(by_length) as server:
        made = judge(server.url)
        assert numbers(made, "x", "x") == [1, 1]
        prompts = [Prompt(0, "p"), Prompt(0, "q")]
        assert rewards_of(made, [Completion("x")] * 2, prompts).tolist() == [1, 1]
    assert len(server.bodies) == 2  # the second is of prompt q


# ---- what goes wrong -----------------------------------------------------------------------------


def test_what_may_pass_is_tried_again_and_the_rest_is_masked_named_and_counted(caplog):
    times = {}

    def answer(body):
        text = body["messages"][0]["content"][-1]
        times[text] = times.get(text, 0) + 1
        if text == "b" and times[text] == 1:
            return 429, {"Retry-After": "0"}, b"slower"
        if text == "c":
            return 500, {}, b"no"
        return (422, {}, b"not this one") if text == "d" else said("<score>1</score>")

    info = Info()
    with judge_server(answer) as server:
        assert numbers(judge(server.url), *"abcd", info=info) == [1, 1, None, None]
    assert times == {"a": 1, "b": 2, "c": 2, "d": 1}
    assert info.means() == {"judge_failed": 0.5}
    assert f"got no answer (2 tries): {server.url}/chat/completions says 500: no on " in caplog.text
    assert "says 422: not this one on prompt 3 'p'; masked" in caplog.text


def test_an_answer_without_a_number_is_not_asked_for_again(caplog):
    words = {"a": "Splendid!", "b": "<score>11</score>", "c": "<score>-1</score>", "d": None}

    def answer(body):
        word = words.get(body["messages"][0]["content"][-1], "<score>10</score>")
        return said(word, "length" if word is None else "stop")

    with judge_server(answer) as server:
        made = judge(server.url, low=0.0, high=10.0)
        assert numbers(made, *"abcde") == [None, None, None, None, 10]
        assert numbers(made, *"abcde") == [None, None, None, None, 10]
    assert len(server.bodies) == 5
    assert "judge gave an answer without a number by its rule on prompt 0" in caplog.text
    assert "judge gave a number outside 0 to 10 on 2 samples" in caplog.text
    assert "judge gave an answer, cut off at max_tokens, without a number" in caplog.text


@pytest.mark.parametrize("scores", [[1], [1, 2, 3], "no", [1, "2"], [1, True], [1, math.nan], None])
def test_a_scorer_that_gives_something_else_is_tried_again_and_masked(scores, caplog):
    wrong = {"scores": scores} if scores else {"score": [1, 2]}
    with judge_server(lambda _: (200, {}, json.dumps(wrong).encode())) as server:
        assert numbers(scorer(server.url), "a", "b") == [None, None]
    assert len(server.bodies) == 2  # attempts
    assert 'expected {"scores": [...]} with 2 numbers or null' in caplog.text


GOOD = with_length(said("<score>5</score>")[2])
HOSTILE = {
    "silent": drips(b"", b""),
    "slow": drips(OK + b"Content-Length: 9999\r\n\r\n", b"{"),
    "endless": floods(OK + b"\r\n", b"x" * 65536),
    "no HTTP": b"\x16\x03\x01",
    "no completion": with_length(b'{"choices": []}'),
    "deep": with_length(b"[" * 200_000),
}


@pytest.mark.parametrize("answer", HOSTILE.values(), ids=[*HOSTILE])
def test_a_server_that_is_slow_wrong_or_endless_costs_its_sample(answer, caplog):
    requests = QUICK | {"attempts": 1, "timeout_seconds": 0.5, "at_once": 1}
    with hostile_server(answer, GOOD) as server:
        assert numbers(judge(server.url, requests=requests), "a", "b") == [None, 5]
    assert "reward judge got no answer (1 tries): " in caplog.text and len(caplog.text) < 2000


def test_a_call_ends_in_its_time_whatever_the_server_does(caplog):
    """One request would wait a day, and be sent again a hundred times."""
    patient = {"attempts": 100, "timeout_seconds": 86400.0, "at_once": 1}
    with hostile_server(GOOD, drips(b"", b"")) as server:
        made = judge(server.url, requests=patient, call_seconds=0.5)
        begin = time.monotonic()
        assert numbers(made, "a", "b", "c") == [5, None, None]
        assert 0.4 < time.monotonic() - begin < 30
    assert "reward judge got no answer" in caplog.text and not made.is_deserted


def absent():
    """An address at which nobody answers."""
    with judge_server(by_length) as server:
        return server.url


def test_a_server_that_is_absent_ends_a_run_that_begins_and_none_that_goes_on():
    made, sample, prompts = judge(absent()), [Completion("x")], [Prompt(0, "p")]
    with pytest.raises(RewardError, match=r"judge got no answer \(2 tries\).*; start its server"):
        tried(made, sample, prompts)
    made.resumes = True
    assert "got no answer (2 tries)" in tried(made, sample, prompts)
    assert numbers(made, "x", "y") == [None, None]


def test_a_refused_key_ends_a_run_that_begins():
    refused = pytest.raises(
        RewardError, match=r"says 401: who\?\nCheck the address, OPENAI_API_KEY"
    )
    with judge_server(lambda _: (401, {}, b"who?")) as server, refused:
        tried(judge(server.url), [Completion("x")], [Prompt(0, "p")])
    assert len(server.bodies) == 1


def test_a_judge_in_a_process_of_its_own(tmp_path, caplog):
    settings = {"model": "m", "template": TEMPLATE, "requests": QUICK, "time_limit": 60.0}
    with judge_server(lambda b: by_length(b) if "xx" in str(b) else said("?")) as server:
        made = apart(Judge, JudgeConfig(url=server.url, **settings), CPU)
        made.record = tmp_path / "verdicts" / "mine.jsonl"
        made.check([Prompt(0, "p")])
        assert numbers(made, "xxx", "y") == [3, None]
    assert "without a number by its rule on prompt 1" in caplog.text
    assert len(made.record.read_text().splitlines()) == 2


# ---- what is kept --------------------------------------------------------------------------------


def test_a_later_start_gives_the_same_numbers_without_the_server(tmp_path):
    file = tmp_path / "verdicts" / "reward-0-rank-0000.jsonl"
    with judge_server(lambda b: by_length(b) if "?" not in str(b) else said("eh")) as server:
        assert numbers(judge(server.url, file), "x", "yy", "?") == [1, 2, None]
    other = file.with_name("reward-0-rank-0001.jsonl")  # another number of processes
    again = judge(absent(), other, requests=QUICK | {"attempts": 1})
    assert numbers(again, "x", "yy", "?", "new") == [1, 2, None, None]
    assert numbers(judge(absent(), other, rule="[0-9]"), "x") == [None]  # another reward's
    assert rewards_of(again, [Completion("x")], [Prompt(0, "q")]).isnan().all()
    assert not other.exists()


def test_pictures_are_known_by_their_pixels(tmp_path):
    prompts = [Prompt(0, "red")]
    with judge_server(lambda _: said("<score>7</score>")) as server:
        made = judge(server.url, tmp_path / "v" / "a.jsonl", template="{prompt}?")
        for picture in (RED, RED.copy(), RED.transpose(1, 0, 2), RED + 1):
            assert rewards_of(made, [picture], prompts).tolist() == [7]
    assert len(server.bodies) == 3


def test_a_line_that_a_kill_has_cut_costs_its_answer_alone(tmp_path):
    file = tmp_path / "verdicts" / "a.jsonl"
    with judge_server(by_length) as server:
        numbers(judge(server.url, file), "x", "yy")
        lines = file.read_bytes().splitlines(keepends=True)
        file.write_bytes(lines[0] + lines[1][:-9])
        for _ in range(2):
            assert numbers(judge(server.url, file), "x", "yy") == [1, 2]
        assert len(server.bodies) == 3
        odd = [{"key": "k"}, {"key": 1, "value": 1, "fault": ""}, {"key": "k", "value": "1"}]
        file.write_bytes(b"".join(json.dumps(row).encode() + b"\n" for row in odd))
        assert numbers(judge(server.url, file), "x") == [1]


def test_a_disk_that_takes_no_verdicts_ends_nothing(tmp_path, caplog):
    (tmp_path / "elsewhere").write_bytes(b"")
    (tmp_path / "v").mkdir()
    (tmp_path / "v" / "a.jsonl").symlink_to(tmp_path / "elsewhere")
    with judge_server(by_length) as server:
        made = judge(server.url, tmp_path / "v" / "a.jsonl")
        assert numbers(made, "x") == [1] and numbers(made, "yy") == [2]
    assert caplog.text.count("verdicts are no longer kept") == 1
    assert (tmp_path / "elsewhere").read_bytes() == b""


# ---- keys ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("status", [200, 401, 422, 500])
def test_a_key_that_the_server_repeats_is_in_no_log_record_or_error(
    status, tmp_path, monkeypatch, caplog
):
    caplog.set_level(logging.DEBUG)
    monkeypatch.setenv("MY_JUDGE", KEY)
    file = tmp_path / "v" / "a.jsonl"

    def answer(body):
        text = f"{'x' * (490 if status == 200 else 290)}{KEY} <score>1</score>"
        return said(text) if status == 200 else (status, {}, text.encode())

    with judge_server(answer) as server:
        made = judge(server.url, file, key="MY_JUDGE")
        shown = repr(numbers(made, "x"))
        try:
            shown += tried(made, [Completion("y")], [Prompt(0, "p")])
        except RewardError as error:
            shown += str(error)
    kept = file.read_text() if file.exists() else ""
    assert server.keys[0] == f"Bearer {KEY}" and ("***" in kept) == (status == 200)
    assert KEY[:8] not in shown + kept + caplog.text + repr(made.config)


def test_a_key_in_the_place_of_its_variables_name_is_refused_and_not_shown():
    with pytest.raises(ValidationError) as refused:
        judge("http://host", key="sk-written-into-a-file")
    text = " ".join(_fault(JudgeConfig, detail, {}) for detail in refused.value.errors())
    assert "expected the name of an environment variable" in text
    assert "sk-written" not in secrets.masked(text)


# ---- settings ------------------------------------------------------------------------------------


def test_faults_of_settings_are_found_before_anything_is_asked(monkeypatch):
    with pytest.raises(ConfigError, match=r"OPENAI_API_KEY is not set"):
        judge(None)
    with pytest.raises(ConfigError, match=r"key = 'MY_KEY', and that variable is not set"):
        judge("http://host", key="MY_KEY")
    with pytest.raises(ConfigError, match=r"reward judge: url, at host, holds a user"):
        judge("http://me:secret@host/v1")
    with pytest.raises(ConfigError, match=r"reward http: url begins with 'host'"):
        scorer("host:80")
    for rule in ("(", "(a)(b)"):
        with pytest.raises(ValidationError, match=r"regular expression|2 groups"):
            judge("http://host", rule=rule)
    made = judge("http://host", template="{prompt} {completion} {answer}")
    made.check([Prompt(0, "p", {"answer": 4})])
    with pytest.raises(RewardError, match=r"prompt 1 .* has no 'answer' .*write {{answer}}"):
        made.check([Prompt(0, "p", {"answer": 4}), Prompt(1, "q", {"solution": 4})])


def test_others_wait_as_long_as_a_call_may_take():
    assert longest_wait([judge("http://host", call_seconds=50.0)] * 2) == 100
    limited = HttpScorerConfig(url="http://host", call_seconds=50.0, time_limit=10.0)
    assert longest_wait([limited, RewardConfig(kind="clip")]) == 40


def test_a_judge_that_would_not_see_what_it_judges_is_refused():
    with pytest.raises(RewardError, match=r"template does not name {completion}"):
        numbers(judge("http://host", template="{prompt}"), "x")
    with pytest.raises(RewardError, match=r"the samples are pictures, .*: leave it out"):
        rewards_of(judge("http://host"), [RED], [Prompt(0, "p")])


def test_braces_of_json_stay_in_a_template():
    template = '{"score": 1} {{prompt}} {prompt} {{}} {'
    assert filled(template, {"prompt": "p"}) == '{"score": 1} {prompt} p {{}} {'
