"""The terminal: one console for all output, and a handler that prints warnings."""

from __future__ import annotations

import logging
import sys

from rich.console import Console
from rich.logging import RichHandler

console = Console()
_WIDE = 200  # columns, where no terminal says how many there are


def wide() -> Console:
    """The console of tables with long cells: in a file or a pipe, 80 columns would break each cell
    into a column of single words."""
    return console if console.is_terminal else Console(width=max(console.width, _WIDE))


def warnings_on_screen() -> logging.Handler:
    """A handler for warnings. Outside a terminal their lines are not wrapped, so that a log can be
    searched for them."""
    screen: logging.Handler
    if console.is_terminal:
        screen = RichHandler(console=console, show_path=False, show_time=False, markup=False)
        screen.setFormatter(logging.Formatter("%(message)s"))
    else:
        screen = logging.StreamHandler(sys.stdout)
        screen.setFormatter(logging.Formatter("%(levelname)s: %(message)s"))
    screen.setLevel(logging.WARNING)
    return screen
