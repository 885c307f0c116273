"""`evaluate` of pictures: kept, never made twice, the same however it was interrupted."""

from __future__ import annotations

import json
import random
from signal import SIGKILL, SIGUSR1

import pytest
from typer.testing import CliRunner

from adrpo_scale.cli.main import app
from adrpo_scale.core.errors import (
    STOPPED,
    ConfigError,
    DamagedFileError,
    RewardError,
    RunFolderError,
)
from adrpo_scale.evaluation.evaluate import evaluate
from adrpo_scale.evaluation.file import load_evaluation
from adrpo_scale.evaluation.report.comparison import comparison
from adrpo_scale.evaluation.report.evaluated import read_runs
from tests.support.judging import (
    CHECKER,
    CLIP,
    DieAtWrite,
    evaluation_file,
    small_run,
    written,
)
from tests.support.shared import CACHE
from tests.support.starts import Started

SAMPLES = 12


@pytest.fixture(autouse=True)
def cache(monkeypatch):
    monkeypatch.setenv("ADRPO_CACHE", str(CACHE))


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Two runs that differ in their seed alone."""
    folder = tmp_path_factory.mktemp("runs")
    return [small_run(folder / f"ours-{seed}", seed) for seed in (0, 1)]


@pytest.fixture(scope="module")
def models(runs):
    return f'[models.ours]\nrun = "{runs[0].parent}/ours-*"\nsteps = 2\n'


def judged(path, *overrides):
    to = path.parent / "to"
    evaluate(load_evaluation(path, overrides), to)
    return to


@pytest.fixture(scope="module")
def whole(models, tmp_path_factory):
    """The evaluation, in one go and one process."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ADRPO_CACHE", str(CACHE))
        return judged(evaluation_file(tmp_path_factory.mktemp("whole"), models))


def lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def told(to):
    """(samples by row, scores by scorer) of the last start."""
    last = json.loads((to / "timing.json").read_text())["starts"][-1]
    return last["samples"], last["scores"]


def test_rows_are_written_as_the_contract_says(whole, runs):
    rows = sorted(path.name for path in (whole / "rows").iterdir())
    assert rows == ["ours,ours-0", "ours,ours-1"]
    row = whole / "rows" / rows[1]
    manifest = lines(row / "manifest.jsonl")
    assert [line["id"] for line in manifest] == list(range(SAMPLES))
    assert [line["seed"] for line in manifest[:5]] == [0, 0, 5, 5, 0]
    assert [line["sample"] for line in manifest[:5]] == [0, 1, 0, 1, 0]
    assert {line["category"] for line in manifest} == {"demo"}
    assert all((row / line["file"]).is_file() for line in manifest)
    for scorer in ("clip", "checker", "clip_diversity_l2"):
        assert [line["id"] for line in lines(row / "scores" / f"{scorer}.jsonl")] == [
            *range(SAMPLES)
        ]
    numbers = {line["metric"]: line for line in lines(row / "eval.jsonl")}
    assert list(numbers) == ["clip", "checker", "clip_diversity_l2"]
    clip = [line["score"] for line in lines(row / "scores" / "clip.jsonl")]
    assert numbers["clip"]["value"] == pytest.approx(sum(clip) / SAMPLES)
    assert (numbers["clip"]["n"], numbers["clip_diversity_l2"]["n"]) == (SAMPLES, 3)
    assert numbers["clip"] | {"split": "demo", "seed": 1, "run": "ours-1"} == numbers["clip"]
    assert json.loads((row / "config.json").read_text())["seed"] == 1
    assert json.loads((row / "prompt_sets.json").read_text())["overlap"]["tested"] == 3


def test_noise_is_of_seed_prompt_and_number_alone(whole, models, tmp_path):
    """Another batch, seeds in another order: the same pictures under other numbers."""
    path = evaluation_file(tmp_path, models, CHECKER, seeds=[5], batch=12)
    to = judged(path, "models.ours.run=" + models.split('"')[1].replace("*", "0"))
    (row,) = (to / "rows").iterdir()
    assert row.name == "ours"  # a run by its name
    before = whole / "rows" / "ours,ours-0"
    known = {
        (line["prompt_id"], line["seed"], line["sample"]): line["sha256"]
        for line in lines(before / "manifest.jsonl")
    }
    found = lines(row / "manifest.jsonl")
    same = [known[line["prompt_id"], 5, line["sample"]] == line["sha256"] for line in found]
    assert len(same) == 6 and sum(same) >= 4  # another batch may round another way


def test_another_scorer_needs_no_new_picture(whole, models, tmp_path):
    path = evaluation_file(tmp_path, models, CHECKER)
    to = judged(path)
    pictures = {p: p.stat().st_ino for p in to.rglob("*.png")}
    assert told(to) == ({"ours,ours-0": SAMPLES, "ours,ours-1": SAMPLES}, {"checker": 2 * SAMPLES})
    evaluation_file(tmp_path, models, CLIP + CHECKER)
    judged(path)
    assert told(to) == ({}, {"clip": 2 * SAMPLES, "checker": 0})
    assert {p: p.stat().st_ino for p in to.rglob("*.png")} == pictures
    rows = {name: data for name, data in written(to).items() if name.startswith("rows/")}
    assert rows == {n: d for n, d in written(whole).items() if n.startswith("rows/")}
    judged(path)
    assert told(to) == ({}, {"clip": 0, "checker": 0})


