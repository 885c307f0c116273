"""The command `adrpo-scale`: what it prints, what it leaves, and how it says no."""

from __future__ import annotations

import contextlib
import csv
import io
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from adrpo_scale.checkpoint.locate import open_checkpoint
from adrpo_scale.cli import main as cli
from adrpo_scale.run.load import load_config
from tests.support.ranks import FORKSERVER_ENV, run_ranks
from tests.support.tiny import CONFIGS, MODEL, SMALL, records

ADRPO, GRPO = str(CONFIGS / "demo" / "image_adrpo.toml"), str(CONFIGS / "demo" / "image_grpo.toml")
# Large steps, so that pictures show what was trained.
SETTINGS = [
    *SMALL,
    "iterations=2",
    "evaluation.every=1",
    "logging.pictures_every=1",
    "ema_decay=0.9",
    "optimizer.learning_rate=0.05",
]
LINE = {
    "iteration",
    "reward",
    "reward_std",
    "advantage_abs_mean",
    "advantage_clip_fraction",
    "beta_mean",
    "beta_min",
    "beta_max",
    "divergence",
    "loss",
    "grad_norm",
    "samples",
    "seconds_rollout",
    "seconds_reward",
    "seconds_update",
}
LEFT = [
    "config.json",
    "metrics.jsonl",
    "eval.jsonl",
    "eval_prompts.jsonl",
    "prompt_sets.json",
    "tensorboard",
    "samples",
    "logs",
    "checkpoints",
    "lives",
]


def given(settings):
    return [word for setting in settings for word in ("--set", setting)]


