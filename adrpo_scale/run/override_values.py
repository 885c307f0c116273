"""The value of a `--set`: as in TOML, and as people write it in a shell, which eats quotes.

.0001  5.  +.5  1e3        numbers that TOML refuses, or that it calls no integer
True  None                 as in Python; None is null, which removes a key
demo:image  a/b.txt#2      strings without quotes
[q_proj,v_proj]  {kind=clip,weight=.5}     lists and tables of all of these
"""

from __future__ import annotations

import re
from datetime import date, datetime, time
from typing import Any

from adrpo_scale.core.toml_text import TomlError, parse_toml

_NUMBER = re.compile(r"[+-]?(\d+(_\d+)*\.?(\d+(_\d+)*)?|\.\d+(_\d+)*)([eE][+-]?\d+)?", re.ASCII)
_ZEROS = re.compile(r"[+-]?0\d")  # 007 is a name rather than a number
_INTEGER = re.compile(r"[+-]?\d{1,40}[eE]\+?\d{1,2}", re.ASCII)
_WORDS = {"True": True, "False": False, "TRUE": True, "FALSE": False, "None": "null"}
_NESTED = re.compile(r"[\[\]{}'\"]")


def value_of(raw: str) -> Any:
    """The value that `raw` stands for; null is the string "null"."""
    raw = raw.strip()
    if raw in _WORDS:
        return _WORDS[raw]
    if _INTEGER.fullmatch(raw):
        number = float(raw)  # a setting that is no integer takes an integer, too
        return int(number) if abs(number) < 2**63 else number
    found = _toml(raw)
    if found is not None and not isinstance(found, date | datetime | time):
        return found  # no setting is a date: 2024-01-01 names a run
    if _NUMBER.fullmatch(raw) and not _ZEROS.match(raw):
        return float(raw)
    return _parts(raw)


def _toml(raw: str) -> Any:
    """The TOML value that all of `raw` is; None where it is none."""
    try:
        # After a comment, or lines of further keys, the list would not end with `true]`.
        found = parse_toml(f"value = [{raw}, true]")
    except TomlError:
        return None
    return found["value"][0] if found.keys() == {"value"} and len(found["value"]) == 2 else None


def _parts(raw: str) -> Any:
    """A list or table whose items have no quotes and are no lists or tables; else the string."""
    inside, ends = raw[1:-1].strip(), raw[:1] + raw[-1:]
    if ends not in ("[]", "{}") or not inside or _NESTED.search(inside):
        return raw
    items = [item.strip() for item in inside.removesuffix(",").split(",")]
    if ends == "[]":
        return [value_of(item) for item in items]
    pairs = [item.partition("=") for item in items]
    if not all(key.strip() and equals for key, equals, _ in pairs):
        return raw
    return {key.strip(): value_of(value) for key, _, value in pairs}
