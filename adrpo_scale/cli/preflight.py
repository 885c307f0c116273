"""The command `preflight`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from adrpo_scale.cli.options import ConfigPath, JsonOption, SetOption


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
    others would do; 2: something that no other node would fix.

    Example:
        [cyan]srun --ntasks-per-node=1 launchers/node.sh -m adrpo_scale preflight
        configs/sd3/adrpo.toml --seconds 60[/cyan]
    """
    import os
    import sys

    from adrpo_scale.cluster.preflight import run
    from adrpo_scale.core.dist import rank_facts

    code = run.preflight(
        run.PreflightOptions(config, set_, run_dir, as_json, seconds, frozenset(skip))
    )
    sys.stdout.flush()
    if rank_facts().world > 1:
        # Threads of gloo and NCCL abort a process now and then while it takes them down, and would
        # spoil the exit code; a thread that a broken network holds would never let it end.
        os._exit(code)
    raise typer.Exit(code)


def preflight_apart(config: Path, overrides: list[str], run_dir: Path | None) -> None:
    """`preflight` in a process of its own, before this one joins the others: its groups, its
    threads and its memory on the GPU end with it. Exits with its code if that is not 0."""
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
