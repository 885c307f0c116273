"""Python's warnings as lines of the log: without paths and source lines.

Ours (`SettingsWarning`) are shown whole. Those of libraries are shown once per place in their
source, shortened; the log of a run has their whole text.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from adrpo_scale.core.printable import Formatter
from adrpo_scale.core.rank_facts import facts_or_one

log = logging.getLogger(__name__)

SHOWN = 160  # characters of a library's warning
_known: set[tuple[str, str, int]] = set()
_early: list[str] = []  # ours, from before a log was set up


class SettingsWarning(UserWarning):
    """Settings are accepted, but have an effect that their author may not want."""


def as_lines() -> None:
    """Sends all further warnings to the log; and ours from before it was set up."""
    warnings.showwarning = _log
    while logging.root.handlers and _early:
        log.info("%s", _early.pop(0))


@contextmanager
def shown_as_lines() -> Iterator[None]:
    """Inside, warnings go to the log, which is standard error until a run has set up its own. Other
    ranks than 0 show none there: they warn of the same."""
    before, last = warnings.showwarning, logging.lastResort
    form = None if last is None else last.formatter
    as_lines()
    if last is not None:
        last.setFormatter(Formatter("%(levelname)s: %(message)s"))
    try:
        yield
    finally:
        warnings.showwarning = before
        if last is not None:
            last.setFormatter(form)


def _log(
    message: Warning | str,
    category: type[Warning],
    filename: str,
    lineno: int,
    file: Any = None,
    line: str | None = None,
) -> None:
    text, is_ours = " ".join(str(message).split()), issubclass(category, SettingsWarning)
    if is_ours and not logging.root.handlers:
        _early.append(text)
    if not logging.root.handlers and not is_first_rank():
        return
    if is_ours:
        log.warning("%s", text)
        return
    place = (category.__name__, filename, lineno)
    if place in _known:
        return
    _known.add(place)
    log.info("%s:%d: %s: %s", filename, lineno, category.__name__, text)
    short = text if len(text) <= SHOWN else f"{text[:SHOWN].rstrip()}…"
    log.warning("%s: %s", _library(filename), short)


def is_first_rank() -> bool:
    """Whether this process is rank 0; True where its environment contradicts itself, of which the
    command says more."""
    return facts_or_one().is_main


def _library(filename: str) -> str:
    """The package that a source file belongs to; for a file outside any, its name."""
    parts = Path(filename).parts
    for mark in ("site-packages", "dist-packages"):
        if mark in parts:
            return parts[parts.index(mark) + 1].removesuffix(".py")
    return Path(filename).name
