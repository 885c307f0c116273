"""Paths as tables and bundles show them: as they were given, with `~` in place of the home folder.

The home folder's name is that of a person, and no other machine has it.
"""

from __future__ import annotations

import json
import os
import re
from typing import Any

_BEFORE, _AFTER = r"(?<![\w.~-])", r"(?![\w.-])"  # not in the middle of another path


def without_home(value: Any) -> Any:
    """A JSON value whose texts have `~` in place of the home folder of whoever runs the command."""
    pattern = _pattern()
    return value if pattern is None else _replaced(value, pattern)


def _replaced(value: Any, pattern: re.Pattern[str]) -> Any:
    if isinstance(value, str):
        return pattern.sub("~", value)
    if isinstance(value, dict):
        return {key: _replaced(item, pattern) for key, item in value.items()}
    return [_replaced(item, pattern) for item in value] if isinstance(value, list) else value


def _pattern() -> re.Pattern[str] | None:
    """None without a home folder that means anything: `/` is that of some containers."""
    home = os.path.expanduser("~").rstrip("/")
    if not home.startswith("/"):
        return None
    forms = {home, os.path.realpath(home)} - {"/"}
    forms |= {json.dumps(form)[1:-1] for form in forms}  # as a JSON text has it
    longest_first = sorted(forms, key=lambda form: (-len(form), form))
    return re.compile(_BEFORE + f"(?:{'|'.join(map(re.escape, longest_first))})" + _AFTER)
