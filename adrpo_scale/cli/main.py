"""The command `adrpo-scale`: one file a command, and errors as one message without a traceback."""

from __future__ import annotations

import os
import sys
import traceback

import typer

from adrpo_scale.cli import demo, prepare
from adrpo_scale.cli.config import show_config
from adrpo_scale.cli.evaluate import evaluate
from adrpo_scale.cli.export import export
from adrpo_scale.cli.inspect import inspect
from adrpo_scale.cli.plan import plan
from adrpo_scale.cli.prefetch import prefetch
from adrpo_scale.cli.preflight import preflight
from adrpo_scale.cli.report import report
from adrpo_scale.cli.sample import sample
from adrpo_scale.cli.status import status
from adrpo_scale.cli.train import train
from adrpo_scale.core.errors import (
    LOST,
    STOPPED,
    AdrpoError,
    ConfigError,
    GroupError,
    LimitReached,
    NonFiniteError,
    PromptError,
    StopRequested,
    exit_code,
)

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    help="Fine-tune generative models with ADRPO and its baselines, sharded over many GPUs.\n\n"
    "Example:\n    [cyan]adrpo-scale train configs/demo/image_adrpo.toml[/cyan]",
)
app.command()(train)
app.command()(sample)
app.command()(export)
app.command()(inspect)
app.command("config")(show_config)
app.command()(report)
app.command()(plan)
app.command()(prefetch)
app.command()(preflight)
app.command()(status)
app.command()(evaluate)
app.add_typer(demo.app, name="demo")
app.add_typer(prepare.app, name="prepare")

# Raised alike on every rank wherever they rise, so rank 0's message is enough.
_AGREED = (ConfigError, PromptError, GroupError, LimitReached, NonFiniteError)


def main() -> None:
    """Runs the command. Exit codes: 0 done, 2 an error that the user fixes, 3 a limit reached,
    4 a node is unfit and others would do, 85 stopped by a signal, 86 another process was lost."""
    if not {"", os.getcwd()} & {*sys.path}:
        sys.path.append(os.getcwd())  # components of the user's own, as with python -m adrpo_scale
    try:
        app()
    except StopRequested:
        sys.exit(STOPPED)
    except AdrpoError as error:
        from adrpo_scale.core.dist import rank_facts

        facts = rank_facts()
        if facts.is_main or not (error.agreed or isinstance(error, _AGREED)):
            who = "" if facts.world == 1 else f"[rank {facts.rank}] "
            print(f"{who}error: {error}", file=sys.stderr)
        sys.exit(exit_code(error))
    except Exception as error:
        from adrpo_scale.core.dist import is_lost

        if not is_lost(error):
            raise
        traceback.print_exc()
        sys.exit(LOST)
