"""Requests to an HTTP server that answers questions: a model behind an endpoint, a judge, a scorer.

Errors that may pass (408, 409, 425, 429, 5xx, a broken connection, a malformed answer) are tried
again after waits that double, or after the time in Retry-After. Others are not: `EndpointError`
where every request would meet the same error, `Unanswered` where this one alone does. An answer is
bounded in bytes and seconds (see `bounded_http`). The key comes from the environment alone and is
in no message, whoever repeats it.
"""

from __future__ import annotations

import http.client
import math
import random
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import ClassVar, TypeVar
from urllib.parse import urlsplit

from adrpo_scale.core.bounded_http import bounded_opener, read_body
from adrpo_scale.core.bounds import AT_ONCE, WAIT
from adrpo_scale.core.errors import ConfigError, EndpointError
from adrpo_scale.core.secrets import beginning, masked
from adrpo_scale.core.settings import Effect, Section, setting

T = TypeVar("T")

_PASSES = {408, 409, 425, 429}  # statuses that may pass; so may every 5xx
_HOPELESS = {301, 302, 303, 307, 308, 401, 402, 403, 404, 405}  # would meet every request
_READ = 1 << 16  # bytes of an error's text
_SHOWN = 300  # characters of it in a message


class RequestsConfig(Section):
    """How a server is asked."""

    EFFECT: ClassVar[Effect] = "none"

    at_once: int = setting(4, "concurrent requests of a process", ge=1, le=AT_ONCE)
    timeout_seconds: float = setting(
        120.0, "time to wait for the whole answer, in seconds", gt=0, le=WAIT
    )
    attempts: int = setting(
        6, "attempts at one question, the first included", ge=1, le=100
    )  # each wait is twice the last
    first_wait_seconds: float = setting(
        2.0, "seconds before the second attempt; doubled before each further one", ge=0, le=WAIT
    )
    longest_wait_seconds: float = setting(
        120.0, "longest such wait, also by Retry-After, in seconds", ge=0, le=WAIT
    )


class Again(Exception):
    """An error that may pass. seconds: the time in Retry-After."""

    def __init__(self, reason: str, seconds: float = 0.0) -> None:
        super().__init__(reason)
        self.seconds = seconds


class Unanswered(Exception):
    """A request got no answer. attempts: how often it was sent, None where the server refused this
    one request, which another attempt would not change."""

    def __init__(self, reason: str, attempts: int | None = None) -> None:
        super().__init__(reason)
        self.attempts = attempts


class Client:
    """Sends requests to one address. Its methods may be called by several threads."""

    def __init__(self, url: str, key: str, config: RequestsConfig, advice: str) -> None:
        """key: "" for none. advice: the end of an error that every request would meet."""
        self.url, self._key, self._config, self._advice = url, key, config, advice
        self._opener = bounded_opener()
        self._is_over = threading.Event()

    def give_up(self) -> None:
        """Ends all waits between attempts, for good."""
        self._is_over.set()

    def post(self, body: bytes, read: Callable[[bytes], T], until: float = math.inf) -> T:
        """What `read` makes of the answer to a JSON body, with all attempts. read: raises Again for
        a malformed answer. until: the moment by `time.monotonic` at which the last attempt ends.
        Raises Unanswered, or EndpointError."""
        settings, reason = self._config, "there was no time left"
        for attempt in range(settings.attempts):
            left = until - time.monotonic()
            if left <= 0 or self._is_over.is_set():
                raise Unanswered(reason, attempt)
            try:
                return self._send(body, read, min(settings.timeout_seconds, left))
            except Again as error:
                reason, asked = str(error), error.seconds
            if attempt + 1 < settings.attempts:
                wait = max(settings.first_wait_seconds * 2**attempt, asked)
                # Random: processes that were refused together would return together.
                wait = min(wait * (1 + random.random() / 4), settings.longest_wait_seconds)
                self._is_over.wait(min(wait, max(0.0, until - time.monotonic())))
        raise Unanswered(reason, settings.attempts)

    def _send(self, body: bytes, read: Callable[[bytes], T], seconds: float) -> T:
        headers = {"Content-Type": "application/json"}
        headers |= {"Authorization": f"Bearer {self._key}"} if self._key else {}
        request = urllib.request.Request(self.url, body, headers, method="POST")
        try:
            with self._opener.open(request, timeout=seconds) as response:
                return read(read_body(response))
        except urllib.error.HTTPError as error:
            raise self._judged(error) from None
        except (OSError, http.client.HTTPException) as error:  # URLError and time-outs are OSErrors
            raise Again(masked(f"{self.url}: {type(error).__name__}: {error}")) from None

    def _judged(self, error: urllib.error.HTTPError) -> Exception:
        """The exception for an HTTP status: Again, Unanswered or EndpointError."""
        with error:
            try:
                text = shown_answer(read_body(error, _READ))
            except (OSError, http.client.HTTPException):
                text = ""
        reason = masked(f"{self.url} says {error.code}: {text or error.reason}")
        if error.code in _PASSES or error.code >= 500:
            return Again(reason, retry_after(error.headers.get("Retry-After")))
        if error.code in _HOPELESS:
            return EndpointError(f"{reason}\n{self._advice}")
        return Unanswered(reason)


def shown_answer(response: bytes) -> str:
    """The beginning of an answer, for a message; some servers repeat the key."""
    return beginning(response[:_READ].decode(errors="replace"), _SHOWN)


def checked_address(url: str, name: str, key: str) -> str:
    """An address without its last "/". Raises ConfigError where it is no http address, or holds
    more than host and path: it is recorded and shown, so it must hold no key.

    name: of the variable or setting that holds it. key: of the variable that a key belongs in."""
    if not url.startswith(("http://", "https://")):
        raise ConfigError(f"{name} begins with {url[:4]!r}: expected http://... or https://...")
    parts = urlsplit(url)
    if "@" in parts.netloc or parts.query or parts.fragment:
        raise ConfigError(
            f"{name}, at {parts.netloc.rpartition('@')[2]}, holds a user, a password or a "
            f"query; expected https://HOST/PATH alone, and the key in {key}"
        )
    return url.rstrip("/")


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
