"""`report --html`: what is on the page, what is left out and said, and that nothing leaves it."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import shutil
from html.parser import HTMLParser
from pathlib import Path

import pytest
from typer.testing import CliRunner

from adrpo_scale.cli.main import app
from adrpo_scale.evaluation.report import gallery
from adrpo_scale.evaluation.report.comparison import table_lines
from adrpo_scale.evaluation.report.evaluated import read_runs
from adrpo_scale.evaluation.report.figures.base import Figure, LeftOut
from adrpo_scale.evaluation.report.kept_samples import Noise, read_samples
from adrpo_scale.evaluation.report.page import report_page
from adrpo_scale.evaluation.report.page_tables import origins
from adrpo_scale.evaluation.report.thumbnails import Store
from tests.support.row_folders import EVALUATE, PROMPTS, row_folder

OLD = Path(__file__).parents[1] / "golden" / "runs"
HOSTILE = (
    ("</h3><script>window.hostile = 1</script>", "a"),
    ('"><img src=x onerror="window.hostile = 1">', "<b>b</b>"),
    ("{{ 7 * 7 }} \x1b[2J \u202e back\nline", "a"),
)


class Read(HTMLParser):
    """Tags with their attributes, the text, and what `style` and `script` hold."""

    def __init__(self, page: bytes) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text, self.raw = "", {}
        self._inside = ""
        self.feed(page.decode())

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        self._inside = tag if dict(attrs).get("type") is None else f"{tag} data"

    def handle_endtag(self, tag):
        self._inside = ""

    def handle_data(self, data):
        if self._inside in ("style", "script", "script data"):
            self.raw[self._inside] = data
        else:
            self.text += data

    def of(self, tag, **attributes):
        return [
            found
            for name, found in self.tags
            if name == tag and all(found.get(key) == value for key, value in attributes.items())
        ]


def made(to, **more):
    """Two methods with two seeds each."""
    for algorithm, gain in (("adrpo", 3.0), ("grpo", 1.0)):
        for seed in (0, 1):
            row_folder(to, algorithm, seed=seed, gain=gain + seed / 10, **more)
    return to


def page_of(*names, **more):
    found = [run for name in names for run in read_runs(str(name))]
    return report_page(found, [str(name) for name in names], **more)


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    return made(tmp_path_factory.mktemp("images"), side=200)


@pytest.fixture(scope="module")
def page(images):
    return page_of(images)


def test_the_same_runs_give_the_same_bytes(images, page):
    assert page_of(images) == page


def test_a_page_holds_all_that_it_shows_and_its_policy_names_the_one_script(page):
    read = Read(page)
    addresses = [
        value
        for _, found in read.tags
        for name, value in found.items()
        if name in ("src", "href", "srcset", "poster", "action", "data", "background")
    ]
    assert addresses and all(value.startswith(("data:image/", "#")) for value in addresses)
    assert not [a for _, found in read.tags for a in found if a.startswith("on") or a == "style"]
    (policy,) = (found["content"] for found in read.of("meta") if "http-equiv" in found)
    assert policy.startswith("default-src 'none'; img-src data:; ")
    for kind in ("style", "script"):
        digest = base64.b64encode(hashlib.sha256(read.raw[kind].encode()).digest()).decode()
        assert f"{kind}-src 'sha256-{digest}'" in policy
        assert "@import" not in read.raw[kind] and "url(" not in read.raw[kind]


def test_prompts_and_names_of_others_are_text(tmp_path):
    row_folder(tmp_path, "<img src=x onerror=window.hostile=1>", prompts=HOSTILE)
    row_folder(tmp_path, "grpo", prompts=HOSTILE)
    figure = Figure("f", "<i>title</i>", "caption", "<svg onload='window.hostile = 1'/>", b"")
    read = Read(page_of(tmp_path, figures=[figure], left_out=[LeftOut("<u>", "<s>")]))
    assert not {name for name, _ in read.tags} & {"b", "i", "u", "s", "svg"}
    assert len(read.of("script")) == 2 and not [f for f in read.of("img") if "onerror" in f]
    assert HOSTILE[0][0] in read.text and HOSTILE[1][0] in read.text
    assert r"{{ 7 * 7 }} \x1b[2J \u202e back" in read.text
    assert "<img src=x onerror=window.hostile=1> ×1" in read.text
    assert "<i>title</i>" in read.text and "Not drawn: <u> (<s>)" in read.text


def test_every_cell_says_its_runs_iterations_weights_and_commands(tmp_path):
    made(tmp_path)
    trained = tmp_path / "rows" / "adrpo,run-1" / "trained.json"
    trained.write_text('{"command": "adrpo-scale train mine.toml"}')
    read = Read(page_of(tmp_path))
    cells, panels = read.of("button", **{"class": "cell"}), read.of("div", **{"class": "behind"})
    assert [c["popovertarget"] for c in cells] == [p["id"] for p in panels] and len(cells) == 2
    first = read.text[read.text.index("checker (drawn) of adrpo ×2") :]
    first = first[: first.index("checker (drawn) of grpo ×2")]
    assert "run-0" in first and "(seed 0)" in first and "(seed 1)" in first
    assert "iteration60" in first and "weightsraw" in first and "prompts5, set " in first
    assert f"evaluated by{EVALUATE}" in first and "trained byadrpo-scale train mine.toml" in first
    assert f"printed byadrpo-scale report {tmp_path}/rows/adrpo,run-0 --weights raw" in first


def test_two_rows_of_one_label_have_their_own_origins(tmp_path):
    """A run's own evaluations, and those of an evaluation."""
    row_folder(tmp_path, "grpo")
    shutil.copytree(OLD / "image", tmp_path / "grpo")
    config = json.loads((tmp_path / "grpo" / "config.json").read_text())
    config["algorithm"]["name"] = "grpo"
    (tmp_path / "grpo" / "config.json").write_text(json.dumps(config))
    found = table_lines([*read_runs(str(tmp_path)), *read_runs(str(tmp_path / "grpo"))])
    labels = [label for label, _ in origins(found)]
    assert labels == ["grpo ×1", "grpo ×1"]
    paths = [path for _, runs in origins(found) for path, _ in runs]
    assert paths == [f"{tmp_path}/rows/grpo,run-0", f"{tmp_path}/grpo"]


