"""Rewards that ask a server over HTTP: the base of `judge` and `http`.

A process has at most `requests.at_once` requests under way, and a call ends within `call_seconds`
whatever the server does. A sample without an answer is masked, named in the log and counted in the
metric `info_NAME_failed`. Verdicts are kept in the run's folder (`rewards.verdicts`): a start that
resumes gives the same samples the same numbers, without the server. The key comes from the
environment alone.
"""

from __future__ import annotations

import base64
import hashlib
import io
import math
import re
import time
from abc import abstractmethod
from collections.abc import Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image
from pydantic import field_validator

from adrpo_scale.core import watchdog
from adrpo_scale.core.bounds import WAIT
from adrpo_scale.core.errors import ConfigError, EndpointError
from adrpo_scale.core.posting import Client, RequestsConfig, Unanswered
from adrpo_scale.core.secrets import keep, read_key
from adrpo_scale.core.settings import setting
from adrpo_scale.core.types import Prompt
from adrpo_scale.rewards.base import PlainReward, RewardConfig
from adrpo_scale.rewards.calls import Scores
from adrpo_scale.rewards.verdicts import Verdict, Verdicts

_STEP = 1.0  # seconds between two beats of the watchdog
_VARIABLE = re.compile(r"[A-Z_][A-Z0-9_]*|")


class AskedConfig(RewardConfig):
    key: str = setting(
        "", "environment variable that holds the server's key; empty: none is sent", effect="none"
    )
    call_seconds: float = setting(
        600.0,
        "seconds for a call on a chunk of samples; those without an answer by then are masked",
        effect="none",
        gt=0,
        le=WAIT,
    )
    requests: RequestsConfig = setting(RequestsConfig(), "how the server is asked")

    @field_validator("key")
    @classmethod
    def _is_a_name(cls, value: str) -> str:
        if not _VARIABLE.fullmatch(value):
            keep(value)  # the error shows the value, and it may be the key itself
            raise ValueError(
                "expected the name of an environment variable, in capital letters, such as "
                "JUDGE_API_KEY: keys stand in no config"
            )
        return value


@dataclass(frozen=True)
class Question:
    """What a server is asked about one sample. content: the sample's part of a request."""

    key: str
    content: Any


class Asked(PlainReward):
    """A reward that asks a server; see the module docstring."""

    asks_server = True

    def __init__(self, config: AskedConfig, url: str, advice: str, per_request: int = 1) -> None:
        """url: the whole address. per_request: samples of one request. Raises ConfigError for a key
        that is named and not there."""
        super().__init__(config)
        self._per_request = per_request
        self.call_seconds, self._requests = config.call_seconds, config.requests
        key = read_key(config.key) if config.key else ""
        self._check_key(config, url, key)
        advice = f"Check the address{f', {config.key}' if config.key else ''} and {advice}"
        self._client = Client(url, key, config.requests, advice)
        self._verdicts: Verdicts | None = None

    def _check_key(self, config: AskedConfig, url: str, key: str) -> None:
        if config.key and not key:
            raise ConfigError(
                f"reward {config.label}: key = {config.key!r}, and that variable is not set: set "
                'it, or key = "" for a server without one'
            )

    @abstractmethod
    def question(self, artifact: Any, prompt: Prompt) -> Question:
        """The question about one sample. Raises RewardError where none can be asked."""

    @abstractmethod
    def body(self, questions: Sequence[Question]) -> bytes:
        """A request about as many samples as one request has, or fewer."""

    @abstractmethod
    def read(self, response: bytes, count: int) -> list[Verdict]:
        """The verdicts in an answer about `count` samples. Raises Again for a malformed one."""

    def __call__(self, artifacts: Sequence[Any], prompts: Sequence[Prompt]) -> Scores:
        if self._verdicts is None:
            self._verdicts = Verdicts(self.record)
        known = self._verdicts
        asked = [self.question(*pair) for pair in zip(artifacts, prompts, strict=True)]
        new = {one.key: one for one in asked if known.get(one.key) is None}
        lost = self._ask([*new.values()], known) if new else {}
        found = [lost.get(one.key) or known.get(one.key) for one in asked]
        self.is_deserted = bool(lost) and len(lost) == len(new)
        return _scores([one for one in found if one is not None])

    def _ask(self, questions: Sequence[Question], known: Verdicts) -> dict[str, Verdict]:
        """Asks, and keeps what is answered; returns a fault for each question without an answer."""
        until = time.monotonic() + self.call_seconds
        size = self._per_request
        units = [questions[k : k + size] for k in range(0, len(questions), size)]
        lost: dict[str, Verdict] = {}
        pool = ThreadPoolExecutor(self._requests.at_once)
        try:
            waiting = {pool.submit(self._verdicts_on, unit, until): unit for unit in units}
            while waiting and time.monotonic() < until:
                # A server within its time is no hang of this process.
                watchdog.beat()
                left = max(0.0, min(_STEP, until - time.monotonic()))
                for done in wait(waiting, left, FIRST_COMPLETED).done:
                    lost |= self._taken(done, waiting.pop(done), known)
            late = f"got no answer within call_seconds = {self.call_seconds:g}"
            lost |= {one.key: Verdict(None, late) for unit in waiting.values() for one in unit}
        except BaseException:
            self._client.give_up()
            raise
        finally:
            pool.shutdown(wait=False, cancel_futures=True)
        return lost

    def _verdicts_on(self, unit: Sequence[Question], until: float) -> list[Verdict]:
        def read(answer: bytes) -> list[Verdict]:
            return self.read(answer, len(unit))

        return self._client.post(self.body(unit), read, until)

    def _taken(
        self, done: Future[list[Verdict]], unit: Sequence[Question], known: Verdicts
    ) -> dict[str, Verdict]:
        """Keeps the verdicts of a request; returns a fault for each of its questions where it got
        no answer."""
        try:
            known.add({one.key: given for one, given in zip(unit, done.result(), strict=True)})
            return {}
        except Unanswered as error:
            tries = "" if error.attempts is None else f" ({error.attempts} tries)"
            fault = Verdict(None, f"got no answer{tries}: {error}")
        except EndpointError as error:
            fault = Verdict(None, f"got no answer: {error}")
        return {one.key: fault for one in unit}


def _scores(verdicts: Sequence[Verdict]) -> Scores:
    failed = [bool(one.fault) for one in verdicts]
    values = [math.nan if one.value is None else one.value for one in verdicts]
    abstained = [one.value is None and not one.fault for one in verdicts]
    return Scores(
        torch.tensor(values, dtype=torch.float64),
        torch.tensor(abstained),
        {"failed": (float(sum(failed)), len(failed))},
        tuple(one.fault for one in verdicts),
    )


def seen(picture: np.ndarray) -> str:
    """The hash of a uint8 picture [H, W, C]: PNG's bytes differ with the library's version."""
    head = f"{picture.dtype} {picture.shape} ".encode()
    return hashlib.sha256(head + np.ascontiguousarray(picture).tobytes()).hexdigest()


def data_url(picture: np.ndarray) -> str:
    """A uint8 picture [H, W, 3] as a data URL that holds it as PNG."""
    buffer = io.BytesIO()
    Image.fromarray(picture).save(buffer, "PNG")
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()
