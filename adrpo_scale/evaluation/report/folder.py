"""The files of `report --to FOLDER`, from run folders alone: the same folders give the same bytes.

table.md, table.tex    the tables, their errors and notes
table.csv, trace.csv   a line a cell; a line a run behind each cell
figures.md             titles and captions of the figures, and those left out
figures/NAME.svg, .png
completions.md, .tex   completions of two rows to the same question
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from adrpo_scale.core import markdown
from adrpo_scale.core.files import replace_file
from adrpo_scale.core.paths import make_output_folder
from adrpo_scale.core.printable import one_line
from adrpo_scale.evaluation.report.completions import completions_md, completions_tex, paired
from adrpo_scale.evaluation.report.csv_table import table_csv
from adrpo_scale.evaluation.report.evaluated import Evaluated
from adrpo_scale.evaluation.report.figures.base import Figure, LeftOut
from adrpo_scale.evaluation.report.figures.catalogue import FIGURES, figures_of
from adrpo_scale.evaluation.report.latex import report_tex
from adrpo_scale.evaluation.report.text import report_text, trace

FOLDER = "figures"
COMPLETIONS = ("completions.md", "completions.tex")


def report_files(
    runs: Sequence[Evaluated], told: str = "", names: Sequence[str] | None = None
) -> tuple[dict[str, bytes], list[LeftOut]]:
    """(content by path in the folder, what is left out). told: lines below the tables, of a
    sweep. names: of the figures; None for all."""
    figures, left_out = figures_of(runs, names)
    texts = {
        "table.md": "\n\n".join([report_text(runs), *_lines(told)]) + "\n",
        "table.tex": report_tex(runs),
        "table.csv": table_csv(runs),
        "trace.csv": trace(runs),
    }
    pairs = paired(runs)
    if isinstance(pairs, LeftOut):
        left_out.append(pairs)
    else:
        texts |= {COMPLETIONS[0]: completions_md(pairs), COMPLETIONS[1]: completions_tex(pairs)}
    texts["figures.md"] = _captions(figures, left_out)
    files = {name: text.encode("utf-8", "backslashreplace") for name, text in texts.items()}
    for figure in figures:
        files[f"{FOLDER}/{figure.name}.svg"] = figure.svg.encode("utf-8", "backslashreplace")
        files[f"{FOLDER}/{figure.name}.png"] = figure.png
    return files, left_out


def _lines(text: str) -> list[str]:
    return [one_line(line) for line in text.split("\n") if line]


def _captions(figures: Sequence[Figure], left_out: Sequence[LeftOut]) -> str:
    parts = [
        f"## {markdown.inline(figure.title)}\n\n![]({FOLDER}/{figure.name}.png)\n\n"
        f"{markdown.inline(figure.caption)}\n"
        for figure in figures
    ]
    if left_out:
        lines = [f"* {each.name}: {markdown.inline(each.reason)}" for each in left_out]
        parts.append("## Left out\n\n" + "\n".join(lines) + "\n")
    return "\n".join(parts)


def write_report(files: Mapping[str, bytes], to: Path) -> None:
    """Writes the files into the folder, and removes figures of an earlier report that the runs no
    longer have. ConfigError where `to` cannot be a folder."""
    make_output_folder(to)
    make_output_folder(to / FOLDER)
    ours = {f"{FOLDER}/{name}.{ending}" for name in FIGURES for ending in ("svg", "png")}
    for name in sorted({*ours, *COMPLETIONS} - {*files}):
        (to / name).unlink(missing_ok=True)
    for name, content in files.items():
        replace_file(to / name, content, durable=False)
