"""Sets of prompts: their hashes, and the prompts that two of them share.

Two prompts count as the same where they differ only in case, punctuation, spaces or the Unicode
form of characters. A question about a clip is its question with the options in any order.
"""

from __future__ import annotations

import hashlib
import json
import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from adrpo_scale.core.printable import shown
from adrpo_scale.core.types import Prompt

KEY = 12  # hexadecimal digits that stand for a prompt or a set; 48 bits
_BESIDE = re.compile(r"[\W_]+")  # all but letters and digits of any script
_NAMED, _CHARACTERS = 3, 60  # shared prompts in a line, and characters of each


def key_of(prompt: Prompt) -> str:
    """What a prompt is recognised by in other runs: a hash of its text, conversation and clip."""
    asked = [prompt.text, [dict(m) for m in prompt.messages], prompt.metadata.get("audio")]
    return _hash(json.dumps(asked, sort_keys=True, default=str))


def set_hash(keys: Sequence[str]) -> str:
    """A hash of a set of prompts, by their keys; the order does not matter."""
    return _hash("\n".join(sorted(keys)))


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:KEY]


def normalised(prompt: Prompt) -> str:
    """The text by which prompts of two files count as the same."""
    question, choices = prompt.metadata.get("question"), prompt.metadata.get("choices")
    if isinstance(question, str) and isinstance(choices, list | tuple):
        return " | ".join([_plain(question), *sorted(_plain(str(choice)) for choice in choices)])
    if prompt.messages:
        return _plain(" ".join(str(message.get("content")) for message in prompt.messages))
    return _plain(prompt.text)


def _plain(text: str) -> str:
    return _BESIDE.sub(" ", unicodedata.normalize("NFKC", text).casefold()).strip()


@dataclass(frozen=True)
class Overlap:
    """The prompts of `tested` that are also in `trained`. examples: their texts."""

    trained: int
    tested: int
    shared: int
    examples: tuple[str, ...] = ()

    def __str__(self) -> str:
        if not self.shared:
            return f"none of the {self.tested} is among the {self.trained} trained on"
        texts = [shown(text[:_CHARACTERS]) for text in self.examples[:_NAMED]]
        more = ", …" if self.shared > len(texts) else ""
        return (
            f"{self.shared} of {self.tested} are among the {self.trained} trained on, but for case "
            f"and punctuation: {', '.join(texts)}{more}"
        )

    def as_json(self) -> dict[str, Any]:
        return {"trained": self.trained, "tested": self.tested, "shared": self.shared}


def overlap(trained: Sequence[Prompt], tested: Sequence[Prompt]) -> Overlap:
    """How many prompts of `tested` were trained on."""
    known = {normalised(prompt) for prompt in trained}
    shared = [prompt.text for prompt in tested if normalised(prompt) in known]
    return Overlap(len(trained), len(tested), len(shared), tuple(shared[:_NAMED]))
