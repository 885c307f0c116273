"""Pictures and completions of several rows side by side: of the same prompt and noise, or none."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pyarrow
import pytest
from PIL import Image
from pyarrow import parquet

from adrpo_scale.evaluation.report.completions import completions_md, completions_tex, paired
from adrpo_scale.evaluation.report.figures.base import Figure, LeftOut
from adrpo_scale.evaluation.report.figures.grids import picture_grids
from adrpo_scale.evaluation.report.figures.shown_pictures import (
    common_prompts,
    grid_pictures,
    parse_layout,
    shown_pictures,
)
from adrpo_scale.training.metrics import write_picture
from adrpo_scale.training.pictures import picture_grid
from tests.evaluation.test_report import made, read, written

PROMPTS = ["a ring", "two squares, and so many words that they take a second line of the grid"]


def flat(shade):
    return np.full((20, 20, 3), shade, np.uint8)


def with_grid(name, iteration, shades, prompts=PROMPTS):
    """The run with a grid whose first picture of prompt k has the shade shades[k]."""
    grid = picture_grid([[flat(s), flat(0)] for s in shades], prompts, [[0.5, 0.5]] * len(shades))
    (Path(name) / "samples").mkdir(exist_ok=True)
    write_picture(grid, Path(name) / "samples" / f"held_out-{iteration:06d}.png")
    return name


def test_a_grid_is_cut_where_its_file_says(tmp_path):
    name = with_grid(made(tmp_path, "a", 0, [1.0]), 1, (70, 140))
    found = grid_pictures(Path(name) / "samples" / "held_out-000001.png")
    assert list(found) == PROMPTS
    assert [np.unique(picture).tolist() for picture in found.values()] == [[70], [140]]


def test_rows_of_one_noise_stand_side_by_side_after_their_base(tmp_path):
    names = []
    for place, algorithm in enumerate(("a", "b")):
        name = made(tmp_path, algorithm, 0, [1.0, 2.0])
        with_grid(name, 0, (10, 20))
        names.append(with_grid(name, 2, (100 + place, 200 + place)))
    columns = shown_pictures(read(*names))
    assert [column.label for column in columns] == ["base", "a ×1", "b ×1"]
    assert [int(column.pictures["a ring"][0, 0, 0]) for column in columns] == [10, 100, 101]
    figure = picture_grids(read(*names))
    assert isinstance(figure, Figure) and figure == picture_grids(read(*names))
    assert figure.svg.count("<image") == 6


def test_characters_that_the_font_lacks_give_no_warning_and_the_same_picture(tmp_path, recwarn):
    prompts = ["\u732b $x$", "_\u200f"]
    names = [
        with_grid(made(tmp_path, name, 0, [1.0]), 1, (1, 2), prompts) for name in ("\u732b", "_b$")
    ]
    figure = picture_grids(read(*names))
    assert isinstance(figure, Figure) and figure == picture_grids(read(*names))
    assert not [w for w in recwarn if "Glyph" in str(w.message)]


def test_another_noise_or_other_prompts_are_no_column(tmp_path):
    one = with_grid(made(tmp_path, "a", 0, [1.0]), 1, (1, 2))
    seed = made(tmp_path, "b", 0, [1.0], overrides=["evaluation.seed=1"])
    assert shown_pictures(read(one, with_grid(seed, 1, (1, 2)))) == []
    other = with_grid(made(tmp_path, "b", 0, [1.0]), 1, (1, 2), ["a cross", "a ring"])
    assert isinstance(picture_grids(read(one, other)), LeftOut)


@pytest.mark.parametrize(
    "text",
    [
        *("", "[]", "{}", "nan", "[" * 10**5),
        '{"prompts": ["a"], "tops": [-1], "cell": 4, "gap": 1}',
        '{"prompts": ["a"], "tops": [1.5], "cell": 4, "gap": 1}',
        '{"prompts": [1], "tops": [1], "cell": 4, "gap": 1}',
        '{"prompts": ["a"], "tops": [1], "cell": 0, "gap": 1}',
        '{"prompts": "a", "tops": [1], "cell": 4, "gap": 1}',
    ],
)
def test_what_is_no_layout_has_no_pictures(text):
    assert parse_layout(text) == []


def test_a_layout_beyond_its_picture_and_files_that_are_no_picture_are_left_out(tmp_path):
    path = tmp_path / "grid.png"
    picture = Image.new("RGB", (8, 8))
    layout = {"prompts": ["in", "out"], "tops": [0, 6], "columns": 1, "cell": 4, "gap": 0}
    picture.info["adrpo_scale grid"] = json.dumps(layout)
    write_picture(picture, path)
    assert list(grid_pictures(path)) == ["in"]
    path.write_bytes(b"\x89PNG and no more")
    assert grid_pictures(path) == grid_pictures(tmp_path / "nothing.png") == {}


def row(folder, key, benchmark, lines):
    """A row of an evaluation with these lines of its manifest."""
    to = folder / "rows" / key
    (to / "images").mkdir(parents=True)
    identity = {"benchmark": benchmark, "row": key, "model": {"pipeline": key}, "published": True}
    (to / "evaluation.json").write_text(json.dumps(identity))
    written(to / "manifest.jsonl", lines)
    who = {"run": key, "algorithm": "none", "seed": None, "iteration": 0}
    written(to / "eval.jsonl", [who | {"split": "s", "metric": "clip", "value": 1.0, "n": 2}])
    return to


def sample(number, prompt, **more):
    of = {"id": number, "set": "s", "prompt": prompt, "prompt_id": prompt, "seed": 0, "sample": 0}
    return of | more


def test_rows_of_an_evaluation_show_the_first_picture_of_each_prompt(tmp_path):
    for key, shade in (("one", 60), ("two", 90)):
        lines = [sample(k, p, file=f"images/{k}.png") for k, p in enumerate(("p", "p", "q", "r"))]
        lines[3]["file"] = "../../../secret.png"
        to = row(tmp_path, key, "images", lines)
        for k in range(3):
            write_picture(Image.fromarray(flat(shade + k)), to / "images" / f"{k}.png")
    write_picture(Image.fromarray(flat(1)), tmp_path / "secret.png")
    columns = shown_pictures(read(str(tmp_path / "rows" / "one"), str(tmp_path / "rows" / "two")))
    assert [column.label for column in columns] == ["one", "two"]
    assert common_prompts(columns) == ["p", "q"]  # r's file lies outside
    shades = [int(c.pictures[p][0, 0, 0]) for c in columns for p in ("p", "q")]
    assert shades == [60, 62, 90, 92] and columns[0].pictures["p"].shape == (140, 140, 3)


# ---- completions ---------------------------------------------------------------------------------


def answered(name, iteration, texts):
    table = [
        {"sample": k, "prompt": f"question {k}", "completion": text, "reward_right": float(k)}
        for k, text in enumerate(texts)
    ]
    (Path(name) / "samples").mkdir(exist_ok=True)
    path = Path(name) / "samples" / f"completions-{iteration:06d}.parquet"
    parquet.write_table(pyarrow.Table.from_pylist(table), path)
    return name


def test_runs_are_paired_by_sample_where_their_answers_differ(tmp_path):
    one = answered(made(tmp_path, "a", 0, [1.0]), 4, ["same", "left", "x"])
    other = answered(made(tmp_path, "b", 0, [1.0]), 4, ["same", "right", "y"])
    answered(one, 8, ["later", "of one", "run alone"])
    pairs = paired(read(one, other))
    assert [pair.question for pair in pairs] == ["question 1", "question 2"]
    assert [(a.label, a.text, a.scores) for a in pairs[0].answers] == [
        ("a ×1", "left", {"right": 1.0}),
        ("b ×1", "right", {"right": 1.0}),
    ]
    assert pairs[0].of == "training seed 0, iteration 4, sample 1"
    elsewhere = answered(made(tmp_path, "b", 1, [1.0]), 4, ["other", "other", "other"])
    assert isinstance(paired(read(one, elsewhere)), LeftOut)  # another seed: other draws


def test_rows_of_an_evaluation_are_paired_with_their_scores(tmp_path):
    for key in ("one", "two"):
        to = row(tmp_path, key, "text", [sample(0, "p"), sample(1, "q")])
        texts = [{"id": k, "prompt": p, "seed": 0, "sample": 0} for k, p in enumerate("pq")]
        written(to / "completions.jsonl", [t | {"text": f"{key} of {t['prompt']}"} for t in texts])
        (to / "scores").mkdir()
        written(to / "scores" / "right.jsonl", [{"id": 0, "score": 0.5}, {"id": 1, "score": None}])
    pairs = paired(read(*(str(tmp_path / "rows" / key) for key in ("one", "two"))))
    assert [[a.text for a in pair.answers] for pair in pairs] == [
        ["one of p", "two of p"],
        ["one of q", "two of q"],
    ]
    assert pairs[0].answers[0].scores == {"right": 0.5} and pairs[0].of.startswith(
        "sampling seed 0"
    )
    text = completions_md(pairs)
    assert "**one (right 0.5)**\n\n```text\none of p\n```" in text and "**two**" in text


def test_hostile_texts_stay_texts(tmp_path):
    hostile = "```\n# no heading\n\\end{minipage} 50 % \x1b[2J\n\n" + "x" * 5000
    one = answered(made(tmp_path, "a", 0, [1.0]), 4, [hostile])
    other = answered(made(tmp_path, "b", 0, [1.0]), 4, ["$"])
    pairs = paired(read(one, other))
    text, tex = completions_md(pairs), completions_tex(pairs)
    assert "````text\n```\n# no heading" in text and "\x1b" not in text + tex
    assert f"({len(hostile)} characters)" in text and len(text) < 3000
    assert len(re.findall(r"\\end\{minipage\}", tex)) == 2 and r"50 \% " in tex and r"\$\par" in tex
    assert tex.count(r"\begin{minipage}") == 2


def test_without_completions_it_is_said_what_is_absent(tmp_path):
    found = paired(read(made(tmp_path, "a", 0, [1.0])))
    assert isinstance(found, LeftOut) and "logging.completions_every" in found.reason
    broken = made(tmp_path, "b", 0, [1.0])
    for name in (broken, made(tmp_path, "c", 0, [1.0])):
        (Path(name) / "samples").mkdir()
        (Path(name) / "samples" / "completions-000001.parquet").write_bytes(b"PAR1")
    names = [str(path) for path in tmp_path.iterdir()]
    assert isinstance(paired(read(*names)), LeftOut)
