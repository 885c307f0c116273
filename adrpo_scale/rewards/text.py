"""Verifiable rewards of language models: the right answer, the required form.

The reference answer is a field of the prompt's row (`answer`). The answer of a completion is the
text inside its last `<answer>…</answer>`, which may hold line breaks.
"""

from __future__ import annotations

import re
from abc import abstractmethod
from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor

from adrpo_scale.core.errors import ConfigError, RewardError
from adrpo_scale.core.settings import setting
from adrpo_scale.core.types import Completion, Prompt
from adrpo_scale.rewards.base import PlainReward, RewardConfig, named

ANSWER = re.compile(r"<answer>(.*?)</answer>", re.DOTALL | re.IGNORECASE)
_INSIDE = r"(?:(?!</?think>|</?answer>).)*"
THINK_THEN_ANSWER = rf"\s*<think>{_INSIDE}</think>\s*<answer>{_INSIDE}</answer>\s*"


def extract_answer(text: str) -> str | None:
    """The text inside the last `<answer>…</answer>`; None without one."""
    found = ANSWER.findall(text)
    return found[-1] if found else None


def normalised(text: str) -> str:
    """The text for comparison: without case, repeated spaces and a full stop at the end."""
    return " ".join(text.split()).strip().rstrip(".").strip().casefold()


def reference_answer(prompt: Prompt, key: str) -> str:
    """The reference answer of a prompt. Raises RewardError where its row has none: no sample could
    be right."""
    if key not in prompt.metadata:
        raise RewardError(
            f"{named(prompt)} has no {key!r} beside its text (it has {sorted(prompt.metadata)}): "
            "add it to the prompt file, or name the right column as rewards.answer_key"
        )
    return str(prompt.metadata[key])


class VerifierConfig(RewardConfig):
    """Settings of rewards that compare with a reference answer."""

    answer_key: str = setting("answer", "under which key the prompt's file has the right answer")


class Verifier(PlainReward):
    """A reward that is 1 where a completion is right by the prompt's reference answer, else 0."""

    def __init__(self, config: VerifierConfig, device: torch.device) -> None:
        super().__init__(config)
        self._key = config.answer_key

    def check(self, prompts: Sequence[Prompt]) -> None:
        for prompt in prompts:
            reference_answer(prompt, self._key)

    def __call__(self, artifacts: Sequence[Completion], prompts: Sequence[Prompt]) -> Tensor:
        pairs = zip(artifacts, prompts, strict=True)
        return torch.tensor([float(self.is_right(c.text, p)) for c, p in pairs])

    @abstractmethod
    def is_right(self, text: str, prompt: Prompt) -> bool:
        """Whether a completion's text answers the prompt."""


class ExactAnswerConfig(VerifierConfig):
    kind: str = setting(
        "exact_answer", "1 where the text inside <answer> is the right answer, else 0"
    )


class ExactAnswer(Verifier):
    """Equality up to case and spaces; 0 where there is no `<answer>`."""

    Config: ClassVar[type[ExactAnswerConfig]] = ExactAnswerConfig

    def is_right(self, text: str, prompt: Prompt) -> bool:
        right = normalised(reference_answer(prompt, self._key))
        answer = extract_answer(text)
        return answer is not None and normalised(answer) == right


class MathVerifyConfig(VerifierConfig):
    kind: str = setting(
        "math_verify", "1 where the answer is mathematically equal to the right one, else 0"
    )


class MathVerify(Verifier):
    """Equality by math-verify of the text inside `<answer>`, or of a completion without one."""

    Config: ClassVar[type[MathVerifyConfig]] = MathVerifyConfig

    def __init__(self, config: MathVerifyConfig, device: torch.device) -> None:
        super().__init__(config, device)
        self._parse, self._verify = _math_verify()

    def is_right(self, text: str, prompt: Prompt) -> bool:
        right = self._parse(reference_answer(prompt, self._key))
        answer = extract_answer(text)
        return bool(self._verify(right, self._parse(text if answer is None else answer)))


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
