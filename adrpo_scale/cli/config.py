"""The command `config`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from adrpo_scale.cli.options import SetOption
from adrpo_scale.core.errors import ConfigError


def show_config(
    config: Annotated[
        Path | None, typer.Argument(help="TOML file of a run, a sweep or an evaluation.")
    ] = None,
    diff: Annotated[
        Path | None, typer.Option(help="Second TOML file: show only the settings that differ.")
    ] = None,
    schema: Annotated[bool, typer.Option(help="Print the JSON schema for editors.")] = False,
    set_: SetOption = [],  # noqa: B006
) -> None:
    """Show every setting: its value, its source and its meaning.

    Of a sweep it shows the elements: settings and run folder of each.

    Example:
        adrpo-scale config configs/sd3/adrpo.toml --diff configs/sd3/grpo.toml
    """
    from adrpo_scale.core.console import wide
    from adrpo_scale.run import config_view
    from adrpo_scale.run.load import load_config

    if schema:
        print(json.dumps(config_view.schema(), indent=2))
        return
    if config is None:
        raise ConfigError("adrpo-scale config: expected a CONFIG or --schema; name a TOML file")
    from adrpo_scale.run.file_kinds import kind_of_file, require_no_options
    from adrpo_scale.run.rewards import check_code

    kind, other = kind_of_file(config), {"--diff": diff}
    if kind == "sweep":
        require_no_options("sweep", config, {**other, "--set": set_})
        _show_sweep(config)
        return
    if kind == "evaluation":
        require_no_options("evaluation", config, other)
        _show_evaluation(config, set_)
        return
    loaded = load_config(config, set_)
    check_code(loaded.config)
    console = wide()
    if diff is not None:
        console.print(config_view.difference_table(loaded, load_config(diff)))
    elif console.width < config_view.TABLE_COLUMNS:
        for line in config_view.config_lines(loaded, console.width):
            console.print(line, highlight=False)
    else:
        console.print(config_view.config_table(loaded))


def _show_evaluation(file: Path, overrides: list[str]) -> None:
    from adrpo_scale.core.console import wide
    from adrpo_scale.evaluation.file import given_keys, load_evaluation
    from adrpo_scale.run import config_view

    config, given = load_evaluation(file, overrides), given_keys(file, overrides)
    shown = config_view.settings_of(config, given)
    console = wide()
    if console.width < config_view.TABLE_COLUMNS:
        for line in config_view.entry_lines(file.stem, shown, console.width):
            console.print(line, highlight=False)
    else:
        console.print(config_view.entry_table(file.stem, shown))


def _show_sweep(file: Path) -> None:
    from adrpo_scale.run.sweep import read_sweep
    from adrpo_scale.run.sweep_runs import checked

    for found in checked(read_sweep(file)):
        element = found.element
        print(f"{element}: {element.base} in {found.folder}")
        for override in element.overrides:
            print(f"    {override}")