def commands(rank, world, cache, lines):
    """(exit code, stdout, stderr) of each command line, run one after the other in this process."""
    os.environ["ADRPO_CACHE"] = str(cache)
    os.environ["COLUMNS"] = "200"
    answers = []
    for line in lines:
        sys.argv, code = ["adrpo-scale", *line], 0
        out, err = io.StringIO(), io.StringIO()
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            try:
                cli.main()
            except SystemExit as end:
                code = end.code
        answers.append((code, out.getvalue(), err.getvalue()))
    return answers


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="module")
def started(cache, tmp_path_factory):
    """(run folder, what `train` printed), started once as a user would."""
    run = tmp_path_factory.mktemp("runs") / "first"
    done = subprocess.run(
        [sys.executable, "-m", "adrpo_scale", "train", ADRPO, "--run-dir", run, *given(SETTINGS)],
        env=os.environ | FORKSERVER_ENV | {"ADRPO_CACHE": str(cache), "COLUMNS": "200"},
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return run, done.stdout


# ---- config -----------------------------------------------------------------------------------


def test_config_shows_values_differences_and_the_schema(monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    shown = CliRunner().invoke(cli.app, ["config", ADRPO, "--set", "seed=7"])
    assert shown.exit_code == 0
    for text in ("seed", "--set", "algorithm.beta0", "domain.lora.rank", "paper", "default"):
        assert text in shown.output
    monkeypatch.delenv("COLUMNS")
    piped = CliRunner().invoke(cli.app, ["config", ADRPO])
    assert "rollouts, each with its updates" in piped.output  # one line, not a word a line
    different = CliRunner().invoke(cli.app, ["config", ADRPO, "--diff", GRPO])
    assert "algorithm.beta0" in different.output and "1.01" in different.output
    assert "optimizer" not in different.output
    schema = CliRunner().invoke(cli.app, ["config", "--schema"])
    assert json.loads(schema.output)["additionalProperties"] is False


# ---- train -----------------------------------------------------------------------------------


def test_train_says_where_the_run_is_first_and_what_came_of_it_last(started):
    run, printed = started
    assert printed.splitlines()[0] == f"run folder: {run}"
    for text in ("iteration 2/2", "before and after", "curves.png", "tensorboard --logdir"):
        assert text in printed
    assert re.search(
        r"prompts: train: 2 prompts, set \w{12}; held_out: 2 prompts, set \w{12}\n", printed
    )
    assert "held-out prompts: none of the" in printed  # is among those trained on
    assert "Traceback" not in printed


def test_a_run_folder_holds_settings_metrics_evaluations_and_pictures(started):
    run, _ = started
    for name in [*LEFT, "curves.png"]:
        assert (run / name).exists(), name
    resolved = json.loads((run / "config.json").read_text())
    assert resolved == json.loads(json.dumps(load_config(Path(ADRPO), SETTINGS).config.resolved()))
    lines = records(run)
    assert [line["iteration"] for line in lines] == [1, 2]
    for line in lines:
        assert line.keys() >= LINE
        assert all(line[key] is not None for key in LINE)
        assert line["samples"] == 16 and line["beta_min"] <= line["beta_mean"] <= line["beta_max"]
    assert list((run / "tensorboard").iterdir()) and list((run / "logs").glob("rank-000.log"))
    assert {p.name for p in (run / "samples").iterdir()} == {
        f"{split}-{n:06d}.png" for split in ("train", "held_out") for n in (0, 1, 2)
    }


def test_evaluation_rows_are_complete(started):
    run, _ = started
    rows = records(run, "eval.jsonl")
    keys = {"run", "algorithm", "seed", "iteration", "weights", "split", "metric", "value", "n"}
    metrics = {"reward", "checker", "clip_diversity_l2", "clip_diversity_cosine"}
    metrics |= {"pixel_diversity", "w2_sum"}
    for row in rows:
        assert row.keys() == keys
        assert (row["run"], row["algorithm"], row["seed"]) == ("first", "adrpo", 0)
        assert row["value"] is not None and row["n"] == (2 if "diversity" in row["metric"] else 6)
    measured = [(row["iteration"], row["split"], row["metric"]) for row in rows]
    assert len(set(measured)) == len(measured) == 3 * 2 * len(metrics)
    assert {metric for _, _, metric in measured} == metrics
    w2 = [row["value"] for row in rows if row["metric"] == "w2_sum"]
    assert w2[:2] == [0, 0] and min(w2[2:]) > 0


def test_the_average_is_saved_beside_the_trained_weights(started):
    reader = open_checkpoint(str(started[0]))
    assert reader.iteration == 2 and set(reader.names("ema")) == set(reader.names("policy"))
    assert any(
        not reader.whole(name, "ema").equal(reader.whole(name)) for name in reader.names("ema")
    )


def test_a_second_start_goes_on_and_a_limit_ends_with_code_3(started, cache, tmp_path):
    """Nothing is left to do; then two more iterations, on two processes, up to a limit."""
    run = shutil.copytree(started[0], tmp_path / "copy")
    before = {name: (run / name).read_text() for name in ("metrics.jsonl", "eval.jsonl")}
    again = ["train", ADRPO, "--run-dir", str(run), *given(SETTINGS)]
    longer = [*again, "--set", "iterations=4", "--set", "limits.min_reward=1e6"]
    fresh = [*again, "--fresh"]
    other_maths = [*again, "--set", "optimizer.learning_rate=1.0"]
    lines = [again, longer, fresh, other_maths]
    main, other = run_ranks(commands, 2, cache, lines)
    assert [code for code, _, _ in main] == [code for code, _, _ in other] == [0, 3, 2, 2]
    assert "resuming from iteration 2 (the last one)" in main[0][1]
    assert "changed since: iterations: 2 → 4" in main[1][1]
    assert "limits.min_reward" in main[1][2] and other[1][2] == ""
    assert other[0][1] == ""  # rank 1 prints nothing
    assert "--fresh" in main[2][2] and "checkpoint of iteration 3" in main[2][2]
    assert "optimizer.learning_rate: 0.05 → 1.0" in main[3][2]
    assert "--allow-change optimizer.learning_rate" in main[3][2]
    assert (run / "metrics.jsonl").read_text().startswith(before["metrics.jsonl"])
    assert (run / "eval.jsonl").read_text().startswith(before["eval.jsonl"])
    assert [line["iteration"] for line in records(run)] == [1, 2, 3]
    outcomes = [json.loads((run / "lives" / f"0{n}.json").read_text()) for n in (1, 2, 3)]
    assert [start["exit_code"] for start in outcomes] == [0, 0, 3]
    assert [start["resumed_from"] for start in outcomes] == [None, 2, 2]


# ---- sample, report --------------------------------------------------------------------------


def pictures(folder):
    return np.stack([np.asarray(Image.open(p)) for p in sorted(folder.glob("0*-0*.png"))])


def test_sample_from_a_run_its_average_and_a_model(started, cache, tmp_path):
    run, _ = started
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("a red ring\na blue square\n")
    plain = ["domain.t5=false", "domain.evaluation.steps=4", "domain.evaluation.guidance=1.0"]
    lines = [
        ["sample", source, "--prompts", str(prompts), "--to", str(tmp_path / name), *more]
        for name, source, more in [
            ("trained", str(run), ["--per-prompt", "3"]),
            ("again", str(run), ["--per-prompt", "3"]),
            ("seed", str(run), ["--per-prompt", "3", "--seed", "1"]),
            ("ema", str(run), ["--per-prompt", "3", "--weights", "ema"]),
            ("model", MODEL, ["--per-prompt", "3", *given(plain)]),
        ]
    ]
    ((*answers,),) = run_ranks(commands, 1, cache, lines)
    assert [code for code, _, _ in answers] == [0] * 5, answers
    made = {p.name: pictures(p) for p in tmp_path.iterdir() if p.is_dir()}
    assert all(images.shape == (6, 20, 20, 3) for images in made.values())
    assert np.array_equal(made["trained"], made["again"])
    for name in ("seed", "ema", "model"):
        assert not np.array_equal(made["trained"], made[name]), name
    listed = records(tmp_path / "trained", "samples.jsonl")
    assert listed[0] == {"file": "00000-000.png", "prompt": "a red ring"} and len(listed) == 6
    assert (tmp_path / "trained" / "grid.png").is_file()
    assert "6 pictures" in answers[0][1]


def test_report_compares_runs(started, cache, tmp_path):
    run, _ = started
    curves, cells = tmp_path / "curves.png", tmp_path / "new" / "cells.csv"
    line = ["report", str(run), str(run), "--curves", str(curves), "--trace", str(cells)]
    line += ["--to", str(tmp_path / "report")]
    both = [line, ["report", f"{run}@*"], ["report", str(run), "--weights", "ema"]]
    (answers,) = run_ranks(commands, 1, cache, both)
    code, out, err = answers[0]
    assert code == 0 and curves.is_file(), err
    header, rule, base, adrpo, *_ = out.strip().splitlines()
    assert header.count("|") == rule.count("|") == base.count("|") == adrpo.count("|")
    assert base.startswith("| base |") and adrpo.startswith("| adrpo ×1 |")
    report = tmp_path / "report"
    assert (report / "table.md").read_text() == out and "note: without fronts: " in err
    assert (report / "trace.csv").read_bytes() == cells.read_bytes()
    assert (report / "figures" / "learning_curves.svg").read_text().startswith("<svg")
    assert "reward (held_out)" in header and "w2_sum (train)" in header
    assert "* seed 0 of adrpo ×1 is there twice: first is left out" in out
    for split in ("train", "held_out"):  # both kept their prompts: every number has its interval
        assert f"* prompts of {split}: 2 prompts, set " in out
        assert f"| reward ({split}) | base |" in out
    assert "* none of the" not in out and "held-out prompts are among the" in out
    assert "* adrpo ×1: first (seed 0); iterations 1, 2; raw weights" in out
    rows = list(csv.DictReader(cells.open()))
    (cell,) = [r for r in rows if (r["row"], r["metric"], r["split"]) == KNOWN]
    means = [r["value"] for r in records(run, "eval.jsonl") if is_known(r)]
    assert float(cell["value"]) == pytest.approx(sum(means) / 2, rel=1e-12)
    assert (cell["iterations"], cell["weights"], cell["folder"]) == ("1 2", "raw", str(run))
    assert float(cell["row sampling s.e."]) > 0 and cell["prompts"] == "2"
    code, out, err = answers[1]
    assert code == 0 and "| adrpo ×1 @1 |" in out and "| adrpo ×1 @2 |" in out, err
    code, out, err = answers[2]
    assert code == 2 and "has evaluated raw weights alone" in err


KNOWN = ("adrpo ×1", "reward", "held_out")


def is_known(row):
    return row["iteration"] > 0 and (row["metric"], row["split"]) == KNOWN[1:]


# ---- errors ----------------------------------------------------------------------------------


def test_errors_are_one_message_without_a_traceback_and_code_2(cache, tmp_path):
    foreign = tmp_path / "foreign"
    foreign.mkdir()
    (foreign / "thesis.tex").write_text("")
    unfinished = tmp_path / "unfinished"
    unfinished.mkdir()
    config = load_config(Path(ADRPO), SMALL).config.resolved()
    (unfinished / "config.json").write_text(json.dumps(config))
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("a red ring\n")
    train = ["train", ADRPO, "--run-dir", str(tmp_path / "run"), *given(SMALL)]
    to = ["--prompts", str(prompts), "--to", str(tmp_path / "pictures")]
    stated = {
        "is not there; see configs/": ["train", "nowhere.toml"],
        "did you mean 'updates'?": [*train, "--set", "optimizer.updatez=1"],
        "is not empty and not the folder of a run": [
            *["train", ADRPO, "--run-dir", str(foreign), *given(SMALL)],
        ],
        "nowhere.txt": [*train, "--set", "prompts.train=nowhere.txt"],
        "model folder '/nowhere'": [*train, "--set", "domain.model=/nowhere"],
        "multiples of 5 pixels": [*train, "--set", "domain.height=21"],
        "cannot be imported": [*train, *given(["rewards.0={kind='function', path='no:thing'}"])],
        "has no checkpoint; committed iterations: none": ["sample", str(unfinished), *to],
        "expected one of evaluated, raw, ema": [
            "sample",
            str(unfinished),
            *to,
            "--weights",
            "best",
        ],
        "eval.jsonl is not there": ["report", str(foreign)],
        "expected a CONFIG": ["config"],
        "known: image": ["demo", "build", "sound"],
    }
    wrong = ["prompts.train=nowhere.txt", "prompts.held_out=gone.txt", "domain.model=/nowhere"]
    lines = [*stated.values(), [*train, *given(wrong)]]
    (answers,) = run_ranks(commands, 1, cache, lines)
    *answers, (code, _, err) = answers
    assert code == 2 and err.count("error: ") == 1  # all at once
    assert "nowhere.txt" in err and "gone.txt" in err and "model folder '/nowhere'" in err
    for expected, (code, out, err) in zip(stated, answers, strict=True):
        assert code == 2, (expected, out, err)
        assert expected in err
        assert err.count("error: ") == 1 and err.startswith("error: ")
        assert "Traceback" not in out + err


def test_an_error_in_two_processes_is_printed_once(cache, tmp_path):
    line = ["train", ADRPO, "--run-dir", str(tmp_path / "run"), *given(SMALL)]
    wrong = [*line, "--set", "prompts.train=nowhere.txt"]
    main, other = run_ranks(commands, 2, cache, [wrong])
    assert main[0][0] == other[0][0] == 2
    assert "nowhere.txt" in main[0][2] and other[0][2] == ""
