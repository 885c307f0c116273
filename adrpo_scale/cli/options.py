"""Arguments and options that several commands share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

ConfigPath = Annotated[
    Path, typer.Argument(help="TOML file of the run, e.g. configs/sd3/adrpo.toml.")
]
AnyPath = Annotated[Path, typer.Argument(help="TOML file of a run, a sweep or an evaluation.")]
ModelOption = Annotated[
    str | None,
    typer.Option(help="Of an evaluation of MMAU: the model that it asks, as in `evaluate`."),
]
SetOption = Annotated[
    list[str], typer.Option("--set", help="Override a setting: section.key=value; repeatable.")
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON, for programs.")]
WeightsOption = Annotated[
    str,
    typer.Option(
        help="Weights of a run: evaluated (those that its evaluation.weights names), raw (the "
        "trained ones), or ema (their moving average)."
    ),
]
SweepOption = Annotated[
    Path | None, typer.Option("--sweep", help="TOML file of a sweep, in place of its runs.")
]
