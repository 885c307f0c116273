"""The command `export`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from adrpo_scale.cli.options import WeightsOption


def export(
    run_or_checkpoint: Annotated[
        str,
        typer.Argument(help="RUN, RUN@iteration, RUN@last, RUN@best or a checkpoint's folder."),
    ],
    to: Annotated[Path, typer.Option(help="Folder to write; it must be new or empty.")],
    as_: Annotated[str, typer.Option("--as", help="Form: adapter, merged, full or whole.")],
    weights: WeightsOption = "evaluated",
    ema: Annotated[bool, typer.Option("--ema", help="The same as --weights ema.")] = False,
    dtype: Annotated[
        str | None,
        typer.Option(
            help="float32, bfloat16 or float16; default: float32 for an adapter, else the base's."
        ),
    ] = None,
    max_shard_size: Annotated[str, typer.Option(help="Largest size of one weight file.")] = "5GB",
    verify: Annotated[
        str,
        typer.Option(
            help="outputs: run the export; tensors: compare values in little memory; none."
        ),
    ] = "outputs",
    link: Annotated[
        bool,
        typer.Option("--link", help="Hard-link the base's other files instead of copying them."),
    ] = False,
    recheck: Annotated[
        bool,
        typer.Option(
            "--recheck", help="Verify again what an earlier attempt left as TO.unverified."
        ),
    ] = False,
    base: Annotated[
        str | None,
        typer.Option(help="Folder or hub id of the base model, if it has moved since training."),
    ] = None,
) -> None:
    """Export trained weights for diffusers, transformers and peft, and verify them.

    Neither the conversion nor the verification needs a GPU. The forms: adapter (the trained LoRA
    alone), merged (the base model with the LoRA merged in), full (the model after full training),
    whole (the base's complete folder with the trained part in it, e.g. of Qwen2.5-Omni).

    Example:
        adrpo-scale export runs/demo --to my-lora --as adapter
    """
    from adrpo_scale.checkpoint.named import EMA, EVALUATED, parse_weights
    from adrpo_scale.core.errors import ConfigError
    from adrpo_scale.export import exporter
    from adrpo_scale.export.base import parse_request

    word = parse_weights(weights)
    if ema and word not in (EVALUATED, EMA):
        raise ConfigError(f"--ema and --weights {weights} contradict each other: leave --ema out")
    word = EMA if ema else word
    request = parse_request(to, as_, word, dtype, max_shard_size, verify, link, recheck)
    exporter.show(exporter.export(run_or_checkpoint, request, base))
