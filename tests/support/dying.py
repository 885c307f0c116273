"""Functions for the processes of a pool; here, where nothing heavy is imported with them."""

from __future__ import annotations

import os
import signal


def square_or_die(number: int) -> int:
    if number % 5 == 3:
        os.kill(os.getpid(), signal.SIGKILL)
    return number * number


def negative(number: int) -> int:
    return -number
