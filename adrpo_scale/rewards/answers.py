"""Reference answers: what a prompt's row may hold, and which answers equal it.

A reference answer is a text or a number. Rows that hold anything else are refused before a run
begins, all of them in one error: no completion could be right there, or one that says "None" would
be. Numbers are compared as numbers: 46.0 of a file equals "46" and "46.00" of a completion.
"""

from __future__ import annotations

import math
import numbers
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

from adrpo_scale.core.errors import RewardError
from adrpo_scale.core.naming import all_places, named
from adrpo_scale.core.types import Prompt

# A leading zero is part of a name (007), no number; thousands may be set apart by commas.
_WHOLE = r"(?:[1-9][0-9]{0,2}(?:,[0-9]{3})+|[1-9][0-9]*|0)"
_NUMBER = re.compile(rf"[+-]?(?:{_WHOLE}(?:\.[0-9]*)?|\.[0-9]+)(?:[eE][+-]?[0-9]{{1,4}})?")


@dataclass(frozen=True)
class Fault:
    """The fault of one row. kind: equal for rows that share a line of the error. text: follows the
    prompt's name. remedy: follows a colon."""

    kind: str
    text: str
    remedy: str


def normalised(text: str) -> str:
    """The text for comparison: without case, repeated spaces and a full stop at the end."""
    return " ".join(text.split()).strip().rstrip(".").strip().casefold()


def number_in(text: str) -> Decimal | None:
    """The number that the whole text is; None where it is none, as "007" and "4 6"."""
    plain = text.strip().replace("−", "-")
    return Decimal(plain.replace(",", "")) if _NUMBER.fullmatch(plain) else None


def is_same(answer: str, right: str) -> bool:
    """Whether two texts are equal, as numbers where both are numbers. A text without anything in it
    equals none."""
    one, two = normalised(answer), normalised(right)
    if not two:
        return False
    value = number_in(two)
    return one == two or (value is not None and number_in(one) == value)


def fault_in(prompt: Prompt, key: str) -> Fault | None:
    """The fault of a prompt's reference answer; None where it is a text or a number."""
    elsewhere = "or name the right column as rewards.answer_key"
    if key not in prompt.metadata:
        return Fault(
            "missing",
            f"has no {key!r} beside its text (it has {sorted(prompt.metadata)})",
            f"add it to the prompt file, {elsewhere}",
        )
    value = prompt.metadata[key]
    what = _no_answer(value)
    if what is None:
        return None
    remedy = "give the row its answer, or leave the row out"
    if isinstance(value, list | tuple | Mapping):
        remedy = f"give the row one text or number, {elsewhere}"
    shown = f"has {key} = {_shown(value)}" + ("" if value is None else f", {what}")
    return Fault(what, f"{shown}, where a text or a number is expected", remedy)


def _no_answer(value: Any) -> str | None:
    """What a value is that cannot be a reference answer; None where it can."""
    if value is None:
        return "null"
    if isinstance(value, str):
        return None if value.strip() else "empty"
    if isinstance(value, list | tuple):
        return "a list"
    if isinstance(value, Mapping):
        return "a dictionary"
    if isinstance(value, numbers.Real | Decimal):
        return None if math.isfinite(value) else "not finite"
    return f"of type {type(value).__name__}"


def reference_answer(prompt: Prompt, key: str) -> str:
    """The reference answer of a prompt as text, 46.0 as "46". Raises RewardError where its row has
    none: no sample could be right."""
    fault = fault_in(prompt, key)
    if fault is not None:
        raise RewardError(f"{named(prompt)} {fault.text}: {fault.remedy}")
    value = prompt.metadata[key]
    is_whole = isinstance(value, numbers.Real) and not isinstance(value, bool)
    return str(int(value)) if is_whole and value == int(value) else str(value)


def refuse_rows(
    label: str, prompts: Sequence[Prompt], fault_of: Callable[[Prompt], Fault | None]
) -> None:
    """Raises RewardError where prompts have faults, with a line for each kind of fault. It names
    the first such prompt in full and the others by their places."""
    lines = refused_rows(prompts, fault_of)
    if lines:
        raise RewardError("\n".join(f"reward {label}: {line}" for line in lines))


def refused_rows(
    prompts: Sequence[Prompt], fault_of: Callable[[Prompt], Fault | None]
) -> list[str]:
    """The lines of `refuse_rows`; [] where all prompts are fine."""
    found: dict[str, list[tuple[Prompt, Fault]]] = {}
    for prompt in prompts:
        fault = fault_of(prompt)
        if fault is not None:
            found.setdefault(fault.kind, []).append((prompt, fault))
    lines = []
    for (first, fault), *others in found.values():
        same = all_places(prompt for prompt, _ in others)
        more = f"; the same holds for {same}" if others else ""
        lines.append(f"{named(first)} {fault.text}{more}: {fault.remedy}")
    return lines


def _shown(value: Any) -> str:
    text = "null" if value is None else repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."
