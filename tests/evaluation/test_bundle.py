"""`report --bundle` and `report out.tar`: the same tables elsewhere; nothing private leaves."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tarfile
import tempfile
from pathlib import Path

import pytest
from typer.testing import CliRunner

from adrpo_scale.cli import main as cli
from adrpo_scale.core import secrets
from adrpo_scale.core.errors import ConfigError
from adrpo_scale.evaluation.report.bundle import write_bundle
from adrpo_scale.evaluation.report.given import read_given
from adrpo_scale.evaluation.report.text import report_text, trace
from tests.evaluation.test_report import OLD, judged, made
from tests.support.judged import write_evaluation

KEY = "sk-0123456789abcdef"


def given_of(tmp_path, *names, weights="evaluated", line=""):
    def new_folder():
        folder = tmp_path / "unpacked" / os.urandom(4).hex()
        folder.mkdir(parents=True)
        return folder

    return read_given([str(name) for name in names], weights, new_folder, line)


def tables(given):
    return report_text(given.runs), trace(given.runs), given.line


@pytest.fixture
def home(tmp_path, monkeypatch):
    """A home folder with runs, an MMAU evaluation inside one, and an evaluation of pictures."""
    home = tmp_path / "home" / "ada"
    runs = home / "runs"
    runs.mkdir(parents=True)
    monkeypatch.setenv("HOME", str(home))
    for seed in (0, 1):
        made(runs, "a", seed, [1.0 + seed, 2.0])
    own = [f"domain.model={home / 'models' / 'sd3'}"]
    other = Path(made(runs, "b", 0, [3.0, 1.0], overrides=own))
    who = {"algorithm": "a", "seed": 1, "iteration": 60}
    judged(runs / "a-1-1" / "mmau-000060", "a-1-1", {*range(20)}, **who)
    judged(runs / "published", "published", {*range(10)})
    write_evaluation(runs / "table1", json.loads((other / "config.json").read_text()))
    shutil.copytree(OLD / "image", runs / "old")
    lives = {"began": "2026-01-01T00:00:00+00:00", "outcome": f"{home}/x is not there"}
    (other / "lives").mkdir()
    (other / "lives" / "01.json").write_text(json.dumps(lives))
    return home


NAMES = (
    "a-0-0",
    "a-1-1",
    "b-0-2@*",
    "b-0-2@best",
    "a-1-1/mmau-000060",
    "published",
    "table1",
    "old",
)


def bundled(home, to, names=NAMES, **more):
    """(what `report` gives of the folders, the bundle)."""
    given = given_of(to.parent, *(home / "runs" / name for name in names), **more)
    write_bundle(to, given, pictures=2)
    return given


def test_a_bundle_gives_the_same_tables_where_its_folders_are_not(home, tmp_path, monkeypatch):
    expected = tables(bundled(home, tmp_path / "out.tar", line=f"{home}/seeds.toml: 3 done"))
    assert expected[2] == "~/seeds.toml: 3 done" and "~/runs/a-0-0" in expected[1]
    assert "model = ~/models/sd3" in expected[0] and str(home) not in "".join(expected)
    shutil.rmtree(home)
    monkeypatch.setenv("HOME", str(tmp_path))  # what its paths begin with by chance
    moved = tmp_path / "elsewhere" / "renamed.tar"
    moved.parent.mkdir()
    (tmp_path / "out.tar").rename(moved)
    again = given_of(tmp_path, moved)
    assert tables(again) == expected
    write_bundle(tmp_path / "again.tar", again, pictures=2)
    assert (tmp_path / "again.tar").read_bytes() == moved.read_bytes()


def test_the_same_folders_give_the_same_bytes(home, tmp_path):
    bundled(home, tmp_path / "one.tar")
    for number, path in enumerate(sorted(home.rglob("*"))):
        os.utime(path, (number, number))
        path.chmod(0o700)
    bundled(home, tmp_path / "two.tar")
    assert (tmp_path / "one.tar").read_bytes() == (tmp_path / "two.tar").read_bytes()
    with tarfile.open(tmp_path / "one.tar") as tar:
        facts = {(m.mtime, m.uid, m.gid, m.uname, m.gname, m.mode) for m in tar}
        names = tar.getnames()
    assert facts == {(0, 0, 0, "", "", 0o644)}
    assert names == [*sorted(names[:-1]), "MANIFEST"]


def members(path):
    with tarfile.open(path) as tar:
        return {m.name: tar.extractfile(m).read() for m in tar}


def test_neither_weights_nor_logs_nor_keys_nor_the_home_folder_are_in_it(
    home, tmp_path, monkeypatch
):
    monkeypatch.setattr(secrets, "_bare", [])
    monkeypatch.setattr(secrets, "_forms", [])
    secrets.keep(KEY)
    run = home / "runs" / "a-0-0"
    for name in ("logs/rank-000.log", ".env", "lock.json", "checkpoints/step-1/rank-0.safetensors"):
        (run / name).parent.mkdir(parents=True, exist_ok=True)
        (run / name).write_text("not for others")
    config = json.loads((run / "config.json").read_text())
    config["prompts"]["train"] = f"/data/{KEY}/prompts.txt"
    (run / "config.json").write_text(json.dumps(config))
    bundled(home, tmp_path / "out.tar")
    files = members(tmp_path / "out.tar")
    whole = b"".join(files.values())
    assert b"not for others" not in whole and KEY.encode() not in whole
    assert str(home).encode() not in whole
    assert b"~/x is not there" in files["folders/002/b-0-2/lives/01.json"]
    listed = dict(line.rsplit(" ", 1)[::-1] for line in files["MANIFEST"].decode().splitlines())
    assert listed == {
        name: f"{hashlib.sha256(content).hexdigest()} {len(content)}"
        for name, content in files.items()
        if name != "MANIFEST"
    }


def test_the_same_pictures_of_each_row_are_chosen_and_only_whole_ones(home, tmp_path):
    """3 prompts of 2 seeds and 2 samples: the first sample of each prompt, then the second."""
    bundled(home, tmp_path / "out.tar", ["table1"])
    chosen = [n for n in members(tmp_path / "out.tar") if n.endswith(".png")]
    rows = sorted(path.name for path in (home / "runs" / "table1" / "rows").iterdir())
    assert chosen == [
        f"folders/000/table1/rows/{row}/images/{number:06d}.png"
        for row in rows
        for number in (0, 4)
    ]
    (home / "runs" / "table1" / "rows" / rows[0] / "images" / "000004.png").write_bytes(b"other")
    given = given_of(tmp_path, home / "runs" / "table1")
    write_bundle(tmp_path / "five.tar", given, pictures=5)
    chosen = [n for n in members(tmp_path / "five.tar") if n.endswith(".png")]
    assert len(chosen) == 14 and f"{rows[1]}/images/000005.png" in "".join(chosen)
    write_bundle(tmp_path / "none.tar", given, pictures=0)
    assert not [n for n in members(tmp_path / "none.tar") if n.endswith(".png")]


def test_grids_and_completions_that_figures_show_go_along(home, tmp_path):
    """b's evaluations are of iterations 0 to 2; a has completions of 1 and 5, b of 1, 3 and 9."""
    for run, recorded in (("b-0-2", (1, 3, 9)), ("a-0-0", (1, 5))):
        samples = home / "runs" / run / "samples"
        samples.mkdir()
        for split in ("train", "held_out", "rollouts"):
            for iteration in (0, 1, 2, 7):
                (samples / f"{split}-{iteration:06d}.png").write_bytes(b"a grid")
        for iteration in recorded:
            (samples / f"completions-{iteration:06d}.parquet").write_bytes(b"answers")

    def kept(*names, pictures=8):
        """What is kept of b's samples."""
        given = given_of(tmp_path, *(home / "runs" / name for name in names))
        write_bundle(tmp_path / "out.tar", given, pictures=pictures)
        found = [n.partition("/b-0-2/samples/")[2] for n in members(tmp_path / "out.tar")]
        return [name.partition(".")[0].replace("-00000", " ") for name in found if name]

    pictures = ["held_out 0", "held_out 2", "train 0", "train 2"]
    assert kept("b-0-2") == ["completions 9", *pictures]
    assert kept("b-0-2@1") == ["completions 9", "held_out 0", "held_out 1", "train 0", "train 1"]
    assert kept("b-0-2", "a-0-0", pictures=3) == ["completions 1", "completions 9", *pictures[:3]]