def test_what_differs_between_rows_is_told_apart_from_what_does_not(images):
    read = Read(page_of(images))
    text = re.sub(r"\s+", " ", read.text)
    part = text[text.index("settings in which rows differ") :][:400]
    assert "algorithm.name" in part and "optimizer.learning_rate" not in part.split("All ")[0]
    assert "settings of adrpo ×2" in text and "optimizer.learning_rate" in text


def test_grids_show_each_prompt_with_the_same_noise_for_every_row(images):
    models = gallery.models_with_samples(table_lines(read_runs(str(images))))
    assert [label for label, _, _ in models] == ["adrpo ×2", "grpo ×2"]
    shown = gallery.pictures(models, Store(10**6))
    assert [card.asked.prompt for card in shown.cards] == [prompt for prompt, _ in PROMPTS]
    noises = [noise for noise, _ in shown.cards[0].rows]
    assert noises == [Noise(0, 0), Noise(0, 1), Noise(1, 0), Noise(1, 1)]
    (adrpo, grpo) = shown.cards[1].rows[2][1]
    assert adrpo.file == grpo.file == "images/000006.png"
    assert float(adrpo.scores["checker"]) > float(grpo.scores["checker"])
    assert shown.categories == [
        "drawn: colours",
        "drawn: counting",
        "drawn: text",
        "drawn: animals",
    ]


