"""The command `export`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def export(
    run_or_checkpoint: Annotated[str, typer.Argument(help="RUN, RUN@iteration or a checkpoint.")],
    to: Annotated[Path, typer.Option(help="Folder to make.")],
    as_: Annotated[str, typer.Option("--as", help="adapter, merged, full or whole.")],
    ema: Annotated[bool, typer.Option("--ema", help="The moving average of the weights.")] = False,
    dtype: Annotated[
        str | None,
        typer.Option(help="float32, bfloat16 or float16; default: float32 (adapter), the base's."),
    ] = None,
    max_shard_size: Annotated[str, typer.Option(help="Of one weight file.")] = "5GB",
    verify: Annotated[
        str,
        typer.Option(help="outputs: run it; tensors: compare, with little memory; none."),
    ] = "outputs",
    link: Annotated[
        bool, typer.Option("--link", help="Hard links, not copies, of what the base has.")
    ] = False,
    base: Annotated[
        str | None, typer.Option(help="Where the base model is now, if it has moved.")
    ] = None,
) -> None:
    """Export trained weights for diffusers or transformers and peft, without a GPU, and verify
    them.

    Example:
        [cyan]adrpo-scale export runs/demo --to my-lora --as adapter[/cyan]
    """
    from adrpo_scale.export import exporter
    from adrpo_scale.export.base import parse_request

    request = parse_request(to, as_, ema, dtype, max_shard_size, verify, link)
    exporter.show(exporter.export(run_or_checkpoint, request, base))