def test_the_command_writes_and_reads_a_bundle(home, tmp_path, monkeypatch):
    monkeypatch.chdir(home)
    monkeypatch.setenv("ADRPO_PREFETCH_LOCK", str(home / "pins"))
    (home / "pins").write_text("{}")
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(temporary))
    out, cells = tmp_path / "out.tar", [tmp_path / "one.csv", tmp_path / "two.csv"]
    names = ["runs/a-0-0", "runs/b-0-2@2", "runs/old"]
    line = ["report", *names, "--trace", str(cells[0]), "--bundle", str(out)]
    first = CliRunner().invoke(cli.app, line)
    assert first.exit_code == 0 and "out.tar: " in first.stderr, first.output
    assert members(out)["locks/prefetch.lock"] == b"{}"
    second = CliRunner().invoke(cli.app, ["report", str(out), "--trace", str(cells[1])])
    assert (second.exit_code, second.stdout) == (0, first.stdout)
    assert cells[0].read_bytes() == cells[1].read_bytes()
    out.write_bytes(out.read_bytes()[:-9000])
    third = CliRunner().invoke(cli.app, ["report", str(out)])
    assert isinstance(third.exception, ConfigError) and third.stdout == ""
    assert [*temporary.iterdir()] == []
    assert "runs/a-0-0" in cells[0].read_text()


