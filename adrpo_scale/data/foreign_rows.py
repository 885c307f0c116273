"""Rows that others wrote, at the door: what no file, no reward and no decoder takes is refused.

names    of clips and videos: no control characters, inside the folder that they are relative to
values   no half of a surrogate pair, which JSON may hold and no file takes; no nan
JSON     no deeper than DEEPEST, so that whatever walks through a row may call itself
"""

from __future__ import annotations

import json
import math
import os
import re
from pathlib import Path
from typing import Any

DEEPEST = 100  # lists and objects inside each other
_CONTROLS = re.compile("[\x00-\x1f\x7f-\x9f\ud800-\udfff]")
_HALVES = re.compile("[\ud800-\udfff]")


def parse_row(text: str) -> Any:
    """The value of a JSON text. Raises ValueError, of which JSONDecodeError names the place."""
    try:
        value = json.loads(text)
    except RecursionError:
        raise ValueError(_TOO_DEEP) from None
    if text.count("[") + text.count("{") > DEEPEST and _is_deep(value):
        raise ValueError(_TOO_DEEP)
    return value


_TOO_DEEP = f"lists and objects are nested more than {DEEPEST} deep"


def _is_deep(value: Any) -> bool:
    level = [value]
    for _ in range(DEEPEST):
        inside = [_inside(each) for each in level]
        level = [each for values in inside for each in values]
        if not level:
            return False
    return any(isinstance(each, dict | list) for each in level)


def _inside(value: Any) -> list[Any]:
    return (
        [*value.values()] if isinstance(value, dict) else value if isinstance(value, list) else []
    )


def check_values(value: Any, where: str = "the row") -> None:
    """Raises ValueError for half of a surrogate pair in any text or key of a row, and for a number
    that is not finite."""
    if isinstance(value, str):
        if _HALVES.search(value):
            raise ValueError(
                f"{where} has half of a surrogate pair, {value[:80]!r}, which is no text: it was "
                "cut inside a character"
            )
    elif isinstance(value, dict):
        for key, each in value.items():
            check_values(key, f"a key of {where}")
            check_values(each, repr(key))
    elif isinstance(value, list):
        for each in value:
            check_values(each, where)
    elif isinstance(value, float) and not math.isfinite(value):
        raise ValueError(f"{where} is {value}, expected a finite number or null")


def check_name(name: str, key: str) -> str:
    """The name of a file, as a row has it. Raises ValueError for a name with control characters or
    half of a surrogate pair: no file has such a name."""
    if _CONTROLS.search(name):
        raise ValueError(f"{key!r} is {name[:80]!r}, expected the name of a file: no file has that")
    return name


def stays_in(name: str, folder: Path) -> bool:
    """Whether a name that is relative to a folder, or absolute, stays inside it. Links in the
    folder count as what they stand for: they are its owner's; `..` after one would leave them."""
    whole = os.path.abspath(folder / name)
    return ".." not in Path(name).parts and Path(whole).is_relative_to(os.path.abspath(folder))
