"""What servers have said about samples, kept in the run's folder, so that no start asks twice.

A line a verdict: {"key", "value", "fault", "said"}. The key is a hash of all that the server is
asked, but for its address and its key. Each process appends to a file of its own; a start reads the
files of all. A line that a kill has cut is asked for again.
"""

from __future__ import annotations

import hashlib
import json
import logging
import math
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from adrpo_scale.core.files import own, write_all
from adrpo_scale.core.json_files import json_line, read_lines

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Verdict:
    """What a server gave one sample. value: None where it abstained. fault: why there is no number,
    after the reward's name; "" where there is one. said: the beginning of its words."""

    value: float | None
    fault: str = ""
    said: str = ""


def key_of(content: Any) -> str:
    """The key of a question: the SHA-256 of its canonical JSON."""
    text = json.dumps(content, sort_keys=True, ensure_ascii=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


class Verdicts:
    """The verdicts by key. file: of this process; None: they are kept in memory alone."""

    def __init__(self, file: Path | None) -> None:
        self._file, self._is_open = file, False
        self._known: dict[str, Verdict] = {}
        for path in sorted(file.parent.glob("*.jsonl")) if file is not None else ():
            for row in read_lines(path):
                verdict = _verdict(row)
                if verdict is not None:
                    self._known.setdefault(row["key"], verdict)

    def __len__(self) -> int:
        return len(self._known)

    def get(self, key: str) -> Verdict | None:
        return self._known.get(key)

    def add(self, fresh: Mapping[str, Verdict]) -> None:
        """Keeps verdicts by key. A disk that takes them no more costs the next start its
        questions, and ends nothing."""
        self._known |= {key: Verdict(one.value, one.fault) for key, one in fresh.items()}
        if self._file is None or not fresh:
            return
        rows = [{"key": key, **vars(verdict)} for key, verdict in fresh.items()]
        try:
            self._append(b"".join(map(json_line, rows)))
        except OSError as error:
            log.warning(
                "%s: verdicts are no longer kept, and asked for again: %s", self._file, error
            )
            self._file = None

    def _append(self, lines: bytes) -> None:
        if self._file is None:
            return
        if not self._is_open:
            self._file.parent.mkdir(exist_ok=True)
        descriptor = own(self._file, os.O_RDWR | os.O_CREAT | os.O_APPEND)
        try:
            if not self._is_open and _is_cut(descriptor):
                lines = b"\n" + lines
            write_all(descriptor, lines)
            self._is_open = True
        finally:
            os.close(descriptor)


def _is_cut(descriptor: int) -> bool:
    """Whether a file ends inside a line: a kill came while it was written."""
    size = os.fstat(descriptor).st_size
    return size > 0 and os.pread(descriptor, 1, size - 1) != b"\n"


def _verdict(row: Mapping[str, Any]) -> Verdict | None:
    """The verdict in a line; None where it is none, so that the server is asked again."""
    value, fault = row.get("value"), row.get("fault")
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    if not isinstance(row.get("key"), str) or not isinstance(fault, str):
        return None
    if "value" not in row or not (value is None or (is_number and math.isfinite(value))):
        return None
    return Verdict(None if value is None else float(value), fault)