def test_weights_of_a_bundle_are_those_it_was_made_with(home, tmp_path):
    name = made(home / "runs", "c", 0, [1.0, 2.0], weights="ema")
    rows = [json.loads(line) for line in (Path(name) / "eval.jsonl").read_text().splitlines()]
    rows[1]["weights"] = "raw"
    text = "".join(json.dumps(row) + "\n" for row in rows)
    (Path(name) / "eval.jsonl").write_text(text)
    write_bundle(tmp_path / "out.tar", given_of(tmp_path, name, weights="raw"))
    assert [run.weights for run in given_of(tmp_path, tmp_path / "out.tar").runs] == ["raw"]
    chosen = given_of(tmp_path, tmp_path / "out.tar", weights="ema").runs
    assert [run.weights for run in chosen] == ["ema"]


def test_what_cannot_be_bundled_is_said_and_an_older_bundle_stays(home, tmp_path, monkeypatch):
    out = tmp_path / "out.tar"
    out.write_bytes(b"older")
    monkeypatch.chdir(home / "runs" / "a-0-0")
    for name, to, why in (
        (".", out, "name the folder by it"),
        (home / "runs" / "old", tmp_path / "out.tar.gz", "ends in .tar"),
        (home / "runs" / "old", tmp_path / "no" / "out.tar", None),
    ):
        if why is None:
            (tmp_path / "no").write_text("a file")
            why = "no folder can be made"
        with pytest.raises(ConfigError, match=why):
            write_bundle(to, given_of(tmp_path, name))
    strange = home / "runs" / "a\nb"
    shutil.copytree(home / "runs" / "old", strange)
    with pytest.raises(ConfigError, match="has a character"):
        write_bundle(out, given_of(tmp_path, strange))
    assert out.read_bytes() == b"older" and [*tmp_path.glob("*.tmp")] == []
