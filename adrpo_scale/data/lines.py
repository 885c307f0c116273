"""The text of a prompt file, line by line, and errors that name the place in the file."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from adrpo_scale.core.errors import PromptError
from adrpo_scale.core.paths import read_given

LARGEST = 1 << 32  # bytes of a prompt file
NAMED = 5  # refused rows that an error names


def row_error(path: Path, where: str, value: object, expected: str, remedy: str) -> PromptError:
    """The error about one row, with its value cut to 100 characters, and what repeats parts of it
    to 500."""
    value, expected, remedy = _cut(repr(value), 100), _cut(expected, 500), _cut(remedy, 500)
    return PromptError(f"{path}, {where}: got {value}, expected {expected}; {remedy}")


def _cut(text: str, most: int) -> str:
    return text if len(text) <= most else f"{text[: most - 3]}..."


def all_refused(
    faults: Sequence[PromptError], count: int, common: str = "", what: str = "rows"
) -> PromptError:
    """One error for all faults of `count` rows: the first, their number and the next ones, a line
    each. common: the beginning of all of them."""
    lines = [str(faults[0])]
    if len(faults) > 1:
        lines.append(f"{len(faults)} of {count} {what} are refused; the next ones:")
        lines += [f"    {str(fault).removeprefix(common)}" for fault in faults[1:NAMED]]
    if len(faults) > NAMED:
        lines.append(f"    and {len(faults) - NAMED} more")
    return PromptError("\n".join(lines))


def read_text(path: Path) -> str:
    """The whole file, with LF as line end. Raises PromptError unless it is readable UTF-8 text."""
    try:
        raw = read_given(path, LARGEST)
    except FileNotFoundError:
        raise PromptError(
            f"{path}: no such prompt file (looked for it at {path.absolute()}); correct the path, "
            "which is relative to the current folder, or put the file there: nothing is downloaded"
        ) from None
    except OSError as error:
        raise PromptError(
            f"{path}: cannot read this prompt file ({error.strerror}); expected a readable text "
            "file, name one or change its permissions"
        ) from None
    remedy = "is it the right file? Save it as UTF-8 text"
    if b"\0" in raw:
        line = raw[: raw.index(b"\0")].count(b"\n") + 1
        raise row_error(path, f"line {line}", b"\0", "text, this is binary or UTF-16", remedy)
    try:
        text = raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = raw[: error.start].count(b"\n") + 1
        value = raw[error.start : error.start + 1]
        others = sum(not _is_text(part) for part in raw.split(b"\n")[line:])
        more = f" (as {others} more lines)" if others else ""
        raise row_error(path, f"line {line}{more}", value, "UTF-8 text", remedy) from None
    return text.replace("\r\n", "\n").replace("\r", "\n")


def _is_text(line: bytes) -> bool:
    try:
        line.decode()
    except UnicodeDecodeError:
        return False
    return True


def lines(path: Path) -> Iterator[tuple[int, str]]:
    """(line number from 1, line) of every line that is not blank."""
    # str.splitlines would also break at U+2028 and the like, which may stand inside a prompt.
    for number, line in enumerate(read_text(path).split("\n"), start=1):
        if line.strip():
            yield number, line
