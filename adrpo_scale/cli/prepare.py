"""The commands `prepare avqa` and `prepare mmau`, which make training data."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(
    no_args_is_help=True,
    rich_markup_mode="rich",
    help="Prepare data sets as their authors publish them for training and evaluation.\n\n"
    "Example:\n    [cyan]adrpo-scale prepare avqa --videos videos --rows train_qa.json "
    "--to data/avqa[/cyan]",
)


@app.command()
def avqa(
    rows: Annotated[Path, typer.Option(help="AVQA's questions: train_qa.json, or JSON lines.")],
    to: Annotated[Path, typer.Option(help="Folder for the clips and rows.")],
    videos: Annotated[
        Path | None, typer.Option(help="Folder of the videos, searched with what is below it.")
    ] = None,
    audio: Annotated[
        Path | None, typer.Option(help="Folder of sound that is extracted already.")
    ] = None,
    shard_megabytes: Annotated[int, typer.Option(help="Size of one tar file.", min=1)] = 1024,
    workers: Annotated[
        int | None, typer.Option(help="Processes that decode; default: every core.", min=1)
    ] = None,
) -> None:
    """Extract the sound of AVQA's videos, 16 kHz mono, into a few tar files, and write the
    questions that refer to them. Stopped at any moment, the same command resumes. What is missing
    or broken is named in skipped.jsonl.

    Example:
        [cyan]adrpo-scale prepare avqa --videos videos --rows train_qa.json
        --to data/avqa --workers 16[/cyan]
    """
    from adrpo_scale.data.prepare.avqa import AvqaOptions, prepare_avqa

    prepare_avqa(AvqaOptions(rows, to, videos, audio, shard_megabytes, workers or _cores()))


@app.command()
def mmau(
    rows: Annotated[Path, typer.Option("--json", help="The benchmark's mmau-test-mini.json.")],
    audio: Annotated[Path, typer.Option(help="Folder of its audio files.")],
    to: Annotated[Path, typer.Option(help="Folder for the rows.")],
    revision: Annotated[str, typer.Option(help="The benchmark's revision, e.g. v05.15.25.")],
) -> None:
    """Check MMAU test-mini, rows and audio, and write the rows that evaluation reads, its revision
    stamped.

    Example:
        [cyan]adrpo-scale prepare mmau --json mmau-test-mini.json --audio test-mini-audios
        --to data/mmau --revision v05.15.25[/cyan]
    """
    from adrpo_scale.data.prepare.mmau import MmauOptions, prepare_mmau

    prepare_mmau(MmauOptions(rows, audio, to, revision))


def _cores() -> int:
    """Of this process: a Slurm step has fewer than its node."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
