"""The terminal: one console for all output, and a handler that prints warnings."""

from __future__ import annotations

import io
import logging
import sys

from rich.console import Console, RenderableType
from rich.logging import RichHandler

from adrpo_scale.core import screen

log = logging.getLogger(__name__)

console = Console()
_WIDE = 200  # columns, where no terminal says how many there are


def wide() -> Console:
    """The console of tables with long cells: in a file or a pipe, 80 columns would break each cell
    into a column of single words."""
    return console if console.is_terminal else Console(width=max(console.width, _WIDE))


def say(text: str) -> None:
    """Prints a line as it is, without wrapping or colours; the log of a run gets it, too."""
    console.print(text, highlight=False, soft_wrap=True, markup=False)
    log.info("%s", text)


def show(table: RenderableType) -> None:
    """Prints a table; the log of a run gets it, too."""
    console.print(table)
    if log.isEnabledFor(logging.INFO):
        text = io.StringIO()
        Console(file=text, width=_WIDE).print(table)
        log.info("\n%s", text.getvalue().rstrip())


def note_losses() -> None:
    """Notes once, in the log and on the other stream, that standard output or error is lost."""
    for name, why in screen.newly_lost():
        text = f"{name} cannot be written ({why}): the run goes on; logs/ has its lines"
        log.warning("%s", text)
        if name == "stdout" and screen.lost("stderr") is None:
            print(f"note: {text}", file=sys.stderr)


def warnings_on_screen() -> logging.Handler:
    """A handler for warnings, and for messages with `ON_SCREEN`. Outside a terminal their lines are
    not wrapped, so that a log can be searched for them."""
    handler: logging.Handler
    if console.is_terminal:
        handler = RichHandler(console=console, show_path=False, show_time=False, markup=False)
        handler.setFormatter(logging.Formatter("%(message)s"))
    else:
        handler = logging.StreamHandler(sys.stdout)
        handler.setFormatter(logging.Formatter("%(levelname)s: %(message)s"))
    handler.addFilter(lambda record: record.levelno >= logging.WARNING or is_on_screen(record))
    return handler


ON_SCREEN = {"on_screen": True}  # `extra` of a message below a warning that people should see


def is_on_screen(record: logging.LogRecord) -> bool:
    return bool(getattr(record, "on_screen", False))
