"""An OpenAI-compatible endpoint with audio input as the model that answers; standard library alone.

Address and key come from OPENAI_BASE_URL and OPENAI_API_KEY; `core.posting` asks, and says which
errors are tried again. Errors that would meet every question end the evaluation at once; other
errors leave their question unanswered. Obtained answers are always kept.
"""

from __future__ import annotations

import base64
import io
import logging
import os
import wave
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from adrpo_scale.core.chat_endpoint import (
    KEY,
    PATH,
    URL,
    Answer,
    Chat,
    answer_of,
    base_url,
    require_key,
)
from adrpo_scale.core.errors import ClipError, EndpointError
from adrpo_scale.core.posting import Client, Unanswered
from adrpo_scale.core.secrets import read_key
from adrpo_scale.data.clips import SAMPLE_RATE, Samples, read_clip
from adrpo_scale.evaluation.mmau.base import MmauConfig, Question

log = logging.getLogger(__name__)

_IN_A_ROW = 8  # unanswered questions in a row that end the evaluation
_EMPTY = 8  # answers, all cut off and empty, that end the evaluation


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
        self.name, self._at_once = name, config.endpoint.at_once
        self.url, self._key = base_url(environment) + PATH, read_key(KEY, environment)
        self._chat = Chat(
            name,
            config.temperature,
            config.max_new_tokens,
            config.endpoint.without,
            config.endpoint.extra,
        )
        advice = f"Check {URL}, {KEY} and the model's name, {name!r}"
        self._client = Client(self.url, self._key, config.endpoint, advice)
        self._failed_in_a_row = 0

    def answers(self, questions: Sequence[Question]) -> list[Answer | None]:
        """Raises EndpointError where the endpoint answers no question at all."""
        require_key(self.url, self._key, KEY)
        with ThreadPoolExecutor(self._at_once) as pool:
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
        return self._chat.body([{"role": "user", "content": content}])

    def _answer(self, question: Question) -> Answer | None:
        """Asks one question, with all its attempts; None where all fail."""
        try:
            answer = self._client.post(self._body(question, read_clip(*question.clip)), answer_of)
        except Unanswered as error:
            if error.attempts is None:
                log.warning("question %s is left out: %s", question.id, error)
            else:
                log.warning("question %s: %d tries; %s", question.id, error.attempts, error)
            return None
        except ClipError as error:
            log.warning("question %s is left out: %s", question.id, error)
            return None
        if not answer.text.strip():
            log.warning("question %s: no text; it counts as wrong", question.id)
        return answer


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


def wav(samples: Samples) -> bytes:
    """A 16-bit mono wav file of float samples in [-1, 1] at 16 kHz."""
    buffer = io.BytesIO()
    with wave.open(buffer, "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(SAMPLE_RATE)
        file.writeframes((samples * 32767).round().astype("<i2").tobytes())
    return buffer.getvalue()
