"""How much of the prompts an encoder reads: what is beyond its length is cut without an error.

CLIP reads 77 tokens, T5 as many as it is told. A cut is a fact of the prompt and the tokenizer, so
it is found without a model, also where embeddings come from a cache. Two prompts whose tokens are
equal for every encoder, after the cut, have one embedding.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from adrpo_scale.core.naming import all_places, named
from adrpo_scale.core.pace import Pace
from adrpo_scale.core.types import Prompt

log = logging.getLogger(__name__)

Tokenize = Callable[[list[str]], Sequence[Sequence[int]]]
"""Token ids of texts, special tokens included, of any length."""

_AT_ONCE = 1000  # texts between two steps of the loop
_NAMED = 3  # prompts in a warning
# Notices of the libraries, which say neither which prompt nor how many.
_NOTICES = ("The following part of your input was truncated", "Token indices sequence length")
_LOUD = (
    "diffusers.pipelines.stable_diffusion_3.pipeline_stable_diffusion_3",
    "transformers.tokenization_utils_base",
)


@dataclass(frozen=True)
class Encoder:
    """A reader of prompts. limit: the tokens that it reads, special ones included. remedy: what
    makes it read more."""

    name: str
    limit: int
    tokenize: Tokenize
    remedy: str = "shorten them"


@dataclass(frozen=True)
class Reading:
    """What one encoder reads. cut: id → tokens of each prompt that it does not read whole."""

    name: str
    limit: int
    cut: Mapping[int, int]
    remedy: str


@dataclass(frozen=True)
class Readings:
    """What all encoders of one model read of the prompts of a run. who: the model, in words.
    prompts: id → prompt. alike: ids of prompts that are different and the same for every encoder,
    by group."""

    who: str
    prompts: Mapping[int, Prompt]
    encoders: tuple[Reading, ...]
    alike: tuple[tuple[int, ...], ...]

    def as_json(self) -> dict[str, Any]:
        """For a file: by encoder its limit and the tokens of each prompt that is cut."""
        encoders = {
            each.name: {"limit": each.limit, "cut": {str(i): n for i, n in each.cut.items()}}
            for each in self.encoders
        }
        alike = [list(group) for group in self.alike]
        told = {i for each in self.encoders for i in each.cut}.union(*self.alike)
        places = {str(i): self.prompts[i].place for i in sorted(told)}
        facts = {"prompts": len(self.prompts), "encoders": encoders, "alike": alike}
        return facts | {"places": places}

    def warnings(self) -> list[str]:
        """One line for all encoders that cut the same prompts, and one for prompts that are
        alike."""
        lines, same = [], dict[tuple[Any, ...], list[Reading]]()
        for each in self.encoders:
            if each.cut:
                same.setdefault((each.limit, *each.cut.items()), []).append(each)
        for group in same.values():
            names, first = " and ".join(each.name for each in group), group[0]
            longest = max(first.cut.values())
            lines.append(
                f"{len(first.cut)} of {len(self.prompts)} prompts are cut: {names} of {self.who} "
                f"read{'s' * (len(group) == 1)} {first.limit} tokens, the longest has {longest} "
                f"({self._named(list(first.cut))}): {first.remedy}"
            )
        if self.alike:
            lines.append(
                f"{_sharing(self.alike)} of {self.who}, because their tokens are equal after the "
                f"cut ({self._named(self.alike[0])}): write what tells them apart first"
            )
        return lines

    def _named(self, ids: Sequence[int]) -> str:
        names = "; ".join(named(self.prompts[i]) for i in ids[:_NAMED])
        more = all_places(self.prompts[i] for i in ids[_NAMED:])
        return f"{names}; and {more}" if more else names


def _sharing(groups: Sequence[Sequence[int]]) -> str:
    """ "5 different prompts share 2 embeddings"."""
    many = "s" * (len(groups) > 1)
    return f"{sum(map(len, groups))} different prompts share {len(groups)} embedding{many}"


def read_prompts(who: str, encoders: Sequence[Encoder], prompts: Sequence[Prompt]) -> Readings:
    """What the encoders read of the prompts' texts."""
    texts = {prompt.id: prompt.text for prompt in prompts}
    different = list(dict.fromkeys(texts.values()))
    lengths: list[dict[str, int]] = []
    seen = {text: hashlib.sha256() for text in different}
    for encoder in encoders:
        found = lengths_of(encoder, different, seen)
        lengths.append(found)
    readings = []
    for encoder, found in zip(encoders, lengths, strict=True):
        cut = {i: found[text] for i, text in texts.items() if found[text] > encoder.limit}
        readings.append(Reading(encoder.name, encoder.limit, cut, encoder.remedy))
    return Readings(who, {p.id: p for p in prompts}, tuple(readings), _alike(texts, seen))


def lengths_of(encoder: Encoder, texts: Sequence[str], seen: Mapping[str, Any]) -> dict[str, int]:
    """Tokens of each text; adds what the encoder sees of it to its hash in `seen`."""
    found = {}
    pace = Pace(f"counting tokens of {encoder.name}", len(texts), "prompts")
    with without_notices():
        for start in range(0, len(texts), _AT_ONCE):
            some = list(texts[start : start + _AT_ONCE])
            for text, ids in zip(some, encoder.tokenize(some), strict=True):
                found[text] = len(ids)
                # A cut keeps the end token in the last place.
                seen[text].update(f"{list(ids[: encoder.limit - 1])};".encode())
            pace.step(len(some))
    return found


def _alike(texts: Mapping[int, str], seen: Mapping[str, Any]) -> tuple[tuple[int, ...], ...]:
    """Groups of ids whose texts differ and are the same to every encoder."""
    groups: dict[bytes, dict[str, int]] = {}
    for i, text in texts.items():
        groups.setdefault(seen[text].digest(), {}).setdefault(text, i)
    return tuple(tuple(group.values()) for group in groups.values() if len(group) > 1)


@contextmanager
def without_notices() -> Iterator[None]:
    """A context without the libraries' own notices of cut texts: they flood the screen and name
    neither prompt nor number."""
    loggers = [logging.getLogger(name) for name in _LOUD]
    for logger in loggers:
        logger.addFilter(_is_other)
    try:
        yield
    finally:
        for logger in loggers:
            logger.removeFilter(_is_other)


def _is_other(record: logging.LogRecord) -> bool:
    return not record.getMessage().startswith(_NOTICES)
