"""`prefetch`, `plan`, `config`, `status`: what they say of sweeps and evaluations."""

from __future__ import annotations

import json
import re

import pytest
from typer.testing import CliRunner

from adrpo_scale.cli import main as cli
from adrpo_scale.cluster.file_needs import needs_of_files
from adrpo_scale.core.errors import ConfigError, ModelNotFoundError
from adrpo_scale.core.folder_lock import RunLock
from tests.support.judged import write_evaluation
from tests.support.mmau import CONFIG
from tests.support.shipped import EVALUATIONS, SWEEPS
from tests.support.tiny import CONFIGS, demo_config

SWEEP = CONFIGS / "sweeps/image_seeds.toml"
DEMO = CONFIGS / "demo/image_adrpo.toml"
IMAGES = """benchmark = "images"
[prompts]
file = "demo:image/prompts/held_out.jsonl"
[sampling]
per_prompt = 2
seeds = [0, 1]
[[scorers]]
kind = "clip"
model = "owner/clip"
[models.mine]
run = "runs/none-there"
[models.tiny]
pipeline = "demo:image"
size = 32
[models.flux]
pipeline = "owner/flux"
lora = "owner/flux-lora"
"""


@pytest.fixture(autouse=True)
def place(tmp_path, monkeypatch):
    monkeypatch.setenv("ADRPO_RUNS", str(tmp_path / "runs"))
    monkeypatch.chdir(CONFIGS.parent)


def run(*words, width="200"):
    return CliRunner().invoke(cli.app, [str(word) for word in words], env={"COLUMNS": width})


def shown(*words):
    answer = run(*words)
    assert answer.exit_code == 0, (answer.output, answer.exception)
    return answer.stdout


def refused(*words):
    error = run(*words).exception
    assert isinstance(error, ConfigError), error
    return str(error)


def images(folder, text=IMAGES):
    (folder / "table1.toml").write_text(text)
    return folder / "table1.toml"


def without(text, *models):
    for model in models:
        start = text.index(f"[models.{model}]")
        end = text.find("[models.", start + 1)
        text = text[:start] + (text[end:] if end > 0 else "")
    return text


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (
            ["train", CONFIG],
            "is an evaluation; expected the config of a run: `adrpo-scale evaluate",
        ),
        (["train", SWEEP], "is a sweep; expected the config of a run: `adrpo-scale sweep"),
        (["sweep", DEMO], "is the config of a run; expected a sweep: `adrpo-scale train"),
        (["evaluate", DEMO], "is the config of a run; expected an evaluation: `adrpo-scale train"),
        (["evaluate", SWEEP], "is a sweep; expected an evaluation"),
        (["status", "--sweep", CONFIG], "is an evaluation; expected a sweep"),
        (["status", SWEEP], "is a sweep: `adrpo-scale status --sweep"),
        (["status", DEMO], "is a file; name the folder of a run"),
        (["config", SWEEP, "--set", "seed=3"], "--set with .* is a sweep: leave it out"),
        (["config", CONFIG, "--diff", DEMO], "--diff with .* is an evaluation"),
        (["prefetch", SWEEP, "--set", "seed=3"], "--set with .* is a sweep"),
        (["prefetch", DEMO, "--model", "x"], "--model x goes with an evaluation"),
        (["plan", SWEEP, "--trial", "x.json"], "--trial with .* is a sweep"),
        (["plan", CONFIG], "names no model, so there is nothing to count"),
    ],
)
def test_a_file_of_the_wrong_kind_is_one_clear_sentence(words, expected):
    error = refused(*words)
    assert re.search(expected, error) and "\n" not in error


def test_what_an_evaluation_reads_from_the_hub(tmp_path):
    found = needs_of_files([images(tmp_path)], [])
    names = {need.name: need for need in found.needs}
    assert {"owner/clip", "owner/flux", "owner/flux-lora"} <= set(names)
    flux = names["owner/flux"]
    assert flux.what == "models.flux.pipeline" and flux.covers("transformer/model.safetensors")
    assert not flux.covers("flux1-dev.safetensors")  # all of it again, in one file
    (note,) = found.notes
    assert note.startswith("models.mine is left out: ") and "name its config" in note
    both = needs_of_files([images(tmp_path), SWEEP, DEMO], [])
    assert len(both.needs) > len(found.needs)


