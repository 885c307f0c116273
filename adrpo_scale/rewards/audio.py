"""The right option of a multiple-choice question (paper, appendix B.3), in any form that names it.

A prompt's row has the options (`choices`, a list of texts) and the right one's text (`answer`).
`chosen` alone decides which option an answer names, for this reward and for the evaluation on MMAU.
The form of the whole completion is a reward of its own, `format`, so that both are logged apart.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import ClassVar

import torch

from adrpo_scale.core.settings import setting
from adrpo_scale.core.types import Prompt
from adrpo_scale.rewards.answers import Fault, reference_answer
from adrpo_scale.rewards.text import Verifier, VerifierConfig, extract_answer

# Quotes and Markdown's marks around an option, and punctuation at its end. "#", "/" and "-" stay:
# C# is another note than C, 3/4 another time signature than 34.
_AROUND = "\"'`*“”‘’ "
_END = ".,;:!?"
# "b", "(b)", "b.", "b) dog barking"; a letter needs a mark before a text: "a dog" is a text.
_LETTER = re.compile(r"[(\[]?([a-z])[)\].,:;!?]*")
_LETTER_AND_TEXT = re.compile(r"(?:[(\[]([a-z])[)\]][.:]?|([a-z])[).:])\s*(\S.*)")


def option_text(text: str) -> str:
    """The text of an option for comparison: without case, repeated spaces, line breaks, quotes and
    Markdown's marks around it, and punctuation at its end."""
    return " ".join(text.split()).casefold().strip(_AROUND).rstrip(_END + _AROUND)


def chosen(answer: str, choices: Sequence[str]) -> str | None:
    """The option that an answer names, as `option_text`; None where it names none, or contradicts
    itself ("A. cat" where A is the dog).

    An answer is compared with the texts of the options first; then read as a letter ("B", "(b)"),
    by the order of `choices`; then as both ("B. dog barking"). Where an option is itself a letter,
    such as a note of a scale, a letter is only a text. Options of one text are one option.
    """
    written, texts = option_text(answer), [option_text(choice) for choice in choices]
    if written in texts:
        return written or None
    if any(_LETTER.fullmatch(text) for text in texts):
        return None
    plain = " ".join(answer.split()).casefold().strip(_AROUND)
    letter = _LETTER.fullmatch(plain)
    if letter:
        return _of_letter(letter[1], texts)
    both = _LETTER_AND_TEXT.fullmatch(plain)
    if both:
        text = _of_letter(both[1] or both[2], texts)
        return text if text == option_text(both[3]) else None
    return None


def _of_letter(letter: str, texts: Sequence[str]) -> str | None:
    place = ord(letter) - ord("a")
    return texts[place] if place < len(texts) else None


class ChoiceConfig(VerifierConfig):
    kind: str = setting(
        "choice", "1 where <answer> names the right option: by text, letter or both; else 0"
    )
    choices_key: str = setting("choices", "under which key the prompt's file has the options")


class Choice(Verifier):
    """1 where the last `<answer>` names the right option, else 0."""

    Config: ClassVar[type[ChoiceConfig]] = ChoiceConfig

    def __init__(self, config: ChoiceConfig, device: torch.device) -> None:
        super().__init__(config, device)
        self._choices_key = config.choices_key

    def fault_of(self, prompt: Prompt) -> Fault | None:
        """The fault of a prompt's answer or options: no completion could be right."""
        key = self._choices_key
        choices = prompt.metadata.get(key)
        fault = super().fault_of(prompt)
        if fault is not None:
            return fault
        if not isinstance(choices, list | tuple) or not all(isinstance(c, str) for c in choices):
            return Fault(
                "options",
                f"has {key} = {choices!r}, a list of texts is expected",
                "add it to the prompt file, or name the right column as rewards.choices_key",
            )
        right = reference_answer(prompt, self._key)
        if not option_text(right) or option_text(right) not in map(option_text, choices):
            return Fault(
                "none of the options",
                f"cannot be met: its right answer {right!r} is none of its options {choices}",
                f"{self._key!r} is the text of one of them, not its letter or number",
            )
        return None

    def is_right(self, text: str, prompt: Prompt) -> bool:
        answer = extract_answer(text)
        right = option_text(reference_answer(prompt, self._key))
        return answer is not None and chosen(answer, prompt.metadata[self._choices_key]) == right
