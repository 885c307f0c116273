"""Verifiable rewards of language models: the right answer, the required form.

The reference answer is a field of the prompt's row (`answer`). The answer of a completion is the
text inside its last `<answer>…</answer>`, which may hold line breaks.
"""

from __future__ import annotations

import logging
import re
from abc import abstractmethod
from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor

from adrpo_scale.core import watchdog
from adrpo_scale.core.bounds import WAIT
from adrpo_scale.core.errors import ConfigError
from adrpo_scale.core.settings import setting
from adrpo_scale.core.types import Completion, Prompt
from adrpo_scale.rewards.answers import (
    Fault,
    fault_in,
    is_same,
    normalised,
    reference_answer,
    refuse_rows,
    refused_rows,
)
from adrpo_scale.rewards.base import PlainReward, RewardConfig

log = logging.getLogger(__name__)

_OPEN, _CLOSE = (re.compile(tag, re.IGNORECASE) for tag in ("<answer>", "</answer>"))
_INSIDE = r"(?:(?!</?think>|</?answer>).)*"
THINK_THEN_ANSWER = rf"\s*<think>{_INSIDE}</think>\s*<answer>{_INSIDE}</answer>\s*"
_COMMAND = re.compile(r"\\[A-Za-z]+")
_WORD = re.compile(r"[A-Za-z]{2}")
GIVE = "give the row its answer, or leave the row out"


def extract_answer(text: str) -> str | None:
    """The text inside the last `<answer>…</answer>`; None without one."""
    # One pass: a pattern for both tags searches the rest of the text for every tag that is open,
    # and takes seconds for a model that repeats itself.
    answer, place = None, 0
    while (begin := _OPEN.search(text, place)) and (end := _CLOSE.search(text, begin.end())):
        answer, place = text[begin.end() : end.start()], end.end()
    return answer


class VerifierConfig(RewardConfig):
    """Settings of rewards that compare with a reference answer."""

    answer_key: str = setting("answer", "under which key the prompt's file has the right answer")


class Verifier(PlainReward):
    """A reward that is 1 where a completion is right by the prompt's reference answer, else 0."""

    judges = ("completions",)
    check_keeps_nothing = True

    def __init__(self, config: VerifierConfig, device: torch.device) -> None:
        super().__init__(config)
        self._key = config.answer_key
        self._hopeless: set[int] = set()  # prompts of a run of before for which nothing is right

    def check(self, prompts: Sequence[Prompt]) -> None:
        """Refuses prompts without an answer, all at once. A run that resumes may have begun before
        its answers were checked: there they are named in the log, and their samples get 0."""
        if not self.resumes:
            refuse_rows(self.label, prompts, self.fault_of)
            return
        for line in refused_rows(prompts, self.fault_of):
            log.warning("reward %s is 0 where nothing can be right: %s", self.label, line)
        self._hopeless = {prompt.id for prompt in prompts if self.fault_of(prompt) is not None}

    def fault_of(self, prompt: Prompt) -> Fault | None:
        """Why no completion could be right for a prompt; None where one could."""
        return fault_in(prompt, self._key)

    def __call__(self, artifacts: Sequence[Completion], prompts: Sequence[Prompt]) -> Tensor:
        pairs = zip(artifacts, prompts, strict=True)
        return torch.tensor([float(self._is_paid(c.text, p)) for c, p in pairs])

    def _is_paid(self, text: str, prompt: Prompt) -> bool:
        return prompt.id not in self._hopeless and self.is_right(text, prompt)

    @abstractmethod
    def is_right(self, text: str, prompt: Prompt) -> bool:
        """Whether a completion's text answers the prompt."""


class ExactAnswerConfig(VerifierConfig):
    kind: str = setting(
        "exact_answer", "1 where the text inside <answer> is the right answer, else 0"
    )