def test_what_is_gone_is_made_again_and_what_is_damaged_is_refused(models, tmp_path):
    path = evaluation_file(tmp_path, models, CHECKER)
    to = judged(path, "models.ours.run=" + models.split('"')[1].replace("*", "0"))
    before, row = written(to), to / "rows" / "ours"
    (row / "images" / "000003.png").unlink()
    manifest, scores = row / "manifest.jsonl", row / "scores" / "checker.jsonl"
    manifest.write_bytes(manifest.read_bytes()[:-30])  # the last line torn
    scores.write_text("")
    (row / "images" / "000001.png.ab.tmp").write_text("half")
    overrides = ["models.ours.run=" + models.split('"')[1].replace("*", "0")]
    judged(path, *overrides)
    assert written(to) == before
    assert told(to) == ({"ours": 2}, {"checker": SAMPLES})
    (row / "images" / "000003.png").write_bytes(b"other")
    scores.write_text("")
    with pytest.raises(DamagedFileError, match=r"000003\.png is not the picture that was written"):
        judged(path, *overrides)


CHANGES = {
    "models.ours.steps=3": "model.steps: 2 → 3",
    "sampling.per_prompt=3": "sampling.per_prompt: 2 → 3",
    "sampling.batch=4": "sampling.batch: 5 → 4",
    "scorers.0.batch=7": "has scores of another scorer 'clip' .batch: 32 → 7",
}


@pytest.mark.parametrize("change", CHANGES)
def test_other_settings_are_refused_with_the_difference(whole, change):
    before = written(whole)
    with pytest.raises(RunFolderError, match=CHANGES[change]):
        evaluate(load_evaluation(whole.parent / "table.toml", [change]), whole)
    assert written(whole) == before


FAULTS = {
    "models.ours.run=runs/none-*": (ConfigError, "models.ours: run = 'runs/none-*': no folder"),
    "prompts.file=nowhere.jsonl": (Exception, "nowhere.jsonl"),
    "scorers.1={kind=function,path=tests.nothing:here}": (RewardError, "tests.nothing"),
}


@pytest.mark.parametrize("change", FAULTS)
def test_faults_are_found_before_anything_is_written(models, tmp_path, change):
    path = evaluation_file(tmp_path, models)
    kind, said = FAULTS[change]
    with pytest.raises(kind) as error:
        judged(path, change)
    assert said in str(error.value)
    assert not (tmp_path / "to").exists()


def test_options_of_the_benchmark_are_refused(models, tmp_path):
    path = evaluation_file(tmp_path, models)
    found = CliRunner().invoke(app, ["evaluate", str(path), "--model", "x", "--weights", "raw"])
    assert "--model and --weights goes with benchmark" in str(found.exception)


def start(path, world=1, number=None, rank=0, signal=SIGKILL):
    """The command, under way."""
    prepare = None if number is None else DieAtWrite(number, rank, signal)
    return Started(path.parent / "out", world, ["evaluate", str(path)], prepare)


def rows_of(to):
    return {name: data for name, data in written(to).items() if name.startswith("rows/")}


@pytest.mark.slow
def test_killed_at_random_moments_it_goes_on_to_the_same_bytes(whole, models, tmp_path):
    path, draw = evaluation_file(tmp_path, models), random.Random(17)
    killed = [start(path, number=draw.randrange(4, 13)).wait() == [-9] for _ in range(10)]
    assert all(killed) and any((tmp_path / "to").rglob("*.png"))
    assert start(path).wait() == [0]
    assert rows_of(tmp_path / "to") == rows_of(whole)


@pytest.mark.slow
def test_a_signal_stops_all_ranks_with_the_code_that_asks_for_another_start(
    whole, models, tmp_path
):
    path = evaluation_file(tmp_path, models)
    assert start(path, 2, number=20, signal=SIGUSR1).wait() == [STOPPED, STOPPED]
    assert len(list((tmp_path / "to").rglob("*.png"))) < 2 * SAMPLES
    assert start(path, 2).wait() == [0, 0]
    assert rows_of(tmp_path / "to") == rows_of(whole)


PUBLISHED = """
[models.base]
pipeline = "demo:image"
steps = 2
guidance = 1.0
max_sequence_length = 12
[models.dice]
pipeline = "demo:dice"
steps = 2
guidance = 1.0
"""


@pytest.mark.slow
def test_three_processes_one_of_which_is_killed_write_the_same_bytes(models, tmp_path):
    """With two pipelines that nobody trained here; the checker refuses the pictures of one."""
    alone = evaluation_file(tmp_path / "alone", models + PUBLISHED)
    path = evaluation_file(tmp_path / "three", models + PUBLISHED)
    assert start(alone).wait() == [0]
    assert -9 in start(path, 3, number=4, rank=1).wait()
    assert start(path, 3).wait() == [0, 0, 0]
    to = tmp_path / "three" / "to"
    assert rows_of(to) == rows_of(tmp_path / "alone" / "to")
    table = comparison(read_runs(str(to)))
    assert [line[0] for line in table[1:]] == ["ours ×2", "base", "dice"]
    assert " ± " in table[1][1] and "±" not in "".join(table[2] + table[3])
    assert table[3][2] == "–"  # of the checker
    assert start(path).wait() == [0]  # one process finds what three have made
    assert told(to) == ({}, {"clip": 0, "checker": 0})
    assert "12 samples have no score of checker" in (path.parent / "out/output-0.txt").read_text()
