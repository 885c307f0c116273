"""Waiting for a condition, however long a busy machine takes, and never for a time."""

from __future__ import annotations

import time
from collections.abc import Callable

LONGEST = 120.0  # seconds after which it will not come any more
BETWEEN = 0.01


def wait_until(condition: Callable[[], object], what: str, seconds: float = LONGEST) -> None:
    """Returns once `condition()` holds; AssertionError with `what` where it never does."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, f"{what} did not come in {seconds:.0f} s"
        time.sleep(BETWEEN)
