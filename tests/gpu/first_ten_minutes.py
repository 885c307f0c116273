"""What one GPU shows first: `python -m tests.gpu.first_ten_minutes [--steps a,b] [--out FILE]`.

Each step is a process with a time limit of its own: one that fails or hangs stops no other. Small
steps run a few at a time; those that measure time or fill the GPU run alone. A line a step is
printed as it ends, and the JSON file is written again after each. `--dry-run` runs the same code
at small sizes on the CPU.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.gpu.steps.base import FAIL, NOT_RUN, PASS
from tests.gpu.steps.processes import REPOSITORY
from tests.gpu.steps.tables import TABLES, Step

SHORTEST = 15.0  # seconds: with less of the budget left, a step is not begun
LOG_BYTES = 200_000  # of a step's output in the log file


@dataclass
class Session:
    """The run of a table's steps. deadline: of all of them, by `time.monotonic`."""

    table: str
    out: Path
    log: Path
    is_dry: bool
    deadline: float
    models: Path  # what a step leaves there, later ones find
    slower: float = 1.0  # factor on every limit
    results: dict[str, dict[str, Any]] = field(default_factory=dict)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def run(self, step: Step) -> None:
        """Runs one step, or says why not; keeps and prints the result."""
        left = self.deadline - time.monotonic()
        if left < SHORTEST:
            self._keep(
                step, {"verdict": NOT_RUN, "reason": "no time of the budget was left"}, 0, ""
            )
            return
        limit = min(step.seconds * self.slower, left)
        with tempfile.TemporaryDirectory() as folder:
            output, found = Path(folder) / "output.txt", Path(folder) / "found.json"
            words = [sys.executable, "-m", "tests.gpu.steps", self.table, step.name]
            words += ["--out", str(found), "--seconds", f"{limit:.0f}"]
            words += ["--models", str(self.models)]
            words += ["--dry-run"] if self.is_dry else []
            begin = time.monotonic()
            code = _ended(words, output, limit)
            seconds = time.monotonic() - begin
            text = output.read_text(errors="replace")
            self._keep(step, _judged(found, code, limit, text), seconds, text)

    def _keep(self, step: Step, result: dict[str, Any], seconds: float, text: str) -> None:
        with self._lock:
            self.results[step.name] = {"title": step.title, "seconds": round(seconds, 1), **result}
            self.write()
            with self.log.open("a") as log:
                log.write(f"==== {step.name}: {result['verdict']}\n{text[-LOG_BYTES:]}\n")
            reason = f"  {result['reason'][:200]}" if result.get("reason") else ""
            line = f"{result['verdict']:8}{step.name:16}{seconds:6.1f} s  {step.title}"
            print(f"{line}{reason}", flush=True)

    def write(self) -> None:
        """The JSON file, in the order of the table."""
        order = [step.name for step in TABLES[self.table]]
        done = {name: self.results[name] for name in order if name in self.results}
        verdicts = [result["verdict"] for result in done.values()]
        counts = {verdict: verdicts.count(verdict) for verdict in (PASS, FAIL, NOT_RUN)}
        content = {"dry_run": self.is_dry, "counts": counts, "steps": done}
        temporary = self.out.with_suffix(".tmp")
        temporary.write_text(json.dumps(content, indent=1))
        temporary.replace(self.out)


def _ended(words: Sequence[str], output: Path, limit: float) -> int | None:
    """The exit code of a process; None where it was ended, with all that it started, at its
    limit."""
    with output.open("wb") as file:
        process = subprocess.Popen(
            words, cwd=REPOSITORY, stdout=file, stderr=subprocess.STDOUT, start_new_session=True
        )
        try:
            return process.wait(limit)
        except subprocess.TimeoutExpired:
            return None
        finally:
            # Children of a step that failed would hold the GPU's memory.
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def _judged(found: Path, code: int | None, limit: float, text: str) -> dict[str, Any]:
    """A step's findings, with the verdict of what its process did."""
    result: dict[str, Any] = json.loads(found.read_text()) if found.exists() else {"figures": {}}
    verdict = result.get("verdict")
    if code is None:
        what = "it ended, but its process did not leave" if verdict else "it did not end"
        result |= {"verdict": FAIL, "reason": f"{what} within {limit:.0f} s"}
    elif verdict is None or code != 0:
        result |= {"verdict": FAIL, "reason": f"its process ended with {code}"}
    if result["verdict"] == FAIL:
        result["last_lines"] = text.strip().splitlines()[-12:]
    return result


def main(table: str = "one_gpu") -> int:
    """Runs a table's steps; the exit code is 1 where one of them failed."""
    steps = TABLES[table]
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else None)
    parser.add_argument("--steps", default=",".join(step.name for step in steps))
    parser.add_argument("--out", type=Path, default=Path(f"{table}.json"))
    parser.add_argument("--jobs", type=int, default=4, help="small steps at a time")
    parser.add_argument("--budget", type=float, default=480.0, help="seconds for all steps")
    parser.add_argument("--slower", type=float, default=1.0, help="factor on every time limit")
    parser.add_argument("--models", type=Path, help="folder whose models later calls find")
    parser.add_argument("--dry-run", action="store_true", help="small sizes, on the CPU")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="adrpo-gpu-models-") as folder:
        models = (given.models or Path(folder)).resolve()
        models.mkdir(parents=True, exist_ok=True)
        return _run_steps(table, given, models)


def _run_steps(table: str, given: argparse.Namespace, models: Path) -> int:
    steps = TABLES[table]
    names = [name for name in given.steps.split(",") if name]
    unknown = sorted({*names} - {step.name for step in steps})
    if unknown:
        print(f"unknown steps {unknown}; known: {[step.name for step in steps]}", file=sys.stderr)
        return 2
    given.out.parent.mkdir(parents=True, exist_ok=True)
    log = given.out.with_suffix(".log")
    log.write_text("")
    deadline = time.monotonic() + given.budget
    session = Session(table, given.out, log, given.dry_run, deadline, models, given.slower)
    chosen = [step for step in steps if step.name in names]
    first = [step for step in chosen if step.name == "environment"]
    small = [step for step in chosen if not step.alone]
    for step in first:
        session.run(step)
    with ThreadPoolExecutor(max(1, given.jobs)) as pool:
        list(pool.map(session.run, small))
    for step in chosen:
        if step.alone and step not in first:
            session.run(step)
    counts = json.loads(given.out.read_text())["counts"]
    print(", ".join(f"{number} {verdict}" for verdict, number in counts.items()))
    print(given.out)
    return 1 if counts[FAIL] else 0


if __name__ == "__main__":
    sys.exit(main())
