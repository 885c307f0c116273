"""The command `adrpo-scale`: verbs, and errors as one message without a traceback.

Heavy imports are inside the verbs, so that `--help` answers at once.
"""

from __future__ import annotations

import json
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import typer

from adrpo_scale.cli import evaluate as evaluate_cli
from adrpo_scale.cli import options as cluster_cli
from adrpo_scale.cli import prepare as data_cli
from adrpo_scale.cli.options import ConfigPath, SetOption
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
demo_app = typer.Typer(
    no_args_is_help=True,
    rich_markup_mode="rich",
    help="The small demos that ship with the package.\n\n"
    "Example:\n    [cyan]adrpo-scale demo build image --to /tmp/image-demo[/cyan]",
)
app.add_typer(demo_app, name="demo")


@app.command()
def train(
    config: ConfigPath,
    run_dir: Annotated[
        Path | None, typer.Option(help="Run folder; default runs/<config>-<hash of settings>.")
    ] = None,
    set_: SetOption = [],  # noqa: B006 (typer copies it)
    fresh: Annotated[
        bool, typer.Option("--fresh", help="Refuse to go on from a checkpoint.")
    ] = False,
    allow_change: Annotated[
        list[str], typer.Option(help="A setting or section that may change in mid-run; repeatable.")
    ] = [],  # noqa: B006
    init_from: Annotated[
        str | None, typer.Option(help="Start from the weights of RUN or RUN@iteration.")
    ] = None,
    rebase_reference: Annotated[
        bool, typer.Option("--rebase-reference", help="... which become the reference too.")
    ] = False,
    trial: Annotated[
        bool,
        typer.Option("--trial", help="Two iterations in a folder of their own, measured."),
    ] = False,
    preflight: Annotated[
        bool, typer.Option("--preflight", help="Check all nodes first, as the verb does.")
    ] = False,
) -> None:
    """Train: one process, or as many as torchrun or srun start. Goes on where the run folder's
    newest checkpoint is. Exit code 85: stopped by a signal, start again to go on.

    Example:
        [cyan]torchrun --standalone --nproc-per-node 2 -m adrpo_scale
        train configs/demo/image_adrpo.toml --set seed=1[/cyan]
    """
    fork = [f'init_from="{init_from}"'] if init_from is not None else []
    fork += ["rebase_reference=true"] if rebase_reference else []
    if preflight:
        cluster_cli.preflight_apart(config, [*set_, *fork], run_dir)
    from adrpo_scale.run import train as life
    from adrpo_scale.run.config import load_config

    loaded = load_config(config, [*set_, *fork])
    if trial:
        from adrpo_scale.cluster.plan.trial import run_trial

        if allow_change:
            raise ConfigError("--trial with --allow-change: a trial goes on from nothing")
        given = [str(config), *(word for text in [*set_, *fork] for word in ("--set", text))]
        run_trial(loaded, run_dir, given)
        return
    life.train(loaded, life.Orders(run_dir, fresh, allow_change))


@app.command()
def sample(
    run_or_model: Annotated[str, typer.Argument(help="RUN, RUN@iteration, model or hub id.")],
    prompts: Annotated[Path, typer.Option(help="Prompt file, in any format that training takes.")],
    to: Annotated[Path, typer.Option(help="Folder for the samples.")],
    per_prompt: Annotated[int, typer.Option(help="Samples per prompt.", min=1)] = 4,
    seed: Annotated[int, typer.Option(help="Seed of the samples.", min=0, max=2**63 - 1)] = 0,
    weights: Annotated[str, typer.Option(help="trained or ema (of a run).")] = "trained",
    set_: SetOption = [],  # noqa: B006
) -> None:
    """Sample pictures or completions from a run's checkpoint, or from a model as it is, with the
    settings of evaluations.

    Example:
        [cyan]adrpo-scale sample runs/demo --prompts my_prompts.txt --to samples
        --set domain.evaluation.temperature=0[/cyan]
    """
    from adrpo_scale.evaluation import sample as sampler

    if weights not in ("trained", "ema"):
        raise ConfigError(f"--weights {weights!r}: expected trained or ema")
    sampler.sample(run_or_model, prompts, to, per_prompt, seed, weights, set_)


