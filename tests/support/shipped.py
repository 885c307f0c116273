"""The TOML files that ship in configs/, by what they are: files of runs, sweeps, or evaluations."""

from __future__ import annotations

import tomllib
from pathlib import Path

CONFIGS = Path(__file__).parents[2] / "configs"


def with_key(key: str) -> list[Path]:
    """Shipped files that have `key` at their top."""
    found = (p for p in CONFIGS.rglob("*.toml") if key in tomllib.loads(p.read_text()))
    return sorted(found)


SWEEPS = with_key("base")
EVALUATIONS = with_key("benchmark")  # one may have a [domain] of its own
RUNS = [path for path in with_key("domain") if path not in EVALUATIONS]
PAPER = sorted((CONFIGS / "paper").rglob("*.toml"))


def name_of(path: Path) -> str:
    return path.relative_to(CONFIGS).as_posix()
