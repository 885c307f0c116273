"""How messages name prompts: by id and text, and by the file and line that a person can open."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

from adrpo_scale.core.types import Prompt

_RANGES = 60  # ranges of numbers that a message lists
_NUMBERED = re.compile(r"(.* )?(line|row|entry) (\d+)", re.DOTALL)


def named(prompt: Prompt) -> str:
    """The name of a prompt in errors and logs: its id, the beginning of its text, and its place."""
    place = f" ({prompt.place})" if prompt.place else ""
    return f"prompt {prompt.id} {prompt.text[:80]!r}{place}"


def all_places(prompts: Iterable[Prompt]) -> str:
    """`prompts.jsonl, lines 3-5, 9`: the places of prompts; of those without one the numbers."""
    files: dict[str, set[int]] = {}
    for prompt in prompts:
        found = _NUMBERED.fullmatch(prompt.place)
        key = f"{found[1] or ''}{found[2]}" if found else "prompt"
        files.setdefault(key, set()).add(int(found[3]) if found else prompt.id)
    return "; ".join(f"{_many(key, ids)} {ranges(ids)}" for key, ids in files.items())


def _many(noun: str, ids: Sequence[int] | set[int]) -> str:
    plural = f"{noun[:-1]}ies" if noun.endswith("y") else f"{noun}s"
    return plural if len(ids) > 1 else noun


def ranges(ids: Iterable[int]) -> str:
    """`1-3, 7`: numbers as ranges, the first sixty of them."""
    runs: list[list[int]] = []
    for number in sorted(set(ids)):
        if runs and number == runs[-1][1] + 1:
            runs[-1][1] = number
        else:
            runs.append([number, number])
    shown = [f"{a}" if a == b else f"{a}-{b}" for a, b in runs[:_RANGES]]
    left = sum(b - a + 1 for a, b in runs[_RANGES:])
    return ", ".join(shown) + (f" and {left} more" if left else "")
