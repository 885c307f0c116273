"""The command `preflight`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from adrpo_scale.cli.options import AnyPath, JsonOption, ModelOption, SetOption


def preflight(
    config: AnyPath,
    set_: SetOption = [],  # noqa: B006
    run_dir: Annotated[
        Path | None,
        typer.Option(help="Run folder, as in `train`, or folder of results, as in `evaluate`."),
    ] = None,
    as_json: JsonOption = False,
    seconds: Annotated[
        float, typer.Option(help="Time to wait for all processes of all nodes.", min=1, max=86_400)
    ] = 120.0,
    skip: Annotated[list[str], typer.Option(help="Name of a check to leave out; repeatable.")] = [],  # noqa: B006
    model: ModelOption = None,
) -> None:
    """Check nodes, run folder, models, rewards, disk space, versions, GPUs and network.

    Of a sweep it checks all runs, of an evaluation its files, models and scorers. Start it in the
    same way as the run; on one machine it may also run in one process. Exit codes:
    0, the nodes are fit; 4, the named nodes are unfit and must be excluded; 2, a fault that no
    other node would fix.

    Example:
        srun --ntasks-per-node=1 launchers/node.sh -m adrpo_scale preflight \\
            configs/sd3/adrpo.toml --seconds 60
    """
    import os
    import sys

    from adrpo_scale.cluster.preflight import run
    from adrpo_scale.core.dist import rank_facts

    code = run.preflight(
        run.PreflightOptions(config, set_, run_dir, as_json, seconds, frozenset(skip), model)
    )
    sys.stdout.flush()
    if rank_facts().world > 1:
        # Without it, threads of gloo and NCCL now and then abort the process while it ends, which
        # changes the exit code; and a thread that a broken network blocks keeps it from ending.
        os._exit(code)
    raise typer.Exit(code)


def preflight_apart(
    config: Path, overrides: list[str], run_dir: Path | None, more: Sequence[str] = ()
) -> None:
    """Runs `preflight` in a subprocess, before this process joins the others: the process groups,
    threads and GPU memory of the checks end with it. Exits with its code if that is not 0. more:
    further options."""
    import os
    import subprocess
    import sys

    from adrpo_scale.core.numbers import natural

    command = [sys.executable, "-m", "adrpo_scale", "preflight", str(config)]
    # 80 processes that import at once from a shared filesystem take minutes.
    command += ["--seconds", "300", *(word for text in overrides for word in ("--set", text))]
    command += ["--run-dir", str(run_dir)] if run_dir is not None else []
    command += more
    env = dict(os.environ)
    port = natural(env.get("MASTER_PORT", ""))
    if port is not None and "TORCHELASTIC_USE_AGENT_STORE" not in env:
        # A store of its own: a slow rank would take this store for that of the training.
        env["MASTER_PORT"] = str(port + 1)
    code = subprocess.run(command, env=env).returncode
    if code:
        raise typer.Exit(code if code > 0 else 128 - code)
