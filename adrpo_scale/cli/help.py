r"""The help of the commands: docstrings as paragraphs, with examples that can be copied.

A command's docstring is a sentence, further paragraphs, and the examples last:

    Example:
        adrpo-scale sample runs/demo --prompts prompts.txt \
            --to samples

The list of commands shows the first sentence alone. `--help` prints the examples below the options
and past typer, which would fill their lines with spaces: a copied "\ " continues no command.
"""

from __future__ import annotations

import inspect
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import typer
from typer.core import TyperCommand, TyperGroup

Function = TypeVar("Function", bound=Callable[..., Any])
_MARK = "Example:\n"
_END = "\f"  # typer shows no help text that follows it


class Commands(typer.Typer):
    """A group of commands. text: its help, in the form of a command's docstring."""

    def __init__(self, text: str) -> None:
        super().__init__(
            cls=_Group,
            no_args_is_help=True,
            add_completion=False,
            pretty_exceptions_enable=False,
            rich_markup_mode="rich",
            help=help_text(text),
            short_help=summary(text),
        )

    def add(self, function: Function, name: str | None = None) -> Function:
        """Makes `function` a command; its name is the function's by default."""
        text = function.__doc__ or ""
        add = self.command(name, cls=_Command, help=help_text(text), short_help=summary(text))
        return add(function)


def help_text(docstring: str) -> str:
    """Paragraphs, one line each; after a form feed the examples, without their indentation."""
    prose, _, examples = inspect.cleandoc(docstring).partition(_MARK)
    paragraphs = [" ".join(part.split()) for part in prose.strip().split("\n\n")]
    return "\n\n".join(paragraphs) + _END + textwrap.dedent(examples).strip()


def summary(docstring: str) -> str:
    """The first sentence, without its full stop."""
    first, _, _ = help_text(docstring).partition("\n\n")
    return first.partition(_END)[0].partition(". ")[0].removesuffix(".")


class _Command(TyperCommand):
    def invoke(self, ctx: Any) -> Any:
        """Refuses paths that the system does not take."""
        from adrpo_scale.core.paths import usual_path

        for given in ctx.params.values():
            for value in given if isinstance(given, list | tuple) else [given]:
                if isinstance(value, Path):
                    usual_path(value)
        return super().invoke(ctx)

    def format_help(self, ctx: Any, formatter: Any) -> None:
        super().format_help(ctx, formatter)
        _print_examples(self.help or "")


class _Group(TyperGroup):
    def format_help(self, ctx: Any, formatter: Any) -> None:
        super().format_help(ctx, formatter)
        _print_examples(self.help or "")


def _print_examples(text: str) -> None:
    examples = text.partition(_END)[2]
    if not examples:
        return
    from rich.console import Console

    console = Console(highlight=False, markup=False, soft_wrap=True)
    console.print(" Example:")
    console.print(textwrap.indent(examples, "  "), style="cyan")
