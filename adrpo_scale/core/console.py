"""The terminal: one console for all output, and a handler that prints warnings."""

from __future__ import annotations

import io
import logging
import sys
from collections.abc import Iterable
from typing import IO, Any

from rich.console import Console, ConsoleOptions, RenderableType
from rich.logging import RichHandler
from rich.segment import Segment
from rich.text import Text

from adrpo_scale.core import screen
from adrpo_scale.core.printable import Formatter, printable
from adrpo_scale.core.secrets import masked

log = logging.getLogger(__name__)

_WIDE = 200  # columns, where no terminal says how many there are


class PrintableConsole(Console):
    """A console whose texts obey nobody, and tell no secret: their control characters are shown,
    see `printable`. Secrets are masked before colours and line ends cut them to pieces."""

    def render_str(self, text: str, **options: Any) -> Text:
        return super().render_str(masked(text), **options)

    def render(
        self, renderable: RenderableType, options: ConsoleOptions | None = None
    ) -> Iterable[Segment]:
        for text, style, control in super().render(renderable, options):
            yield Segment(text if control else printable(text), style, control)

    @property
    def file(self) -> IO[str]:
        """The stream behind all that stand for it: a progress line puts one before `screen`'s."""
        file = super().file
        file = getattr(file, "rich_proxied_file", file)
        return getattr(file, "as_it_is", file)

    @file.setter
    def file(self, file: IO[str]) -> None:
        self._file = file


def new_console(**options: Any) -> Console:
    """A console that prints texts as they are. Those of users (names of rewards, folders, models,
    prompts) may have brackets, which rich reads as markup: it drops them, or raises MarkupError."""
    return PrintableConsole(markup=False, emoji=False, **options)


console = new_console()


def wide() -> Console:
    """The console of tables with long cells: in a file or a pipe, 80 columns would break each cell
    into a column of single words."""
    return console if console.is_terminal else new_console(width=max(console.width, _WIDE))


def say(text: str) -> None:
    """Prints a line as it is, without wrapping or colours; the log of a run gets it, too."""
    console.print(text, highlight=False, soft_wrap=True)
    log.info("%s", text)


def show(table: RenderableType) -> None:
    """Prints a table; the log of a run gets it, too."""
    console.print(table)
    if log.isEnabledFor(logging.INFO):
        text = io.StringIO()
        new_console(file=text, width=_WIDE).print(table)
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
        handler.setFormatter(Formatter("%(message)s"))
    else:
        handler = logging.StreamHandler(sys.stdout)
        handler.setFormatter(Formatter("%(levelname)s: %(message)s"))
    handler.addFilter(lambda record: record.levelno >= logging.WARNING or is_on_screen(record))
    return handler


ON_SCREEN = {"on_screen": True}  # `extra` of a message below a warning that people should see


def is_on_screen(record: logging.LogRecord) -> bool:
    return bool(getattr(record, "on_screen", False))
