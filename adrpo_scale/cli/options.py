"""The verbs around a run on a cluster: prefetch, plan, preflight, status. Part of `cli`.

Heavy imports are inside the verbs, so that `--help` answers at once.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

ConfigPath = Annotated[
    Path, typer.Argument(help="TOML file of the run, e.g. configs/sd3/adrpo.toml")
]
SetOption = Annotated[
    list[str], typer.Option("--set", help="Override a setting: section.key=value; repeatable.")
]
JsonOption = Annotated[bool, typer.Option("--json", help="For programs.")]


def status(
    runs: Annotated[list[Path], typer.Argument(help="Run folders.")],
    as_json: JsonOption = False,
) -> None:
    """Show where runs are: state, iteration, reward, time left, last checkpoint and the work at
    risk since, lives, work done again, hours; and what the queue says, where Slurm answers. Reads
    the folders alone; exit code 2 where one is no run.

    Example:
        [cyan]adrpo-scale status runs/*[/cyan]
    """
    from adrpo_scale.cluster.status import view

    code = view.report(runs, as_json)
    if code:
        raise typer.Exit(code)


def prefetch(
    configs: Annotated[list[Path], typer.Argument(help="TOML files of runs.")],
    set_: SetOption = [],  # noqa: B006 (typer copies it)
    lock: Annotated[
        Path | None,
        typer.Option(help="The lock; default $ADRPO_PREFETCH_LOCK, or ./prefetch.lock."),
    ] = None,
    upgrade: Annotated[
        bool, typer.Option("--upgrade", help="Newest revisions of what is locked, too.")
    ] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Ask and show; download nothing.")
    ] = False,
) -> None:
    """Bring the models and datasets of runs into the hub's cache, on a login node, and pin their
    revisions in prefetch.lock. Access, licence terms and room are checked first.

    Example:
        [cyan]HF_HOME=/scratch/$USER/hf adrpo-scale prefetch configs/sd3/adrpo.toml[/cyan]
    """
    from adrpo_scale.hub import prefetch as prefetching
    from adrpo_scale.run.config import load_config

    loaded = [load_config(config, set_).config for config in configs]
    needs = [need for config in loaded for need in config.needs_from_hub()]
    quotas = (config.checkpoint.quota_command for config in loaded)
    quota = next((command for command in quotas if command), None)
    prefetching.prefetch(needs, quota, lock, upgrade, dry_run)


def preflight(
    config: ConfigPath,
    set_: SetOption = [],  # noqa: B006
    run_dir: Annotated[Path | None, typer.Option(help="Run folder, as `train` has it.")] = None,
    as_json: JsonOption = False,
    seconds: Annotated[
        float, typer.Option(help="How long to wait for every process of every node.", min=1)
    ] = 120.0,
    skip: Annotated[
        list[str], typer.Option(help="A check to leave out, by its name; repeatable.")
    ] = [],  # noqa: B006
) -> None:
    """Check nodes, run folder, models, room, versions, GPUs and network before a run, started as
    the run will be; on one machine also alone. Exit code 0: fit; 4: the nodes named are unfit,
    others would do; 2: something that no other node would mend.

    Example:
        [cyan]srun --ntasks-per-node=1 launchers/node.sh -m adrpo_scale preflight
        configs/sd3/adrpo.toml --seconds 60[/cyan]
    """
    import os
    import sys

    from adrpo_scale.cluster.preflight import run
    from adrpo_scale.core.dist import rank_facts

    code = run.preflight(run.Orders(config, set_, run_dir, as_json, seconds, frozenset(skip)))
    sys.stdout.flush()
    if rank_facts().world > 1:
        # Threads of gloo and NCCL abort a process now and then while it takes them down, and would
        # spoil the exit code; a thread that a broken network holds would never let it end.
        os._exit(code)
    raise typer.Exit(code)


def preflight_apart(config: Path, overrides: list[str], run_dir: Path | None) -> None:
    """The verb in a process of its own, before this one joins the others: its groups, its threads
    and its memory on the GPU end with it. Exits with its code if that is not 0."""
    import os
    import subprocess
    import sys

    command = [sys.executable, "-m", "adrpo_scale", "preflight", str(config)]
    # 80 processes that import at once from a shared filesystem take minutes.
    command += ["--seconds", "300", *(word for text in overrides for word in ("--set", text))]
    command += ["--run-dir", str(run_dir)] if run_dir is not None else []
    env = dict(os.environ)
    if env.get("MASTER_PORT", "").isdigit() and "TORCHELASTIC_USE_AGENT_STORE" not in env:
        # A slow rank must not take the one store for the other.
        env["MASTER_PORT"] = str(int(env["MASTER_PORT"]) + 1)
    code = subprocess.run(command, env=env).returncode
    if code:
        raise typer.Exit(code if code > 0 else 128 - code)


def plan(
    config: ConfigPath,
    nodes: Annotated[int, typer.Option(help="Nodes of the job.")] = 1,
    gpus_per_node: Annotated[int, typer.Option(help="GPUs of a node.")] = 8,
    gpu: Annotated[str, typer.Option(help="a6000, l40s, a100-40, a100-80, h100, h200.")] = "a6000",
    network_gbit: Annotated[float, typer.Option(help="Gb/s of a node to others.")] = 100,
    time_limit: Annotated[
        float | None, typer.Option(help="Hours that a job may take: how many jobs it needs.")
    ] = None,
    trial: Annotated[
        Path | None, typer.Option(help="trial.json of `train --trial`: measured, not assumed.")
    ] = None,
    set_: SetOption = [],  # noqa: B006 (typer copies it)
    as_json: JsonOption = False,
) -> None:
    """Plan a run before it is queued: memory of every phase, traffic, time, and whether it fits;
    exit code 2 with the cheapest change that would, where it does not. Needs no GPU, no network
    and no weights.

    Example:
        [cyan]adrpo-scale plan configs/sd3/adrpo.toml --nodes 10 --gpus-per-node 8 --gpu
        a6000[/cyan]
    """
    from adrpo_scale.cluster.plan.calibrate import read_trial
    from adrpo_scale.cluster.plan.hardware import build_hardware
    from adrpo_scale.cluster.plan.verb import report
    from adrpo_scale.run.config import load_config

    loaded = load_config(config, set_)
    hardware = build_hardware(gpu, nodes, gpus_per_node, network_gbit)
    measured = None if trial is None else read_trial(trial)
    report(loaded, hardware, measured, time_limit, as_json)


def add_to(app: typer.Typer) -> None:
    """Adds this module's verbs to the command."""
    for verb in (plan, prefetch, preflight, status):
        app.command()(verb)
