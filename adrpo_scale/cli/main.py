"""The command `adrpo-scale`: joins the commands; errors become one message and an exit code."""

from __future__ import annotations

import errno
import os
import signal
import sys
from contextlib import nullcontext

from adrpo_scale.cli import demo, prepare
from adrpo_scale.cli.config import show_config
from adrpo_scale.cli.doctor import doctor
from adrpo_scale.cli.evaluate import evaluate
from adrpo_scale.cli.export import export
from adrpo_scale.cli.help import Commands
from adrpo_scale.cli.inspect import inspect
from adrpo_scale.cli.plan import plan
from adrpo_scale.cli.prefetch import prefetch
from adrpo_scale.cli.preflight import preflight
from adrpo_scale.cli.report import report
from adrpo_scale.cli.sample import sample
from adrpo_scale.cli.status import status
from adrpo_scale.cli.sweep import sweep
from adrpo_scale.cli.train import train
from adrpo_scale.core import failure, python_warnings, screen
from adrpo_scale.core.errors import LOST, STOPPED, AdrpoError, StopRequested, exit_code

app = Commands(
    """Fine-tune generative models with ADRPO and its baselines, sharded over many GPUs.

    Example:
        adrpo-scale train configs/demo/image_adrpo.toml
    """
)
app.add(train)
app.add(sample)
app.add(export)
app.add(inspect)
app.add(show_config, "config")
app.add(report)
app.add(plan)
app.add(prefetch)
app.add(preflight)
app.add(doctor)
app.add(status)
app.add(sweep)
app.add(evaluate)
app.add_typer(demo.app, name="demo")
app.add_typer(prepare.app, name="prepare")

# Their output is all they make: they wait for its reader, and it must arrive.
_PRINTING = {"config", "doctor", "inspect", "plan", "report", "status"}


def main() -> None:
    """Runs the command. Exit codes: 0 done, 2 an error that the user fixes, 3 a limit reached,
    4 a node is unfit and should be excluded, 85 stopped by a signal or out of memory for the first
    time, 86 another process was lost, 1 an exception that nobody foresaw.
    A console that cannot be written changes none of them, except of a command that only prints.
    """
    if not {"", os.getcwd()} & {*sys.path}:
        sys.path.append(os.getcwd())  # components of the user's own, as with python -m adrpo_scale
    only_prints = not _PRINTING.isdisjoint(sys.argv[1:2])
    with (
        screen.guarded(),
        nullcontext() if only_prints else screen.unblocked(),
        python_warnings.shown_as_lines(),
    ):
        _say_what_takes_seconds(sys.argv[1:])
        code = _run()
        screen.flush()
        why = screen.lost("stdout")
        if only_prints and why not in (None, os.strerror(errno.EPIPE)) and not code:
            print(f"error: the output cannot be written: {why}; send it elsewhere", file=sys.stderr)
            code = 2
        failure.end(code)
    sys.exit(code)


def _say_what_takes_seconds(words: list[str]) -> None:
    """The first line of a command that imports libraries, where a person waits for it."""
    is_quick = not words or words[0] in ("status", "--help") or "--help" in words
    if not is_quick and python_warnings.is_first_rank() and sys.stderr.isatty():
        print(f"adrpo-scale {words[0]}: loading libraries, which takes seconds", file=sys.stderr)


def _run() -> int | str | None:
    """Runs the command; returns its exit code."""
    try:
        app()
    except SystemExit as end:
        return end.code
    except StopRequested:
        return STOPPED
    except KeyboardInterrupt:
        failure.end(128 + signal.SIGINT)
        raise
    except Exception as error:
        return _failed(error)
    return 0


def _failed(error: Exception) -> int:
    """Tells the error, if nobody has; returns the exit code."""
    failure.tell(error)
    if isinstance(error, AdrpoError):
        return exit_code(error)
    return LOST if failure.is_lost(error) else 1
