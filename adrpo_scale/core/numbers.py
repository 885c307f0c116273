"""Numbers that others write as text: names of folders, launchers' variables, answers of commands.

`str.isdigit` holds for "²", which `int` refuses, and both take digits of every script.
"""

from __future__ import annotations

import re

_DIGITS = re.compile(r"[0-9]{1,18}")  # 18: an int64 holds it


def natural(text: str) -> int | None:
    """The number of 1 to 18 ASCII digits; None for any other text."""
    return int(text) if _DIGITS.fullmatch(text) else None
