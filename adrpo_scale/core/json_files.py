"""JSON on the disk, read as a kill, a power cut, a full disk or an editor has left it.

Rows of runs, records of starts, answers of evaluations and facts of caches are read through here.
What cannot be read counts as absent. That is said once a process, and ends nothing.
"""

from __future__ import annotations

import errno
import json
import logging
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from adrpo_scale.core.files import open_regular

log = logging.getLogger(__name__)

LARGEST = 1 << 30  # bytes of a file that is read; a million rows of a long run have 1 GB
_INTEGER = 1 << 63  # and above: no number of ours, and Python refuses to print the longest
_DIGITS = 20
_told: set[str] = set()


def read_regular(path: Path, most: int = LARGEST) -> bytes:
    """The bytes of a regular file, through links. Raises OSError for anything else: reading a FIFO
    would wait, and a device has no end; also for more than `most` bytes."""
    with open_regular(path) as file:
        facts = os.fstat(file.fileno())
        if facts.st_size > most:
            raise OSError(errno.EFBIG, f"it has more than {most} bytes", str(path))
        return file.read(most + 1)


def parse(text: str | bytes, strict: bool = False) -> Any:
    """The value of a JSON text. Raises ValueError for any other text.

    A number that is not finite, or an integer beyond 64 bits, becomes None; strict: it is an error.
    """

    def odd(number: str) -> Any:
        if strict:
            raise ValueError(f"the number {number[:40]} is not finite, or beyond 64 bits")
        return None

    def real(number: str) -> float | None:
        value = float(number)
        return value if math.isfinite(value) else odd(number)

    def whole(number: str) -> int | None:
        value = int(number) if len(number) <= _DIGITS else _INTEGER
        return value if abs(value) < _INTEGER else odd(number)

    try:
        return json.loads(text, parse_constant=odd, parse_float=real, parse_int=whole)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


def parse_object(text: str | bytes, strict: bool = False) -> dict[str, Any]:
    """The JSON object in a text, as `parse`. Raises ValueError for anything else."""
    value = parse(text, strict)
    if not isinstance(value, dict):
        raise ValueError(f"it holds {type(value).__name__} where a JSON object is expected")
    return value


def read_object(path: Path) -> dict[str, Any] | None:
    """The JSON object in a file; None where there is none that can be read."""
    try:
        return parse_object(read_regular(path))
    except FileNotFoundError:
        return None
    except OSError as error:
        say_once(path, f"it counts as absent: {error.strerror}")
        return None
    except ValueError as error:
        say_once(path, f"it counts as absent: {error}")
        return None


def json_line(row: Mapping[str, Any], *, finite: bool = True) -> bytes:
    """A line of a JSONL file. Half of a surrogate pair is written as JSON escapes it: UTF-8 has no
    bytes for it. finite: raises ValueError for a number that is not; False writes NaN."""
    text = json.dumps(row, ensure_ascii=False, allow_nan=not finite)
    return f"{text}\n".encode("utf-8", "backslashreplace")


def read_lines(path: Path) -> list[dict[str, Any]]:
    """The JSON objects in the lines of a file; [] without a file that can be read. Other lines are
    left out. So is a last one without its end, which may still be written."""
    try:
        content = read_regular(path)
    except FileNotFoundError:
        return []
    except OSError as error:
        say_once(path, f"it counts as absent: {error.strerror}")
        return []
    # Not splitlines(): a text may hold other line separators of Unicode.
    lines = content.split(b"\n")[:-1]
    rows, odd = [], []
    for number, line in enumerate(lines, 1):
        try:
            rows.append(parse_object(line.decode(errors="replace")))
        except ValueError as error:
            odd.append(f"line {number}: {error}")
    if odd:
        say_once(path, f"{len(odd)} lines that are no JSON objects are left out, first {odd[0]}")
    return rows


def say_once(path: Path, what: str) -> None:
    """A warning about a file, once a process."""
    line = f"{path}: {what}"
    if line not in _told:
        _told.add(line)
        log.warning("%s", line)


def number_of(record: dict[str, Any], name: str) -> float:
    """A number of a record; 0 where the record has none of this name."""
    value = record.get(name)
    return float(value) if isinstance(value, int | float) else 0.0


def section_of(record: Mapping[str, Any], name: str) -> dict[str, Any]:
    """A table of a record; {} where the record has none of this name."""
    found = record.get(name)
    return found if isinstance(found, dict) else {}


def number_in(value: Any, kind: type) -> Any:
    """`value` as int or float; None unless it is a number."""
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return kind(value) if is_number else None
