"""The commands behind a number: those that made it, and the one that prints it again."""

from __future__ import annotations

import shlex
from collections.abc import Sequence

from adrpo_scale.core.json_files import read_object
from adrpo_scale.evaluation.report.evaluated import Evaluated
from adrpo_scale.evaluation.report.homes import without_home
from adrpo_scale.evaluation.row_folder import ROWS, TIMING, TRAINED
from adrpo_scale.run.starts import last_command

Command = tuple[str, str]  # what it does, the line


def commands(run: Evaluated) -> list[Command]:
    """Those that are known: runs and evaluations of before have not recorded theirs."""
    found = [("trained by", _trained(run)), ("evaluated by", _evaluation(run))]
    known = [(what, without_home(line)) for what, line in found if line is not None]
    return [*known, ("printed by", report_command([_name(run)], run.weights))]


def _name(run: Evaluated) -> str:
    return run.path if run.which is None else f"{run.path}@{run.which}"


def report_command(names: Sequence[str], weights: str | None = None) -> str:
    """A line of `report`, as a shell takes it."""
    more = [] if weights is None else ["--weights", weights]
    return " ".join(["adrpo-scale report", *map(_word, names), *more])


def _word(name: str) -> str:
    """A path for a shell, the home folder as `~`."""
    name = without_home(name)
    rest = name.removeprefix("~/")
    return shlex.quote(name) if rest == name else f"~/{shlex.quote(rest)}"


def _trained(run: Evaluated) -> str | None:
    """The command of the run itself, or of the one that a row of an evaluation was made from."""
    if not run.is_benchmark:
        return last_command(run.folder)
    command = (read_object(run.folder / TRAINED) or {}).get("command")
    return command if isinstance(command, str) else last_command(run.folder.parent)


def _evaluation(run: Evaluated) -> str | None:
    """The command of the newest start of the evaluation that a row belongs to."""
    folder = run.folder.parent
    starts = (read_object(folder.parent / TIMING) or {}).get("starts")
    if folder.name != ROWS or not isinstance(starts, list):
        return None
    said = [start.get("command") for start in starts if isinstance(start, dict)]
    return next((line for line in reversed(said) if isinstance(line, str)), None)
