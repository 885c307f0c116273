"""Rows, clips and videos for the tests of `prepare`."""

from __future__ import annotations

import json
from pathlib import Path


def left(folder: Path) -> dict[str, bytes]:
    """Everything but the record, which counts what was done again."""
    return {p.name: p.read_bytes() for p in folder.iterdir() if p.name != "report.json"}


def record_of(folder: Path) -> dict:
    return json.loads((folder / "report.json").read_text())
