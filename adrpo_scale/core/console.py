"""The terminal: one console for everything that is printed, and warnings on it."""

from __future__ import annotations

import logging
import sys

from rich.console import Console
from rich.logging import RichHandler

console = Console()


def warnings_on_screen() -> logging.Handler:
    """Warnings for the person who watches; unwrapped where nobody does, so that they can be
    searched for."""
    screen: logging.Handler
    if console.is_terminal:
        screen = RichHandler(console=console, show_path=False, show_time=False, markup=False)
        screen.setFormatter(logging.Formatter("%(message)s"))
    else:
        screen = logging.StreamHandler(sys.stdout)
        screen.setFormatter(logging.Formatter("%(levelname)s: %(message)s"))
    screen.setLevel(logging.WARNING)
    return screen
