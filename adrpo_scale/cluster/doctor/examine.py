"""The command `doctor`: all checks, one after the other, and the last errors of a run."""

from __future__ import annotations

import json
import re
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path

from adrpo_scale.cluster.doctor import gpus, machine
from adrpo_scale.cluster.preflight.base import Check, Finding
from adrpo_scale.cluster.preflight.view import lines_of
from adrpo_scale.core.console import new_console
from adrpo_scale.core.errors import RunFolderError
from adrpo_scale.core.json_files import read_object
from adrpo_scale.core.printable import one_line
from adrpo_scale.core.secrets import masked
from adrpo_scale.run.starts import environment

ERRORS, SHOWN = 3, 12  # errors of a log, and of all
LOG_LINES = 20_000  # of the end of a log that are read
_ERROR = re.compile(r"\b(\w*Error|\w*Exception|error|CRITICAL|Traceback)\b")


def examine(run: Path | None, as_json: bool) -> int:
    """Prints the checks; returns 2 where one has a fault, or 0. run: a run folder, whose last start
    and errors are shown. Raises RunFolderError where it is none."""
    if run is not None and not (run / "lives").is_dir():
        raise RunFolderError(
            f"--run {run}: expected a run folder, with records of starts in lives/"
        )
    console = new_console(highlight=False, soft_wrap=True)
    done = []
    for check in _checks(run):
        done.append(check)
        if not as_json:
            for line in lines_of(check):
                console.print(line)
    if as_json:
        documents = [{**asdict(check), "state": check.state} for check in done]
        print(masked(json.dumps(documents, indent=2)))
    else:
        console.print(_verdict(done))
    return 2 if any(check.state == "fault" for check in done) else 0


def _checks(run: Path | None) -> Iterator[Check]:
    yield machine.check_python()
    yield machine.check_versions(environment())
    yield from gpus.checks(gpus.look())
    yield machine.check_network()
    for name, folder in machine.folders().items():
        yield _safely(name, partial(machine.check_folder, name, folder))
    yield machine.check_offline()
    yield machine.check_variables()
    if run is not None:
        yield _safely("run", partial(check_run, run))
        yield _safely("errors", partial(check_errors, run))


def _safely(name: str, check: Callable[[], Check]) -> Check:
    """The check; a fault of a machine may be of any kind, and the other checks go on."""
    try:
        return check()
    except Exception as error:
        text = one_line(f"{type(error).__name__}: {error}")
        return Check(name, "", (Finding("fault", text, "it can be looked at", "see the message"),))


def check_run(run: Path) -> Check:
    """The last start of a run."""
    records = sorted((run / "lives").glob("*.json"))
    record = (read_object(records[-1]) or {}) if records else {}
    shown = ("began", "launcher", "job_id", "world_size", "commit", "resumed_from", "exit_code")
    facts = [f"{key} {record[key]}" for key in shown if record.get(key) is not None]
    facts.append(f"outcome {record.get('outcome', 'none: it runs, or was killed')}")
    name = records[-1].name if records else "no start"
    return Check("run", masked(f"{run}, {name}: {', '.join(facts)}"))


def check_errors(run: Path) -> Check:
    """The last errors of a run's logs, keys left out."""
    errors = [
        f"{path.name}: {one_line(masked(line))}"
        for path in sorted((run / "logs").glob("*.log"))
        for line in last_errors(path)
    ]
    what = "the log says what came before it"
    findings = [Finding("warning", line, "no error", what) for line in errors[-SHOWN:]]
    return Check("errors", f"none in {run / 'logs'}", tuple(findings))


def last_errors(log: Path) -> Sequence[str]:
    """The last lines of a log that name an error."""
    with log.open(encoding="utf-8", errors="replace") as lines:
        tail = deque(lines, maxlen=LOG_LINES)
    return [line.strip() for line in tail if _ERROR.search(line)][-ERRORS:]


def _verdict(done: Sequence[Check]) -> str:
    parts = []
    for state in ("fault", "warning"):
        names = [check.name for check in done if check.state == state]
        parts += [f"{state}s: {', '.join(names)}"] if names else []
    return "; ".join(parts) or "nothing found"
