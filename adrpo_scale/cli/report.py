"""The command `report`."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Annotated

import typer

from adrpo_scale.cli.options import SweepOption, WeightsOption
from adrpo_scale.core.disk_space import size_text
from adrpo_scale.core.errors import ConfigError
from adrpo_scale.core.printable import one_line

if TYPE_CHECKING:
    from adrpo_scale.evaluation.report.given import Given

Runs = Annotated[
    list[str],
    typer.Argument(
        help="Runs: RUN, RUN@120, RUN@last, RUN@best or RUN@* (every evaluation a row); folders "
        "that `evaluate` wrote; or what --bundle wrote."
    ),
]
Curves = Annotated[Path | None, typer.Option(help="PNG file to draw the curves into.")]
Trace = Annotated[
    Path | None,
    typer.Option(help="CSV file: run, iterations and weights behind each cell of the table."),
]
Bundle = Annotated[
    Path | None,
    typer.Option(help="Tar file: all that these tables are made from, without weights."),
]
Statement = Annotated[
    Path | None,
    typer.Option(
        help="FILE.md or FILE.tex: settings, hardware, hours, revisions, seeds, runs not shown, "
        "and what is not recorded."
    ),
]
Images = Annotated[
    int, typer.Option(min=0, max=10_000, help="Pictures of each row in the bundle, at most.")
]
To = Annotated[
    Path | None,
    typer.Option(
        help="Folder for the tables, in Markdown, LaTeX and CSV, and figures, in SVG and PNG."
    ),
]

Html = Annotated[
    Path | None,
    typer.Option(help="HTML file: tables, figures, samples and settings on one page."),
]
HtmlMegabytes = Annotated[
    int, typer.Option(min=0, max=2000, help="Room for full pictures in the HTML file.")
]


def report(
    context: typer.Context,
    runs: Runs = [],  # noqa: B006
    sweep: SweepOption = None,
    weights: WeightsOption = "evaluated",
    to: To = None,
    html: Html = None,
    html_megabytes: HtmlMegabytes = 32,
    curves: Curves = None,
    trace: Trace = None,
    bundle: Bundle = None,
    images: Images = 8,
    statement: Statement = None,
) -> None:
    """Compare runs in a Markdown table of their last evaluations.

    Values are means of the last three evaluations. Runs that differ in their seed alone share one
    row; its label names the settings that differ between rows. A second table keeps apart the
    errors over training seeds, of sampling and over prompts.

    Example:
        adrpo-scale report runs/image_adrpo-* runs/image_grpo-* --curves curves.png
        adrpo-scale report runs/image_adrpo-* runs/image_grpo-* --html report.html
        adrpo-scale report --sweep configs/sweeps/image_seeds.toml --to reports
        adrpo-scale report --sweep configs/sweeps/image_seeds.toml --bundle seeds.tar
        adrpo-scale report seeds.tar --statement seeds.md
    """
    from adrpo_scale.evaluation.report.text import report_text
    from adrpo_scale.evaluation.report.text import trace as trace_text
    from adrpo_scale.run import figures

    given = _given(context, runs, sweep, weights)
    found, told = given.runs, given.line
    print(report_text(found))
    for line in filter(None, told.split("\n")):
        print(f"\n{one_line(line)}")
    if to is not None:
        _write(given, to)
    if html is not None:
        words = runs if sweep is None else [*runs, "--sweep", str(sweep)]
        _write_page(given, words, html, html_megabytes)
    if trace is not None:
        _write_file(trace, trace_text(found).encode("utf-8", "backslashreplace"))
    if curves is not None:
        figures.curves([run.rows for run in found], curves)
    if bundle is not None or statement is not None:
        _write_whole(given, bundle, images, statement)


def _write_whole(given: Given, bundle: Path | None, images: int, statement: Path | None) -> None:
    """The bundle and the statement, which also name the runs that are not shown."""
    from adrpo_scale.evaluation.report.bundle import write_bundle
    from adrpo_scale.evaluation.report.statement import write_statement
    from adrpo_scale.evaluation.report.tried import with_tried

    given = with_tried(given)
    if bundle is not None:
        files, size = write_bundle(bundle, given, pictures=images)
        print(f"{bundle}: {files} files, {size_text(size)}", file=sys.stderr)
    if statement is not None:
        write_statement(statement, given)


def _given(context: typer.Context, runs: list[str], sweep: Path | None, weights: str) -> Given:
    """The runs to compare. What bundles hold is unpacked until the command ends."""
    from adrpo_scale.checkpoint.named import parse_weights
    from adrpo_scale.evaluation.report.given import read_given

    word = parse_weights(weights)
    names, told = [*runs], ""
    if sweep is not None:
        begun, told = _of_sweep(sweep)
        names += begun
    if not names:
        raise ConfigError("report without a run: name folders of runs, or --sweep FILE")

    def new_folder() -> Path:
        return Path(context.with_resource(TemporaryDirectory(prefix="adrpo-bundle-")))

    given = read_given(names, word, new_folder, told)
    for run in given.left_out:
        print(f"note: {run} has no evaluation yet, or is a trial: left out", file=sys.stderr)
    return given


def _write(given: Given, to: Path) -> None:
    from adrpo_scale.evaluation.report.folder import report_files, write_report

    files, left_out = report_files(given.runs, given.line)
    write_report(files, to)
    for each in left_out:
        print(one_line(f"note: without {each.name}: {each.reason}"), file=sys.stderr)
    print(f"{to}: {len(files)} files", file=sys.stderr)


def _write_file(to: Path, content: bytes) -> None:
    from adrpo_scale.core.files import replace_file
    from adrpo_scale.core.paths import make_output_folder

    make_output_folder(to.parent)
    replace_file(to, content, durable=False)


def _write_page(given: Given, words: Sequence[str], to: Path, megabytes: int) -> None:
    from adrpo_scale.evaluation.report.figures.catalogue import figures_of
    from adrpo_scale.evaluation.report.page import report_page

    drawn, left_out = figures_of(given.runs)
    page = report_page(given.runs, words, drawn, left_out, given.line, megabytes)
    _write_file(to, page)
    print(f"{to}: {size_text(len(page))}", file=sys.stderr)


def _of_sweep(file: Path) -> tuple[list[str], str]:
    """(folders of the runs that have begun, a line about all elements) of a sweep."""
    from adrpo_scale.cluster.sweep import view
    from adrpo_scale.cluster.sweep.state import states_of
    from adrpo_scale.run.sweep import read_sweep

    states = states_of(read_sweep(file))
    begun = [str(one.run) for one in states if one.run is not None and one.facts is not None]
    if not begun:
        raise ConfigError(f"report --sweep {file}: no element has begun; {view.line(states)}")
    return begun, one_line(f"{file}: {view.line(states)}")