class ExactAnswer(Verifier):
    """Equality up to case and spaces, of numbers as numbers; 0 where there is no `<answer>`."""

    Config: ClassVar[type[ExactAnswerConfig]] = ExactAnswerConfig

    def fault_of(self, prompt: Prompt) -> Fault | None:
        fault = super().fault_of(prompt)
        if fault is None and not normalised(reference_answer(prompt, self._key)):
            shown = f"{self._key} = {prompt.metadata[self._key]!r}"
            return Fault("punctuation", f"has {shown}, of which a comparison leaves nothing", GIVE)
        return fault

    def is_right(self, text: str, prompt: Prompt) -> bool:
        right, answer = reference_answer(prompt, self._key), extract_answer(text)
        return answer is not None and is_same(answer, right)


class MathVerifyConfig(VerifierConfig):
    kind: str = setting(
        "math_verify", "1 where the answer is mathematically equal to the right one, else 0"
    )
    time_limit: float | None = setting(
        30.0,
        "seconds for a call on a chunk of samples, in a process of its own: nothing else ends a "
        "comparison of huge numbers",
        before=30.0,
        effect="none",
        gt=0,
        le=WAIT,
    )


class MathVerify(Verifier):
    """Equality by math-verify of the text inside `<answer>`, or of a completion without one."""

    Config: ClassVar[type[MathVerifyConfig]] = MathVerifyConfig
    needs_modules = ("math_verify",)

    def __init__(self, config: MathVerifyConfig, device: torch.device) -> None:
        super().__init__(config, device)
        self._parse, self._verify = _math_verify()
        self._readable: dict[str, bool] = {}  # by reference answer

    def fault_of(self, prompt: Prompt) -> Fault | None:
        fault = super().fault_of(prompt)
        if fault is not None:
            return fault
        right = reference_answer(prompt, self._key)
        if right not in self._readable:
            watchdog.beat()
            self._readable[right] = bool(self._read(right))
        if self._readable[right]:
            return None
        shown = f"{self._key} = {right!r}"
        what = "has {}, in which math-verify finds no number and no formula".format
        return Fault("unreadable", what(shown), f'{GIVE}; "exact_answer" compares texts')

    def is_right(self, text: str, prompt: Prompt) -> bool:
        right = self._read(reference_answer(prompt, self._key))
        answer = extract_answer(text)
        found = self._parse(text) if answer is None else self._read(answer)
        return bool(self._verify(right, found))

    def _read(self, answer: str) -> list[Any]:
        """What math-verify reads in an answer. It takes a formula for one only between marks: what
        it reads nothing in and has no words, as x+1, is read again between them."""
        found: list[Any] = self._parse(answer)
        if not found and not _WORD.search(_COMMAND.sub("", answer)) and answer.strip():
            found = self._parse(f"${answer}$")
        return found


def _math_verify() -> tuple[Callable[..., Any], Callable[..., Any]]:
    try:
        from math_verify import parse, verify
    except ImportError as error:
        raise ConfigError(
            'rewards.kind = "math_verify", but math_verify cannot be imported '
            f"({error}): pip install 'adrpo_scale[math]'"
        ) from error
    return parse, verify


class FormatConfig(RewardConfig):
    kind: str = setting("format", "1 where the whole completion has a form, else 0")
    pattern: str = setting(
        THINK_THEN_ANSWER,
        "regular expression for the whole completion, a dot also matches a line break; the default "
        "is one <think>…</think>, then one <answer>…</answer>",
    )


class Format(PlainReward):
    """1 where the whole completion matches `pattern`, else 0."""

    Config: ClassVar[type[FormatConfig]] = FormatConfig
    judges = ("completions",)

    def __init__(self, config: FormatConfig, device: torch.device) -> None:
        super().__init__(config)
        try:
            self._pattern = re.compile(config.pattern, re.DOTALL)
        except re.error as error:
            raise ConfigError(
                f"rewards.pattern = {config.pattern!r} is no regular expression: {error}"
            ) from error

    def __call__(self, artifacts: Sequence[Completion], prompts: Sequence[Prompt]) -> Tensor:
        return torch.tensor([float(bool(self._pattern.fullmatch(c.text))) for c in artifacts])