def test_shipped_evaluations_and_sweeps_are_understood():
    """Runs that have not begun are left out, those of a sweep are not."""
    found = needs_of_files([*EVALUATIONS, *SWEEPS], [])
    assert {"black-forest-labs/FLUX.1-dev"} <= {need.name for need in found.needs}
    assert all("is left out" in note for note in found.notes)


def test_prefetch_asks_the_hub_about_all_of_it(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    file = images(tmp_path, without(IMAGES, "mine"))
    error = run("prefetch", file, "--lock", tmp_path / "lock", "--dry-run").exception
    assert isinstance(error, ModelNotFoundError) and "nothing was downloaded" in str(error)


def test_an_evaluation_is_planned(tmp_path):
    file = images(tmp_path, without(IMAGES, "mine"))
    lines = shown("plan", file, "--nodes", 2).splitlines()
    assert lines[0].startswith("2 rows · ") and "hours on 16 a6000" in lines[0]
    assert lines[1].startswith("models.tiny: ") and "of weights, " in lines[1]
    assert lines[-1].startswith("not counted, because their weights are not here: models.flux;")
    plan = json.loads(shown("plan", file, "--nodes", 2, "--json"))
    prompts = plan["samples"] // (2 * 2 * 2)
    assert plan["samples"] == prompts * 8 and plan["gpus"] == 16
    tiny, flux = plan["rows"]
    assert tiny["bytes"] > 0 and flux["bytes"] == 0 and plan["absent"] == ["models.flux"]
    small = 3 * 32**2 * prompts * 4
    assert small < plan["bytes"] and plan["gpu_hours"] > 0
    longer = json.loads(shown("plan", file, "--json", "--set", "models.tiny.steps=56"))
    assert longer["rows"][0]["seconds"] == pytest.approx(2 * tiny["seconds"])


def two_runs(folder):
    (folder / "two.toml").write_text(f"base = {json.dumps(str(DEMO))}\n[grid]\nseed = [0, 1]\n")
    return folder / "two.toml"


@pytest.mark.slow
def test_a_sweep_is_planned(tmp_path):
    text = shown("plan", two_runs(tmp_path), "--gpu", "a6000")
    assert text.startswith("2 runs · 1 node each · ")


def test_the_elements_of_a_sweep_are_shown(tmp_path):
    file = two_runs(tmp_path)
    lines = shown("config", file).splitlines()
    assert lines[0].startswith(f"#0 seed=0: {DEMO} in {tmp_path}/runs/demo_image_adrpo,seed=0-")
    assert lines[1] == "    seed=0" and lines[3] == "    seed=1"


def test_the_settings_of_an_evaluation_are_shown(tmp_path):
    text = shown("config", images(tmp_path), "--set", "sampling.batch=4")
    rows = {line.split("│")[1].strip(): line for line in text.splitlines() if "│" in line}
    assert "--set" in rows["sampling.batch"] and "4" in rows["sampling.batch"]
    assert "file" in rows["prompts.0.file"] and "default" in rows["prompts.0.format"]
    assert "owner/flux" in rows["models.flux.pipeline"]
    assert "max_new_tokens" in shown("config", CONFIG)


def test_the_progress_of_an_evaluation(tmp_path):
    to = tmp_path / "runs/evaluations/table1"
    *_, flux = write_evaluation(to, demo_config().resolved(), per_prompt=2)
    asked = json.loads((to / "evaluation.json").read_text())
    asked |= {"config": {"sampling": {"per_prompt": 2, "seeds": [0, 7]}}}
    asked |= {"scorers": {"clip": {}, "checker": {}}}
    (to / "evaluation.json").write_text(json.dumps(asked))
    assert "state      done" in shown("status", to)
    lines = (flux / "scores/clip.jsonl").read_text().splitlines(keepends=True)
    (flux / "scores/clip.jsonl").write_text("".join(lines[:2]))
    (flux / "scores/clip-rank-0001.jsonl").write_text("".join(lines[1:5]))  # a rank is at work
    text = shown("status", to)
    assert "state      stopped: the same command goes on" in text
    assert "rows       2 of 3 done" in text and "samples    36 of 36" in text
    assert "scorer     clip: 29 of 36" in text and "scorer     checker: 36 of 36" in text
    assert "row        flux: 12 of 12 samples; clip 5, checker 12" in text
    with RunLock(to):
        assert "state      running: " in shown("status", images(tmp_path))  # by its file
    (status,) = json.loads(shown("status", to.parent, "--json"))  # `status runs/*`
    assert status["kind"] == "evaluation" and status["rows"][2]["scores"]["clip"] == 5
