"""What an OpenAI-compatible endpoint is asked, and what it answers.

An answer is bounded in depth and in characters: beyond, it is malformed. One that was cut off while
the model was thinking counts as an answer, with an empty text: another attempt would cost as much
and end the same way.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from adrpo_scale.core.errors import ConfigError
from adrpo_scale.core.posting import Again, checked_address, shown_answer
from adrpo_scale.core.secrets import masked

KEY, URL = "OPENAI_API_KEY", "OPENAI_BASE_URL"
DEFAULT_URL = "https://api.openai.com/v1"
PATH = "/chat/completions"
Omissible = Literal["max_tokens", "temperature"]
"""A field that some models refuse."""
_LONGEST = 1_000_000  # characters of an answer; one of 32,000 tokens has a tenth
_HALVES = re.compile("[\ud800-\udfff]")  # of a pair that a server cut; no file takes one alone


@dataclass(frozen=True)
class Answer:
    """An answer. text: may be empty. is_cut: the answer reached the limit of its length."""

    text: str
    is_cut: bool = False


@dataclass(frozen=True)
class Chat:
    """The fields of a request beside its messages. without: of those that it leaves out. extra:
    further fields."""

    model: str
    temperature: float
    max_tokens: int
    without: Sequence[Omissible] = ()
    extra: Mapping[str, Any] | None = None

    def body(self, messages: Sequence[Mapping[str, Any]]) -> bytes:
        fields: dict[str, Any] = {
            "model": self.model,
            "messages": list(messages),
            "temperature": self.temperature,
            "max_tokens": self.max_tokens,
        }
        for refused in self.without:
            fields.pop(refused, None)
        return json.dumps(fields | dict(self.extra or {})).encode()


def base_url(environment: Mapping[str, str] = os.environ) -> str:
    """The part of the address before /chat/completions, from the environment. Raises ConfigError as
    `checked_address`."""
    return checked_address(environment.get(URL) or DEFAULT_URL, URL, KEY)


def require_key(url: str, key: str, name: str) -> None:
    """Raises ConfigError where OpenAI's own endpoint would be asked without a key."""
    if url.startswith(DEFAULT_URL) and not key:
        raise ConfigError(f"{name} is not set: set it, or {URL} to an endpoint without a key")


def answer_of(response: bytes) -> Answer:
    """The answer in a chat completion; raises Again where there is none. A refusal is an answer,
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
        raise Again(f"no chat completion with a text: {shown_answer(response)!r}")
    if len(text) > _LONGEST:
        raise Again(f"a text of {len(text)} characters, expected at most {_LONGEST}")
    return Answer(masked(_HALVES.sub("\ufffd", text)), is_cut)
