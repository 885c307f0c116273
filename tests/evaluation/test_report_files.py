"""`report --to`: tables in LaTeX and CSV, files that are the same twice, and hostile names."""

from __future__ import annotations

import csv
import io
import json
import re
from pathlib import Path

import pytest

from adrpo_scale.evaluation.report.comparison import marks, table_lines
from adrpo_scale.evaluation.report.csv_table import table_csv
from adrpo_scale.evaluation.report.figures.catalogue import FIGURES
from adrpo_scale.evaluation.report.folder import report_files, write_report
from adrpo_scale.evaluation.report.latex import escaped, report_tex
from tests.evaluation.test_report import COLUMN, made, read

HOSTILE = "a_{b}$x$%\\input{z}&#^~[1]*'\"`<i>|--é\x1b\n</svg>"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("50 % of a_b & c", r"50 \% of a\_b \& c"),
        (r"\input{x}", r"\textbackslash{}input\{x\}"),
        ("[1]*", "{[}1{]}{*}"),  # after \\ an optional argument, or a star of the command
        ("a ×2, -0.5 ± 1", r"a $\times$2, $-$0.5 $\pm$ 1"),
        ("image_x-0 --set ---", r"image\_x-0 -{}-set -{}-{}-"),
        ("$x$ ^2 ~ `", r"\$x\$ \textasciicircum{}2 \textasciitilde{} \textasciigrave{}"),
        ("a\nb", r"a\textbackslash{}nb"),
    ],
)
def test_a_text_is_escaped(text, expected):
    assert escaped(text) == expected


def test_latex_has_the_marks_and_numbers_of_the_markdown_table(tmp_path):
    one, other = made(tmp_path, "a", 0, [1.0]), made(tmp_path, "b", 0, [2.0])
    found = report_tex(read(one, other))
    assert r"a $\times$1 & \textit{2.73} \\" in found
    assert r"b $\times$1 & \textbf{4.08} \\" in found and r" & reward (held\_out) \\" in found
    assert found.count(r"\toprule") == found.count(r"\bottomrule") == 2
    assert found.count("{") == found.count("}")  # escaped braces come in pairs here
    assert r"\textbf{Best} and \textit{second best} are marked" in found
    seeds = [made(tmp_path, "c", seed, [gain]) for seed, gain in enumerate((1.0, 1.2))]
    assert r"2.86 $\pm$ 0.14" in report_tex(read(*seeds))


def test_csv_has_every_number_of_a_cell(tmp_path):
    names = [made(tmp_path, "a", seed, [gain]) for seed, gain in enumerate((1.0, 2.0, 4.0))]
    lines = table_lines(read(*names))
    rows = list(csv.DictReader(io.StringIO(table_csv(read(*names)))))
    assert [row["row"] for row in rows] == [line.label for line in lines] == ["base", "a ×3"]
    cell, row = lines[1].cells[COLUMN], rows[1]
    assert float(row["mean"]) == cell.mean and row["runs"] == "3"
    assert float(row["training-seed s.e."]) == cell.seed_error
    assert float(row["sampling s.e."]) == cell.sampling_error
    assert float(row["prompts low"]) == cell.prompt_interval.low and row["prompts"] == "8"
    assert rows[0]["training-seed s.e."] == "" and rows[0]["trained here"] == "no"
    assert [row["mark"] for row in rows] == [marks(lines, COLUMN).get(k, "") for k in (0, 1)]


def test_names_of_others_break_no_table_and_no_figure(tmp_path):
    names = [made(tmp_path, "a", seed, [1.0, 2.0]) for seed in (0, 1)]
    for name in names:
        for file in ("config.json", "eval.jsonl"):
            text = (Path(name) / file).read_text()
            text = text.replace('"name": "a"', f'"name": {json.dumps(HOSTILE)}')
            (Path(name) / file).write_text(text.replace('"algorithm": "a"', '"algorithm": "$_{"'))
    files, _ = report_files(read(*names))
    lines = [line for line in files["table.tex"].decode().splitlines() if "input" in line]
    assert lines and all(r"\input" not in line and "\x1b" not in line for line in lines)
    assert all(len(re.findall(r"(?<!\\)&", line)) in (0, 1, 6) for line in lines)
    svg = files["figures/learning_curves.svg"].decode()
    assert svg.count("</svg>") == 1 and "<i>" not in svg and "\x1b" not in svg


def test_the_folder_is_the_same_twice_and_old_figures_leave_it(tmp_path):
    runs = tmp_path / "runs"
    runs.mkdir()
    name = made(runs, "a", 0, [1.0, 2.0])
    first, left_out = report_files(read(name), "of a sweep")
    assert first == report_files(read(name), "of a sweep")[0]
    assert first["table.md"].decode().endswith("\n\nof a sweep\n")
    to = tmp_path / "report"
    (to / "figures").mkdir(parents=True)
    for stays in ("figures/mine.png", "notes.txt"):
        (to / stays).write_text("of the user")
    (to / "figures" / "fronts.svg").write_text("of an earlier report")
    write_report(first, to)
    there = {str(p.relative_to(to)) for p in to.rglob("*") if p.is_file()}
    assert there == {*first, "figures/mine.png", "notes.txt"}
    assert all((to / path).read_bytes() == content for path, content in first.items())
    assert {each.name for each in left_out} == {*FIGURES, "completions"} - {
        Path(path).stem for path in first if path.startswith("figures/")
    }
    assert all(each.reason in first["figures.md"].decode().replace("\\", "") for each in left_out)
