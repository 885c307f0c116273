"""An OpenAI-compatible endpoint with audio input as the model that answers; standard library alone.

Address and key come from OPENAI_BASE_URL and OPENAI_API_KEY; the key is in no message and no file,
whoever repeats it.
Errors that may pass (408, 429, 5xx, a broken connection, a malformed response) are tried again
after waits that double, or after the time in Retry-After. Errors that would meet every question end
the evaluation at once; other errors leave their question unanswered. Obtained answers are always
kept. An answer is bounded in bytes and seconds (see `bounded_http`), in depth and in characters:
beyond, it is malformed. An answer that was cut off while the model was thinking counts as an
answer, with an empty text: another attempt would cost as much and end the same way.
"""

from __future__ import annotations

import base64
import http.client
import io
import json
import logging
import os
import random
import re
import time
import urllib.error
import urllib.request
import wave
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any
from urllib.parse import urlsplit

from adrpo_scale.core.errors import ClipError, ConfigError, EndpointError
from adrpo_scale.core.secrets import beginning, masked, read_key
from adrpo_scale.data.clips import SAMPLE_RATE, Samples, read_clip
from adrpo_scale.evaluation.mmau.base import Answer, MmauConfig, Question
from adrpo_scale.evaluation.mmau.bounded_http import bounded_opener, read_body

log = logging.getLogger(__name__)

KEY = "OPENAI_API_KEY"
DEFAULT_URL = "https://api.openai.com/v1"
_PASSES = {408, 409, 425, 429}  # statuses that may pass; so may every 5xx
_HOPELESS = {301, 302, 303, 307, 308, 401, 402, 403, 404, 405}  # would meet every question
_IN_A_ROW = 8  # unanswered questions in a row that end the evaluation
_EMPTY = 8  # answers, all cut off and empty, that end the evaluation
_READ = 1 << 16  # bytes of an endpoint's error text
_SHOWN = 300  # characters of it in a message
_LONGEST = 1_000_000  # characters of an answer; one of 32,000 tokens has a tenth
_HALVES = re.compile("[\ud800-\udfff]")  # of a pair that a server cut; no file takes one alone


class _Again(Exception):
    """An error that may pass. seconds: the time in Retry-After."""

    def __init__(self, reason: str, seconds: float = 0.0) -> None:
        super().__init__(reason)
        self.seconds = seconds


class _Refused(Exception):
    """An error of this question alone."""


@dataclass(frozen=True)
class DryRun:
    """The size of an evaluation: questions, seconds of audio, bytes of requests, unreadable
    clips."""

    questions: int
    seconds: float
    request_bytes: int
    broken: int


class Endpoint:
    """A `Model` behind an endpoint; see the module docstring."""

    def __init__(
        self,
        name: str,
        config: MmauConfig,
        environment: Mapping[str, str] = os.environ,
    ) -> None:
        """name: the model's name at the endpoint."""
        self.name, self._config = name, config
        self.url = base_url(environment) + "/chat/completions"
        self._key = read_key(KEY, environment)
        self._opener = bounded_opener()
        self._failed_in_a_row = 0

    def answers(self, questions: Sequence[Question]) -> list[Answer | None]:
        """Raises EndpointError where the endpoint answers no question at all."""
        if self.url.startswith(DEFAULT_URL) and not self._key:
            raise ConfigError(
                "OPENAI_API_KEY is not set: set it, or OPENAI_BASE_URL to an endpoint without a key"
            )
        with ThreadPoolExecutor(self._config.endpoint.at_once) as pool:
            found = list(pool.map(self._answer, questions))
        for answer in found:
            self._failed_in_a_row = 0 if answer is not None else self._failed_in_a_row + 1
        if self._failed_in_a_row >= _IN_A_ROW and None in found:
            raise EndpointError(
                f"{self.url} left {self._failed_in_a_row} questions in a row unanswered, for the "
                "reasons above; start the same command again to resume"
            )
        return found

    def dry_run(self, questions: Sequence[Question]) -> DryRun:
        """Builds all requests and sends none."""
        seconds, size, broken = 0.0, 0, 0
        for question in questions:
            try:
                samples = read_clip(*question.clip)
            except ClipError:
                broken += 1
                continue
            seconds += len(samples) / SAMPLE_RATE
            size += len(self._body(question, samples))
        return DryRun(len(questions), seconds, size, broken)

    def _body(self, question: Question, samples: Samples) -> bytes:
        audio = {"data": base64.b64encode(wav(samples)).decode(), "format": "wav"}
        content = [
            {"type": "input_audio", "input_audio": audio},
            {"type": "text", "text": question.prompt.text},
        ]
        fields: dict[str, Any] = {
            "model": self.name,
            "messages": [{"role": "user", "content": content}],
            "temperature": self._config.temperature,
            "max_tokens": self._config.max_new_tokens,
        }
        for refused in self._config.endpoint.without:
            fields.pop(refused, None)
        return json.dumps(fields | self._config.endpoint.extra).encode()

    def _answer(self, question: Question) -> Answer | None:
        """Asks one question, with all its attempts; None where all fail."""
        settings = self._config.endpoint
        try:
            body = self._body(question, read_clip(*question.clip))
            for attempt in range(settings.attempts):
                try:
                    answer = self._ask(body)
                    if not answer.text.strip():
                        log.warning("question %s: no text; it counts as wrong", question.id)
                    return answer
                except _Again as error:
                    reason, asked = str(error), error.seconds
                if attempt + 1 < settings.attempts:
                    wait = max(settings.first_wait_seconds * 2**attempt, asked)
                    # Random: processes that were refused together would return together.
                    wait = min(wait * (1 + random.random() / 4), settings.longest_wait_seconds)
                    time.sleep(wait)
            log.warning("question %s: %d tries; %s", question.id, settings.attempts, reason)
        except (_Refused, ClipError) as error:
            log.warning("question %s is left out: %s", question.id, error)
        return None

    def _ask(self, body: bytes) -> Answer:
        """Sends one request."""
        headers = {"Content-Type": "application/json"}
        headers |= {"Authorization": f"Bearer {self._key}"} if self._key else {}
        request = urllib.request.Request(self.url, body, headers, method="POST")
        try:
            timeout = self._config.endpoint.timeout_seconds
            with self._opener.open(request, timeout=timeout) as response:
                return answer_of(read_body(response))
        except urllib.error.HTTPError as error:
            raise self._judged(error) from None
        except (OSError, http.client.HTTPException) as error:  # URLError and time-outs are OSErrors
            raise _Again(masked(f"{self.url}: {type(error).__name__}: {error}")) from None

    def _judged(self, error: urllib.error.HTTPError) -> Exception:
        """The exception for an HTTP status: _Again, _Refused or EndpointError."""
        with error:
            try:
                text = _shown(read_body(error, _READ))
            except (OSError, http.client.HTTPException):
                text = ""
        reason = masked(f"{self.url} says {error.code}: {text or error.reason}")
        if error.code in _PASSES or error.code >= 500:
            return _Again(reason, retry_after(error.headers.get("Retry-After")))
        if error.code in _HOPELESS:
            return EndpointError(
                f"{reason}\nCheck OPENAI_BASE_URL, OPENAI_API_KEY and the model's name, "
                f"{self.name!r}"
            )
        return _Refused(reason)