def test_full_pictures_end_with_the_room_for_them_prompt_by_prompt(images):
    models = gallery.models_with_samples(table_lines(read_runs(str(images))))
    whole = Store(10**9)
    gallery.pictures(models, whole)
    assert len(whole.full) == whole.thumbnails == 40
    half = Store(whole.spent // 2)
    shown = gallery.pictures(models, half)
    kept = [
        sample.what.full is not None
        for card in shown.cards
        for _, row in card.rows
        for sample in row
    ]
    assert half.spent <= half.budget and 10 < sum(kept) < 30
    assert kept == sorted(kept, reverse=True)  # the first prompts, and no later one
    assert "0 full pictures" in Read(page_of(images, megabytes=0)).text


def test_of_many_prompts_some_of_the_whole_set_are_shown_and_counted(tmp_path):
    many = [(f"prompt {n}", "first" if n < 60 else "last") for n in range(120)]
    row_folder(tmp_path, "adrpo", prompts=many, side=4)
    read = Read(page_of(tmp_path))
    text = re.sub(r"\s+", " ", read.text)
    assert f"{gallery.PROMPTS} of 120 prompts are shown, {gallery.PROMPTS} of a set" in text
    assert len(read.of("article")) == gallery.PROMPTS
    groups = [found["data-group"] for found in read.of("article")]
    assert groups.count("drawn: first") == groups.count("drawn: last") == gallery.PROMPTS / 2


def test_files_outside_the_folder_and_files_that_are_no_pictures_are_left_out(tmp_path):
    folder = row_folder(tmp_path, "adrpo")
    other = tmp_path / "secret.png"
    other.write_bytes((folder / "images/000000.png").read_bytes())
    lines = (folder / "manifest.jsonl").read_text().splitlines()
    rows = [json.loads(line) for line in lines]
    rows[0]["file"], rows[1]["file"], rows[2]["file"] = (
        "../../secret.png",
        str(other),
        "images/l.png",
    )
    (folder / "images/l.png").symlink_to(other)
    rows[3]["seed"], rows[4]["prompt"] = "0", None
    (folder / "manifest.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert len(read_samples(folder)) == len(rows) - 5
    (folder / rows[5]["file"]).write_bytes(b"no picture")
    (folder / rows[6]["file"]).write_bytes((folder / rows[6]["file"]).read_bytes()[:60])
    text = Read(page_of(tmp_path)).text
    assert "2 files could not be read as pictures" in text


def test_completions_stand_side_by_side_and_a_long_one_is_cut_and_says_so(tmp_path):
    made(tmp_path, benchmark="text")
    path = tmp_path / "rows" / "grpo,run-0" / "completions.jsonl"
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    rows[0]["text"] = "long " * gallery.CHARACTERS
    rows[1] |= {"finished": False, "length": 12}
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    read = Read(page_of(tmp_path))
    answers = [found["data-model"] for found in read.of("div", **{"class": "answer"})]
    assert answers == ["0", "1"] * len(PROMPTS) * gallery.TEXT_NOISES
    assert f"… ({4 * gallery.CHARACTERS} more characters)" in read.text
    assert read.text.count("cut off") == read.text.count("cut off after 12 tokens") == 1
    assert "adrpo: there is nothing to count here.\n\nTherefore the answer is 0." in read.text


def test_a_published_model_is_a_row_with_pictures(tmp_path):
    row_folder(tmp_path, "adrpo")
    row_folder(tmp_path, "flux", published=True)
    models = gallery.models_with_samples(table_lines(read_runs(str(tmp_path))))
    assert [label for label, _, _ in models] == ["adrpo ×1", "flux"]
    assert "nobody trained it" in Read(page_of(tmp_path)).text


@pytest.mark.parametrize("name", sorted(path.name for path in OLD.iterdir()))
def test_a_run_of_before_has_a_page(name):
    read = Read(page_of(OLD / name))
    assert len(read.of("article")) == 0 and len(read.of("button", **{"class": "cell"})) > 2
    assert "printed by" in read.text and "trained by" not in read.text


def test_the_command_writes_the_page_whatever_its_file_is_called(images, tmp_path):
    for name in ("one.html", "two.html"):
        words = ["report", str(images), "--html", str(tmp_path / "made" / name)]
        printed = CliRunner().invoke(app, words, catch_exceptions=False).stdout
    one, two = (tmp_path / "made" / name for name in ("one.html", "two.html"))
    assert one.read_bytes() == two.read_bytes()
    assert printed.startswith("|")  # the Markdown is printed all the same
    assert f"adrpo-scale report {images} --html report.html" in Read(one.read_bytes()).text
