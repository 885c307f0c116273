"""Preflight of evaluation files and of sweeps."""

from __future__ import annotations

import json

import pytest

from adrpo_scale.cluster.preflight.run import SKIPPABLE, PreflightOptions, preflight
from adrpo_scale.core.errors import ConfigError
from tests.support.judging import CLIP, evaluation_file, small_run
from tests.support.mmau import CONFIG, make_data, rewrite
from tests.support.tiny import CONFIGS, SMALL
from tests.support.tiny_audio import save_thinker


@pytest.fixture(autouse=True)
def places(tmp_path, monkeypatch):
    monkeypatch.setenv("ADRPO_RUNS", str(tmp_path / "runs"))


def checked(capsys, file, *overrides, skipped=(), **options):
    """(exit code, the checks by name)."""
    code = preflight(
        PreflightOptions(file, overrides, as_json=True, skipped=frozenset(skipped), **options)
    )
    text = capsys.readouterr().out
    found = json.loads(text[text.index("{") :])
    return code, {check["name"]: check for check in found["checks"]}, found["title"]


def told(check):
    return " ".join(finding["value"] for finding in check["findings"])


def test_an_evaluation_of_questions(tmp_path, capsys):
    data, to = make_data(tmp_path / "data", count=3), tmp_path / "out"
    rewrite(data, 2, audio="gone.wav")
    model = save_thinker(tmp_path / "model")
    fits = ["max_new_tokens=8", "domain.chat.max_prompt_tokens=120"]
    given = [f"data={json.dumps(str(data))}", *fits]
    code, checks, title = checked(capsys, CONFIG, *given, run_dir=to, model=str(model))
    assert code == 0, checks
    assert title.endswith(f"results in {to}")
    assert checks["models"]["state"] == "fine"
    assert checks["prompts"]["state"] == "warning"
    assert "1 of 3 clips cannot be read" in told(checks["prompts"]) and "gone.wav" in told(
        checks["prompts"]
    )
    assert "3 questions of revision v05.15.25" in checks["prompts"]["stated"]
    assert "8 files of results" in checks["space"]["stated"]
    assert not to.exists()


def test_an_evaluation_without_its_questions_or_its_model(tmp_path, capsys):
    skipped = set(SKIPPABLE) - {"models", "prompts"}
    model = save_thinker(tmp_path / "model")  # of 256 tokens
    code, checks, _ = checked(capsys, CONFIG, skipped=skipped - {"prompts"}, model=str(model))
    assert code == 2 and "takes 256 tokens: lower one of them" in told(checks["models"])
    missing = f"data={json.dumps(str(tmp_path / 'none'))}"
    gone = str(tmp_path / "gone" / "model")
    code, checks, _ = checked(capsys, CONFIG, missing, skipped=skipped, model=gone)
    assert code == 2
    assert "prepare mmau" in told(checks["prompts"]) and gone in told(checks["models"])


OWN = '[[scorers]]\nkind = "function"\nname = "own"\npath = "tests.slurm.rewards:{}"\n'


def test_an_evaluation_of_pictures(tmp_path, capsys):
    run = small_run(tmp_path / "run")
    models = f'[models.ours]\nrun = "{run}"\n[models.base]\npipeline = "demo:image"\nsize = 32\n'
    file = evaluation_file(tmp_path, models, CLIP + OWN.format("bright"))
    skipped = {"scratch", "versions", "limits", "clocks"}
    code, checks, title = checked(capsys, file, skipped=skipped)
    assert code == 0, checks
    assert title.endswith(f"2 rows, results in {tmp_path / 'to'}")
    assert checks["prompts"]["stated"] == "3 prompts in 1 set"
    assert checks["rewards"]["stated"] == "2 scorers, code and rows"
    assert "of prompt embeddings in" in checks["cache"]["stated"]
    # Three prompts of two samples and two seeds, twice, beside what each row has of its own.
    assert f"{2 * (12 + 8 + 2 * 2)} files of results" in checks["space"]["stated"]
    assert not (tmp_path / "to").exists()


def test_what_is_wrong_with_an_evaluation_of_pictures(tmp_path, capsys):
    skipped = set(SKIPPABLE) - {"models", "rewards", "prompts"}
    models = f'[models.flux]\npipeline = "{tmp_path}/gone"\n'
    file = evaluation_file(tmp_path, models, OWN.format("not_there"))
    (tmp_path / "prompts.jsonl").write_text("{}\n")
    code, checks, _ = checked(capsys, file, skipped=skipped)
    assert code == 2
    assert f"{tmp_path}/gone" in told(checks["models"])
    assert "not_there" in told(checks["rewards"])
    assert "prompts.jsonl" in told(checks["prompts"])
    with pytest.raises(ConfigError, match=r"--model x: the models of .* are its \[models.NAME\]"):
        preflight(PreflightOptions(file, model="x"))


def sweep_of(folder, tables):
    settings = dict(text.partition("=")[::2] for text in SMALL)
    once = "".join(f"{json.dumps(key)} = [{value}]\n" for key, value in settings.items())
    base = json.dumps(str(CONFIGS / "demo/image_adrpo.toml"))
    (folder / "mine.toml").write_text(f"base = {base}\n[grid]\n{once}{tables}")
    return folder / "mine.toml"


def test_a_sweep_is_checked_for_all_of_its_runs(tmp_path, capsys):
    skipped = set(SKIPPABLE) - {"folder", "models", "rewards", "prompts"}
    code, checks, title = checked(capsys, sweep_of(tmp_path, "seed = [0, 1]\n"), skipped=skipped)
    assert code == 0 and f"2 runs in {tmp_path}/runs" in title
    assert checks["rewards"]["stated"].startswith("2 rewards")  # one kind of run
    values = ["tests.slurm.rewards:bright", "no.such:thing"]
    lists = ", ".join(f'[{{kind = "function", path = "{path}"}}]' for path in values)
    file = sweep_of(tmp_path, f"rewards = [{lists}]\nseed = [0, 1]\n")
    code, checks, _ = checked(capsys, file, skipped=skipped)
    assert code == 2 and "no.such" in told(checks["rewards"])
    assert checks["models"]["stated"].startswith("each of 2 kinds of run: ")


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"overrides": ["seed=3"]}, "--set seed=3 with the sweep .*: the file alone says"),
        ({"model": "x"}, "--model x goes with an evaluation, and .* is none"),
    ],
)
def test_options_that_mean_nothing_with_a_sweep(tmp_path, options, expected):
    file = sweep_of(tmp_path, "seed = [0, 1]\n")
    with pytest.raises(ConfigError, match=expected):
        preflight(PreflightOptions(file, **options))