def base_url(environment: Mapping[str, str] = os.environ) -> str:
    """The part of the address before /chat/completions. Raises ConfigError where it is no http
    address, or holds more than host and path: it is recorded and shown, so it must hold no key."""
    base = environment.get("OPENAI_BASE_URL") or DEFAULT_URL
    if not base.startswith(("http://", "https://")):
        raise ConfigError(
            f"OPENAI_BASE_URL begins with {base[:4]!r}: expected http://... or https://..."
        )
    parts = urlsplit(base)
    if "@" in parts.netloc or parts.query or parts.fragment:
        raise ConfigError(
            f"OPENAI_BASE_URL, at {parts.netloc.rpartition('@')[2]}, holds a user, a password or a "
            "query; expected https://HOST/PATH alone, and the key in OPENAI_API_KEY"
        )
    return base.rstrip("/")


def answer_of(response: bytes) -> Answer:
    """The answer in a chat completion; raises _Again where there is none. A refusal is an answer,
    and so is an empty text that was cut off at the limit of its length."""
    try:
        choice = json.loads(response)["choices"][0]
        is_cut = choice.get("finish_reason") == "length"
        message = choice.get("message") or {}
        text = message.get("refusal") if message.get("content") is None else message["content"]
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError):
        text, is_cut = None, False
    if text is None and is_cut:
        text = ""
    if not isinstance(text, str):
        raise _Again(f"no chat completion with a text: {_shown(response)!r}")
    if len(text) > _LONGEST:
        raise _Again(f"a text of {len(text)} characters, expected at most {_LONGEST}")
    return Answer(masked(_HALVES.sub("\ufffd", text)), is_cut)


def _shown(response: bytes) -> str:
    """The beginning of a response, for a message; some endpoints repeat the key."""
    return beginning(response[:_READ].decode(errors="replace"), _SHOWN)


def check_writes(answers: Sequence[Answer], is_all: bool) -> None:
    """Raises EndpointError where all answers were cut off before any text: the rest would cost as
    much and be as empty. is_all: no further answer follows, so fewer than _EMPTY suffice."""
    if not answers or not (is_all or len(answers) >= _EMPTY):
        return
    if all(answer.is_cut and not answer.text.strip() for answer in answers):
        raise EndpointError(
            f"all of {len(answers)} answers were cut off before any text: the model spends its "
            "length on thinking. Raise max_new_tokens, or set endpoint.extra.reasoning_effort, and "
            "choose another --to, or delete this folder"
        )


def retry_after(value: str | None) -> float:
    """Seconds from a Retry-After header, which holds a number or a date; 0 without one."""
    if not value:
        return 0.0
    try:
        return max(0.0, float(value))
    except ValueError:
        pass
    try:
        return max(0.0, (parsedate_to_datetime(value) - datetime.now(UTC)).total_seconds())
    except (ValueError, TypeError, OverflowError):
        return 0.0


def wav(samples: Samples) -> bytes:
    """A 16-bit mono wav file of float samples in [-1, 1] at 16 kHz."""
    buffer = io.BytesIO()
    with wave.open(buffer, "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(SAMPLE_RATE)
        file.writeframes((samples * 32767).round().astype("<i2").tobytes())
    return buffer.getvalue()
