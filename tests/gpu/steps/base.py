"""What every step has: a folder, a device, sizes, and a file that its findings go to at once."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

T = TypeVar("T")
PASS, FAIL, NOT_RUN = "pass", "fail", "not run"


class NotRun(Exception):
    """A step cannot run here; the message is the reason."""


@dataclass
class Findings:
    """The figures and checks of one step. The file holds them after every call, so that a step that
    is ended at its time limit has not measured for nothing."""

    path: Path
    figures: dict[str, Any] = field(default_factory=dict)
    checks: list[dict[str, Any]] = field(default_factory=list)
    verdict: str | None = None
    reason: str | None = None

    @property
    def failed(self) -> list[str]:
        return [f"{c['what']}: {c['found']}" for c in self.checks if not c["good"]]

    def end(self, verdict: str | None = None, reason: str | None = None) -> None:
        """Settles the verdict; by default that of the checks."""
        self.verdict = verdict or (FAIL if self.failed or not self.checks else PASS)
        self.reason = reason or ("; ".join(self.failed) or None)
        self.write()

    def write(self) -> None:
        content = {k: getattr(self, k) for k in ("verdict", "reason", "figures", "checks")}
        self.path.write_text(json.dumps(content, default=str))


@dataclass(frozen=True)
class Case:
    """One step under way. folder: its own, empty. models: one that all steps share. seconds: its
    time limit."""

    folder: Path
    models: Path
    is_dry: bool
    seconds: float
    findings: Findings

    @property
    def device(self) -> str:
        return "cpu" if self.is_dry else "cuda"

    def size(self, real: T, small: T) -> T:
        """The size on a GPU, or the one of a dry run."""
        return small if self.is_dry else real

    def note(self, **figures: Any) -> None:
        self.findings.figures |= figures
        self.findings.write()

    def check(self, what: str, good: bool, found: Any) -> None:
        """Records an expectation in words, and what was found."""
        self.findings.checks.append({"what": what, "good": bool(good), "found": found})
        self.findings.write()
