"""The commands `prepare avqa` and `prepare mmau`, which make training data, `prepare drawbench` and
its likes, which make prompt files, and `prepare merge`, which makes a base model."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer

from adrpo_scale.cli.help import Commands

app = Commands(
    """Convert published datasets into prompt files, and models with adapters into plain ones.

    Example:
        adrpo-scale prepare avqa --videos videos --rows train_qa.json --to data/avqa
    """
)


@app.add
def avqa(
    rows: Annotated[Path, typer.Option(help="AVQA's questions: train_qa.json, or JSON lines.")],
    to: Annotated[Path, typer.Option(help="Folder for the clips and rows.")],
    videos: Annotated[
        Path | None, typer.Option(help="Folder of the videos; subfolders are searched, too.")
    ] = None,
    audio: Annotated[
        Path | None, typer.Option(help="Folder of audio files, where they are extracted already.")
    ] = None,
    shard_megabytes: Annotated[
        int, typer.Option(help="Size of one tar file.", min=1, max=10**6)
    ] = 1024,
    workers: Annotated[
        int | None,
        typer.Option(help="Processes that decode; default: one per core.", min=1, max=1024),
    ] = None,
) -> None:
    """Extract the sound of AVQA's videos, and write the questions about it.

    The clips are 16 kHz mono, in a few tar files. The same command resumes after a stop; exit code
    85: a signal stopped it. The file skipped.jsonl names missing and broken videos.

    Example:
        adrpo-scale prepare avqa --videos videos --rows train_qa.json \\
            --to data/avqa --workers 16
    """
    from adrpo_scale.core.signals import stopping_at_once
    from adrpo_scale.data.prepare.avqa import AvqaOptions, prepare_avqa

    with stopping_at_once():
        prepare_avqa(AvqaOptions(rows, to, videos, audio, shard_megabytes, workers or _cores()))


@app.add
def mmau(
    rows: Annotated[Path, typer.Option("--json", help="The benchmark's mmau-test-mini.json.")],
    audio: Annotated[Path, typer.Option(help="Folder of its audio files.")],
    to: Annotated[Path, typer.Option(help="Folder for the rows.")],
    revision: Annotated[str, typer.Option(help="The benchmark's revision, e.g. v05.15.25.")],
) -> None:
    """Check the benchmark MMAU test-mini, and write the rows that `evaluate` reads.

    The revision is recorded with the rows and stands in every table: answers to questions of
    another revision are not comparable.

    Example:
        adrpo-scale prepare mmau --json mmau-test-mini.json --audio test-mini-audios \\
            --to data/mmau --revision v05.15.25
    """
    from adrpo_scale.data.prepare.mmau import MmauOptions, prepare_mmau

    prepare_mmau(MmauOptions(rows, audio, to, revision))


_To = Annotated[Path, typer.Option(help="Folder for the rows.")]


@app.add
def drawbench(
    source: Annotated[Path, typer.Argument(help="Its CSV file, with Prompts and Category.")],
    to: _To,
) -> None:
    """Write DrawBench's prompts, with their categories, as a prompt file.

    Example:
        adrpo-scale prepare drawbench drawbench.csv --to data/drawbench
    """
    _prompts("drawbench", source, to)


@app.add
def parti(
    source: Annotated[Path, typer.Argument(help="The published PartiPrompts.tsv.")],
    to: _To,
) -> None:
    """Write PartiPrompts, with category and challenge, as a prompt file.

    Example:
        adrpo-scale prepare parti PartiPrompts.tsv --to data/parti
    """
    _prompts("parti", source, to)


@app.add
def geneval(
    source: Annotated[Path, typer.Argument(help="The published evaluation_metadata.jsonl.")],
    to: _To,
) -> None:
    """Write GenEval's prompts, with their tags as categories, as a prompt file.

    Example:
        adrpo-scale prepare geneval evaluation_metadata.jsonl --to data/geneval
    """
    _prompts("geneval", source, to)


def compbench(
    source: Annotated[Path, typer.Argument(help="The published folder examples/dataset.")],
    to: _To,
    split: Annotated[str, typer.Option(help="The files NAME_SPLIT.txt: val or train.")] = "val",
) -> None:
    """Write T2I-CompBench's prompts, with a category for each file, as a prompt file.

    Example:
        adrpo-scale prepare t2i-compbench T2I-CompBench/examples/dataset \\
            --to data/compbench
    """
    _prompts("t2i-compbench", source, to, split)


app.add(compbench, "t2i-compbench")


@app.add
def dpg(
    source: Annotated[Path, typer.Argument(help="dpg_bench.csv, or its folder prompts.")],
    to: _To,
) -> None:
    """Write DPG-Bench's prompts, with the questions about each, as a prompt file.

    Example:
        adrpo-scale prepare dpg dpg_bench.csv --to data/dpg
    """
    _prompts("dpg", source, to)


def _prompts(name: str, source: Path, to: Path, split: str = "val") -> None:
    from adrpo_scale.data.prepare.published_sets import PromptSetOptions, prepare_prompts

    prepare_prompts(PromptSetOptions(name, source, to, split))


@app.add
def merge(
    model: Annotated[str, typer.Argument(help="A language model's folder or hub id.")],
    to: Annotated[Path, typer.Option(help="Folder for the merged model.")],
    adapter: Annotated[
        Path | None, typer.Option(help="Folder of the adapters; default: the model's.")
    ] = None,
) -> None:
    """Merge peft's adapters into the language model that they belong to.

    The merged model is a folder of its own, a base like any other: its weights are what a run's
    identity is of. It is checked against peft before it gets its name.

    Example:
        adrpo-scale prepare merge my-model --adapter my-adapters --to my-merged-model
    """
    from adrpo_scale.export.merged_base import merge_adapters

    merge_adapters(model, to, adapter)


def _cores() -> int:
    """Cores of this process: a Slurm step has fewer than its node."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
