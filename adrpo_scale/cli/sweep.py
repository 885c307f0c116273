"""The command `sweep`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from adrpo_scale.cli.plan import GbitOption
from adrpo_scale.cli.preflight import preflight_apart
from adrpo_scale.core.errors import AdrpoError, ConfigError, StopRequested, exit_code
from adrpo_scale.run.sweep import MOST

if TYPE_CHECKING:
    from adrpo_scale.cluster.sweep.state import ElementState
    from adrpo_scale.run.sweep import Sweep

SweepPath = Annotated[
    Path, typer.Argument(help="TOML file of the sweep, e.g. configs/sweeps/clip_range.toml.")
]
ElementOption = Annotated[
    int | None,
    typer.Option(
        help="Train this element here; with --per-node, this block of them.", min=0, max=MOST - 1
    ),
]


def sweep(
    file: SweepPath,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Say what the sweep costs, by `plan`.")
    ] = False,
    run: Annotated[
        bool, typer.Option("--run", help="Work through the sweep on this machine.")
    ] = False,
    element: ElementOption = None,
    again: Annotated[
        list[str],
        typer.Option(help="State whose elements are trained again: failed or limit; repeatable."),
    ] = [],  # noqa: B006
    at_once: Annotated[
        int | None, typer.Option(help="Runs at the same time; default: 1.", min=1, max=1000)
    ] = None,
    per_node: Annotated[
        int, typer.Option(help="Runs of one GPU that share a node.", min=1, max=64)
    ] = 1,
    preflight: Annotated[
        bool, typer.Option("--preflight", help="Check the nodes first, as `train --preflight`.")
    ] = False,
    nodes: Annotated[
        int, typer.Option(help="With --dry-run: nodes of a run.", min=1, max=10_000)
    ] = 1,
    gpus_per_node: Annotated[
        int, typer.Option(help="With --dry-run: GPUs in each node.", min=1, max=64)
    ] = 8,
    gpu: Annotated[str, typer.Option(help="With --dry-run: GPU, as in `plan`.")] = "a6000",
    network_gbit: GbitOption = 100,
) -> None:
    """Train runs that differ in listed settings: show them, price them, work through them.

    Without options the command lists every element with its settings and its run folder, and the
    line for Slurm. An element has the same settings for good: a file that has changed since the
    sweep began is refused with the difference. The same command goes on after a stop; elements that
    are done, failed, or ended at a limit are left as they are.

    Example:
        adrpo-scale sweep configs/sweeps/clip_range.toml --dry-run --nodes 10
        adrpo-scale sweep configs/sweeps/image_seeds.toml --run --at-once 2
        adrpo-scale sweep configs/sweeps/clip_range.toml --again failed
    """
    from adrpo_scale.run.sweep import read_sweep

    found = read_sweep(file)
    _check_options(dry_run, run, element, per_node, nodes, again)
    if dry_run:
        _price(found, at_once, per_node, (gpu, nodes, gpus_per_node, network_gbit))
    elif element is not None and per_node == 1:
        _train(found, element, preflight)
    elif run or element is not None:
        block = None if element is None else found.block(element, per_node)
        numbers = [one.number for one in block or found.elements]
        _work(found, numbers, at_once or per_node, again, preflight)
    else:
        _list(found, again)


def _check_options(
    dry_run: bool, run: bool, element: int | None, per_node: int, nodes: int, again: list[str]
) -> None:
    from adrpo_scale.cluster.sweep.state import AGAIN

    modes = {"--dry-run": dry_run, "--run": run, "--element": element is not None}
    chosen = [name for name, is_on in modes.items() if is_on]
    if len(chosen) > 1:
        raise ConfigError(f"{' with '.join(chosen)}: give one of them")
    unknown = [state for state in again if state not in AGAIN]
    if unknown:
        raise ConfigError(f"--again {unknown[0]}: expected {' or '.join(AGAIN)}")
    if again and (dry_run or (element is not None and per_node == 1)):
        raise ConfigError(f"--again with {chosen[0]}: give it with --run, or alone")
    if per_node > 1 and run:
        raise ConfigError("--per-node with --run: on this machine it is --at-once")
    if per_node > 1 and nodes > 1:
        raise ConfigError(
            f"--per-node {per_node} with --nodes {nodes}: a run shares one node, or has several"
        )


def _list(sweep: Sweep, again: list[str]) -> None:
    from adrpo_scale.cluster.sweep.state import states_of
    from adrpo_scale.run.sweep_runs import checked

    if again:
        states = [one for one in states_of(sweep) if one.state in again]
        for one in states:
            print(f"{one.element}: {one.state}, {one.why}")
        if not states:
            print(f"no element is {' or '.join(again)}")
            return
        array = ",".join(str(one.element.number) for one in states)
    else:
        for found in checked(sweep):
            print(f"{found.element}: {found.folder}")
        array = f"0-{len(sweep.elements) - 1}"
    print(f"on Slurm: sbatch --nodes=1 --array={array} slurm/sweep.sbatch {sweep.file}")


def _price(
    sweep: Sweep, at_once: int | None, per_node: int, machine: tuple[str, int, int, float]
) -> None:
    from adrpo_scale.cluster.sweep.size import priced

    gpu, nodes, gpus_per_node, network_gbit = machine
    gpus = gpus_per_node if per_node == 1 else 1
    print(priced(sweep, (gpu, nodes, gpus, network_gbit), per_node, at_once or 1))


def _train(sweep: Sweep, number: int, preflight: bool) -> None:
    """One element, in this process and in those that the launcher started beside it."""
    from adrpo_scale.cluster.plan.choice import choose_apart
    from adrpo_scale.cluster.sweep.work import end_with_sweep
    from adrpo_scale.core import failure
    from adrpo_scale.core.dist import rank_facts
    from adrpo_scale.run import train as running
    from adrpo_scale.run.sweep_record import forget_error, note_error
    from adrpo_scale.run.sweep_runs import element_run

    end_with_sweep()
    is_main = rank_facts().is_main
    found = element_run(sweep, number, is_main)
    element, code, why = found.element, 0, ""
    if is_main:
        forget_error(sweep, element)
        print(f"element {element}", flush=True)
    try:
        if preflight:
            preflight_apart(Path(element.base), element.overrides, found.folder)
        running.train(found.loaded, running.TrainOptions(found.folder, choose=choose_apart))
    except typer.Exit as end:
        code, why = end.exit_code, f"preflight ended with exit code {end.exit_code}"
        raise
    except AdrpoError as error:
        code, why = exit_code(error), str(error)
        raise
    except Exception as error:
        if not isinstance(error, StopRequested) and not failure.is_lost(error):
            code, why = 1, f"{type(error).__name__}: {error}"
        raise
    finally:
        if is_main and 0 < code < 85:
            note_error(sweep, element, code, why)


def _work(
    sweep: Sweep, numbers: list[int], at_once: int, again: list[str], preflight: bool
) -> None:
    """Elements of the sweep, each in a process of its own on this machine."""
    from adrpo_scale.cluster.sweep import state, view, work
    from adrpo_scale.run.sweep_record import folder_of
    from adrpo_scale.run.sweep_runs import begun

    begun(sweep)
    more = ["--preflight"] if preflight else []
    worker = work.Worker(at_once, work.visible_gpus(), lambda line: print(line, flush=True))

    def states() -> list[ElementState]:
        # Not from the queue, in which this job itself still runs.
        found = state.states_of(sweep, ask_queue=False)
        return [one for one in found if one.element.number in numbers]

    def jobs() -> list[work.Job]:
        waiting = [one.element for one in state.to_do(states(), again)]
        return [
            work.Job(
                element,
                work.command_of(sweep.file, element.number, more),
                folder_of(sweep) / "logs" / f"{element.number:02d}.txt",
            )
            for element in waiting
            if element.number not in worker.codes
        ]

    while not worker.signals and (waiting := jobs()):  # one that ran elsewhere may have stopped
        worker.work(waiting)
    print(view.line(states()))
    code = work.exit_code_of(worker.codes, bool(worker.signals))
    if work.is_accident(code):
        print(f"exit code {code}: the same command goes on", file=sys.stderr)
    if code:
        raise typer.Exit(code)
