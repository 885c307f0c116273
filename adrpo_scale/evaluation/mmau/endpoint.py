"""Any OpenAI-compatible endpoint with audio input as the model that answers (the standard library).

Address and key come from OPENAI_BASE_URL and OPENAI_API_KEY; the key is in no message and no file.
What may pass (429, 408, 5xx, a broken connection, an answer that is none) is tried again, after
waits that double, or after what Retry-After asks. What would fail for every question ends the
evaluation at once; what fails for one leaves it unanswered. Answers so far are kept in any case.
A model that spent all of its length on thinking has answered, with nothing: every try of it costs
as much and ends the same way.
"""

from __future__ import annotations

import base64
import http.client
import io
import json
import logging
import os
import random
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
from adrpo_scale.data.clips import SAMPLE_RATE, Samples, read_clip
from adrpo_scale.evaluation.mmau.base import Answer, MmauConfig, Question

log = logging.getLogger(__name__)

DEFAULT_URL = "https://api.openai.com/v1"
_PASSES = {408, 409, 425, 429}  # and every 5xx
_HOPELESS = {301, 302, 303, 307, 308, 401, 402, 403, 404, 405}  # the same for every question
_IN_A_ROW = 8  # questions without an answer before the endpoint is given up
_EMPTY = 8  # answers, all of them without text, after which the model is given up
_SHOWN = 300  # characters of what an endpoint says to an error


class _Again(Exception):
    """Another try may do. seconds: what Retry-After asks."""

    def __init__(self, reason: str, seconds: float = 0.0) -> None:
        super().__init__(reason)
        self.seconds = seconds


class _Refused(Exception):
    """This question will not be answered, others may be."""


class _NoRedirects(urllib.request.HTTPRedirectHandler):
    """urllib would send the key on to wherever an endpoint points."""

    def redirect_request(self, *_: Any) -> None:
        return None


@dataclass(frozen=True)
class DryRun:
    """What asking would take."""

    questions: int
    seconds: float
    request_bytes: int
    broken: int


class Endpoint:
    """See the module docstring. A `Model`."""

    def __init__(
        self,
        name: str,
        config: MmauConfig,
        environment: Mapping[str, str] = os.environ,
    ) -> None:
        """name: the model's, as the endpoint has it."""
        self.name, self._config = name, config
        self.url = base_url(environment) + "/chat/completions"
        self._key = environment.get("OPENAI_API_KEY", "")
        self._opener = urllib.request.build_opener(_NoRedirects)
        self._failed_in_a_row = 0

    def answers(self, questions: Sequence[Question]) -> list[Answer | None]:
        """Raises EndpointError where no answer is to be had of this endpoint at all."""
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
                f"{self.url} left {self._failed_in_a_row} questions in a row unanswered, the "
                "reasons are above; start the same command again to resume"
            )
        return found

    def dry_run(self, questions: Sequence[Question]) -> DryRun:
        """Builds every request and sends none."""
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
        """With all its tries; None where none of them helped."""
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
                    # Processes that were turned away together would come back together.
                    wait = min(wait * (1 + random.random() / 4), settings.longest_wait_seconds)
                    time.sleep(wait)
            log.warning("question %s: %d tries; %s", question.id, settings.attempts, reason)
        except (_Refused, ClipError) as error:
            log.warning("question %s is left out: %s", question.id, error)
        return None

    def _ask(self, body: bytes) -> Answer:
        """One request."""
        headers = {"Content-Type": "application/json"}
        headers |= {"Authorization": f"Bearer {self._key}"} if self._key else {}
        request = urllib.request.Request(self.url, body, headers, method="POST")
        try:
            timeout = self._config.endpoint.timeout_seconds
            with self._opener.open(request, timeout=timeout) as response:
                return answer_of(response.read())
        except urllib.error.HTTPError as error:
            raise self._judged(error) from None
        except (OSError, http.client.HTTPException) as error:  # URLError and time-outs are OSErrors
            raise _Again(f"{self.url}: {type(error).__name__}: {error}") from None

    def _judged(self, error: urllib.error.HTTPError) -> Exception:
        """What an HTTP status means for the question and for the others."""
        with error:
            try:
                text = error.read().decode(errors="replace")[:_SHOWN]
            except (OSError, http.client.HTTPException):
                text = ""
        reason = f"{self.url} says {error.code}: {text or error.reason}"
        reason = reason.replace(self._key, "***") if self._key else reason  # some repeat it
        if error.code in _PASSES or error.code >= 500:
            return _Again(reason, retry_after(error.headers.get("Retry-After")))
        if error.code in _HOPELESS:
            return EndpointError(
                f"{reason}\nLook at OPENAI_BASE_URL, OPENAI_API_KEY and the model's name, "
                f"{self.name!r}"
            )
        return _Refused(reason)


def base_url(environment: Mapping[str, str] = os.environ) -> str:
    """What stands before /chat/completions. ConfigError where it is no address, or holds more than
    one: it is written down and shown, so a key has no place in it."""
    base = environment.get("OPENAI_BASE_URL") or DEFAULT_URL
    if not base.startswith(("http://", "https://")):
        raise ConfigError(f"OPENAI_BASE_URL = {base!r}: expected http://... or https://...")
    parts = urlsplit(base)
    if "@" in parts.netloc or parts.query or parts.fragment:
        raise ConfigError(
            f"OPENAI_BASE_URL, at {parts.netloc.rpartition('@')[2]}, has a user, a password or a "
            "query in it; expected https://HOST/PATH alone, and the key in OPENAI_API_KEY"
        )
    return base.rstrip("/")


def answer_of(response: bytes) -> Answer:
    """The answer in a chat completion; _Again where there is none. A refusal is an answer, and so
    is nothing at all where the limit of its length was reached."""
    try:
        choice = json.loads(response)["choices"][0]
        is_cut = choice.get("finish_reason") == "length"
        message = choice.get("message") or {}
        text = message.get("refusal") if message.get("content") is None else message["content"]
    except (ValueError, LookupError, TypeError, AttributeError):
        text, is_cut = None, False
    if text is None and is_cut:
        text = ""
    if not isinstance(text, str):
        raise _Again(f"no chat completion with a text: {response[:_SHOWN]!r}")
    return Answer(text, is_cut)


def check_writes(answers: Sequence[Answer], is_all: bool) -> None:
    """EndpointError where all of them, and enough to tell, were cut off before a word: the rest
    would cost as much and be as empty. is_all: there will be no more."""
    if not answers or not (is_all or len(answers) >= _EMPTY):
        return
    if all(answer.is_cut and not answer.text.strip() for answer in answers):
        raise EndpointError(
            f"all of {len(answers)} answers were cut off before a word of them, expected texts: "
            "the model spends its length on thinking. Raise max_new_tokens, or say "
            "endpoint.extra.reasoning_effort, and name another folder --to, or delete this one"
        )


def retry_after(value: str | None) -> float:
    """Seconds from a Retry-After header: a number, or a date; 0 without one."""
    if not value:
        return 0.0
    try:
        return max(0.0, float(value))
    except ValueError:
        pass
    try:
        return max(0.0, (parsedate_to_datetime(value) - datetime.now(UTC)).total_seconds())
    except (ValueError, TypeError):
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