@app.command()
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
    exporter.report(exporter.export(run_or_checkpoint, request, base))


@app.command()
def inspect(
    run_or_checkpoint: Annotated[str, typer.Argument(help="RUN, RUN@iteration or a checkpoint.")],
    as_json: Annotated[bool, typer.Option("--json", help="For programs.")] = False,
) -> None:
    """Show what is in a checkpoint and whether every hash holds; exit code 1 if not.

    Example:
        [cyan]adrpo-scale inspect runs/demo@60[/cyan]
    """
    from adrpo_scale.checkpoint import inspect as inspection

    found = inspection.inspect(run_or_checkpoint)
    if as_json:
        print(json.dumps(found.facts, indent=2))
    else:
        inspection.show(found)
    if not found.is_whole:
        raise typer.Exit(1)


@app.command("config")
def show_config(
    config: Annotated[Path | None, typer.Argument(help="TOML file of a run.")] = None,
    diff: Annotated[Path | None, typer.Option(help="Show only what differs from this one.")] = None,
    schema: Annotated[bool, typer.Option(help="Print the JSON schema for editors.")] = False,
    set_: SetOption = [],  # noqa: B006
) -> None:
    """Show every setting: value, where it comes from, what it means.

    Example:
        [cyan]adrpo-scale config configs/sd3/adrpo.toml --diff configs/sd3/grpo.toml[/cyan]
    """
    from adrpo_scale.core.console import console
    from adrpo_scale.run import config_view
    from adrpo_scale.run.config import load_config

    if schema:
        print(json.dumps(config_view.schema(), indent=2))
        return
    if config is None:
        raise ConfigError("adrpo-scale config needs a CONFIG, or --schema")
    loaded = load_config(config, set_)
    if diff is not None:
        console.print(config_view.difference_table(loaded, load_config(diff)))
    else:
        console.print(config_view.config_table(loaded))


@app.command()
def report(
    runs: Annotated[list[Path], typer.Argument(help="Run folders.")],
    curves: Annotated[Path | None, typer.Option(help="Also draw the curves into this PNG.")] = None,
) -> None:
    """Compare runs: a Markdown table of their last three evaluations, a line per algorithm.

    Example:
        [cyan]adrpo-scale report runs/image_adrpo-* runs/image_grpo-* --curves curves.png[/cyan]
    """
    from adrpo_scale.run import figures, tables

    rows = [tables.read_rows(run) for run in runs]
    print(tables.markdown(tables.comparison(rows)))
    if curves is not None:
        figures.curves(rows, curves)


@demo_app.command("build")
def build_demo(
    name: Annotated[str, typer.Argument(help="image, text, text_rm or audio")],
    to: Annotated[Path | None, typer.Option(help="Folder; default: the shipped assets.")] = None,
) -> None:
    """Build a demo's small models and prompts again, from code and pinned seeds.

    Example:
        [cyan]adrpo-scale demo build image --to /tmp/image-demo[/cyan]
    """
    from adrpo_scale.core.paths import ASSETS
    from adrpo_scale.demo.audio.build import build_audio
    from adrpo_scale.demo.image.build import build_image
    from adrpo_scale.demo.text.build import build_text, build_text_rm

    builders: dict[str, Callable[[Path], None]] = {
        "image": build_image,
        "text": build_text,
        "text_rm": build_text_rm,
        "audio": build_audio,
    }
    if name not in builders:
        raise ConfigError(f"demo {name!r} is not known; known: {', '.join(builders)}")
    builders[name](to or ASSETS / name)


cluster_cli.add_to(app)
app.add_typer(data_cli.app, name="prepare")
evaluate_cli.add_to(app)

# Raised alike on every rank wherever they rise, so rank 0's message is enough.
_AGREED = (ConfigError, PromptError, GroupError, LimitReached, NonFiniteError)


def main() -> None:
    """Runs the command. Exit codes: 0 done, 2 an error of the user's to mend, 3 a limit reached,
    4 a node is unfit and others would do, 85 stopped by a signal, 86 another process was lost."""
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
