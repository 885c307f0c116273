"""A model behind an OpenAI-compatible endpoint as the judge: `kind = "judge"`.

It is asked one question a sample: `template` with the sample's own words in the place of {prompt},
{completion} and {KEY} of the prompt's row, and a picture as an image beside it. `rule` finds the
number in what it answers. An answer without a number, or with one outside `low` and `high`, masks
its sample: another attempt would cost as much, and a model at temperature 0 would repeat it.
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, ClassVar

import numpy as np
from pydantic import field_validator

from adrpo_scale.core.bounds import NUMBER, TOKENS
from adrpo_scale.core.chat_endpoint import (
    KEY,
    PATH,
    URL,
    Chat,
    Omissible,
    answer_of,
    base_url,
    require_key,
)
from adrpo_scale.core.errors import RewardError
from adrpo_scale.core.posting import checked_address
from adrpo_scale.core.secrets import beginning
from adrpo_scale.core.settings import REQUIRED, setting
from adrpo_scale.core.types import Prompt
from adrpo_scale.rewards.answers import Fault, refuse_rows
from adrpo_scale.rewards.asked import Asked, AskedConfig, Question, data_url, seen
from adrpo_scale.rewards.verdicts import Verdict, key_of

RULE = r"<score>\s*([-+]?[0-9]+(?:\.[0-9]+)?)\s*</score>"
_PLACE = re.compile(r"\{\{(\w+)\}\}|\{(\w+)\}")
_OWN = ("prompt", "completion")
_SAID = 500  # characters of an answer that are kept for the reader
_QUOTED = 80  # characters of one in a warning


class JudgeConfig(AskedConfig):
    kind: str = setting("judge", "a model behind an OpenAI-compatible endpoint")
    model: str = setting(REQUIRED, "the model's name at the endpoint", min_length=1)
    url: str | None = setting(
        None,
        "the address before /chat/completions; by default OPENAI_BASE_URL, or else OpenAI's",
        effect="none",
    )
    key: str = setting(
        KEY,
        "environment variable that holds the endpoint's key; empty: none is sent",
        effect="none",
    )
    template: str = setting(
        REQUIRED,
        "the question: {prompt}, {completion} and {KEY} of the prompt's row are put in; a picture "
        "is sent beside it",
        min_length=1,
    )
    system: str = setting("", "the system message; empty: none")
    rule: str = setting(
        RULE,
        "regular expression of the number in the answer, its group if it has one; the last "
        "match counts",
        min_length=1,
    )
    low: float | None = setting(None, "a number below it counts as none", ge=-NUMBER, le=NUMBER)
    high: float | None = setting(None, "a number above it counts as none", ge=-NUMBER, le=NUMBER)
    temperature: float = setting(0.0, "sampling temperature of the judge", ge=0, le=NUMBER)
    max_tokens: int = setting(512, "longest answer, reasoning included", ge=1, le=TOKENS)
    extra: dict[str, Any] = setting({}, "further fields of a request, e.g. reasoning_effort")
    without: list[Omissible] = setting(
        [], "fields to leave out because the model refuses them; see extra for others"
    )

    @field_validator("rule")
    @classmethod
    def _is_an_expression(cls, value: str) -> str:
        try:
            groups = re.compile(value).groups
        except re.error as error:
            raise ValueError(f"no regular expression: {error}") from None
        if groups > 1:
            raise ValueError(
                f"{groups} groups, expected at most one, around the number: write the others (?:…)"
            )
        return value


class Judge(Asked):
    """The number in a model's answer about each sample."""

    Config: ClassVar[type[JudgeConfig]] = JudgeConfig

    def __init__(self, config: JudgeConfig, device: Any) -> None:
        self.config = config
        base = base_url(os.environ) if config.url is None else config.url
        name = URL if config.url is None else f"reward {config.label}: url"
        url = checked_address(base, name, config.key or KEY) + PATH
        super().__init__(config, url, f"the model's name, {config.model!r}")
        self._chat = Chat(
            config.model, config.temperature, config.max_tokens, config.without, config.extra
        )
        self._rule = re.compile(config.rule)
        self._names = {match[2] for match in _PLACE.finditer(config.template) if match[2]}

    def _check_key(self, config: AskedConfig, url: str, key: str) -> None:
        """A key of the usual name may be missing: endpoints of one's own often have none."""
        if config.key == KEY:
            require_key(url, key, KEY)
        else:
            super()._check_key(config, url, key)

    def check(self, prompts: Sequence[Prompt]) -> None:
        for name in sorted(self._names.difference(_OWN)):
            refuse_rows(self.label, prompts, partial(_fault, name))

    def question(self, artifact: Any, prompt: Prompt) -> Question:
        is_picture = isinstance(artifact, np.ndarray)
        if is_picture == ("completion" in self._names):
            raise RewardError(
                f"reward {self.label}: template names {{completion}}, and the samples are "
                "pictures, which are sent beside it: leave it out"
                if is_picture
                else f"reward {self.label}: template does not name {{completion}}, so the judge "
                "would not see what it judges: put it in"
            )
        values = {"prompt": prompt.text, "completion": str(artifact)}
        values |= {name: str(prompt.metadata.get(name)) for name in self._names.difference(_OWN)}
        text = filled(self.config.template, values)
        picture = artifact if is_picture else None
        asked = [self.config.system, text, None if picture is None else seen(picture)]
        return Question(key_of([self._judged_by(), asked]), (text, picture))

    def _judged_by(self) -> dict[str, Any]:
        """All that a verdict depends on beside the sample."""
        names = ("kind", "model", "rule", "low", "high", "temperature", "max_tokens", "extra")
        return {name: getattr(self.config, name) for name in (*names, "without")}

    def body(self, questions: Sequence[Question]) -> bytes:
        ((text, picture),) = (one.content for one in questions)
        content: Any = text
        if picture is not None:
            image = {"type": "image_url", "image_url": {"url": data_url(picture)}}
            content = [image, {"type": "text", "text": text}]
        messages = [{"role": "user", "content": content}]
        if self.config.system:
            messages.insert(0, {"role": "system", "content": self.config.system})
        return self._chat.body(messages)

    def read(self, response: bytes, count: int) -> list[Verdict]:
        answer = answer_of(response)
        said = beginning(answer.text, _SAID)
        number = found(self._rule, answer.text)
        if number is None:
            cut = ", cut off at max_tokens," if answer.is_cut else ""
            return [Verdict(None, f"gave an answer{cut} without a number by its rule", said)]
        low, high = self.config.low, self.config.high
        if (low is not None and number < low) or (high is not None and number > high):
            return [Verdict(None, f"gave a number outside {_shown(low)} to {_shown(high)}", said)]
        return [Verdict(number, "", said)]


def filled(template: str, values: Mapping[str, str]) -> str:
    """The template with each {name} replaced, all at once: a completion that holds {prompt} keeps
    it. {{name}} becomes {name}; other braces stay."""
    return _PLACE.sub(lambda match: values[match[2]] if match[2] else f"{{{match[1]}}}", template)


def found(rule: re.Pattern[str], text: str) -> float | None:
    """The number of the rule's last match, in its group if it has one; None without a match, and
    where that is no finite number."""
    last = None
    for last in rule.finditer(text):  # noqa: B007 (the last one is wanted)
        pass
    if last is None:
        return None
    try:
        number = float(last[rule.groups] or "")
    except ValueError:
        return None
    return number if math.isfinite(number) else None


def _fault(name: str, prompt: Prompt) -> Fault | None:
    """The fault of a prompt whose row lacks what the template names."""
    if prompt.metadata.get(name) is not None:
        return None
    return Fault(
        f"without {name}",
        f"has no {name!r} beside its text (it has {sorted(prompt.metadata)}), which template names",
        f"add it to the prompt file, or write {{{{{name}}}}} for the word in braces",
    )


def _shown(bound: float | None) -> str:
    return "any" if bound is None else f"{bound:g}"
