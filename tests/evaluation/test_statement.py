"""`report --statement`: computation counted by hand, runs that are not shown, and real runs."""

from __future__ import annotations

import json
import re
import shutil
from datetime import datetime, timedelta
from pathlib import Path

import pytest

from adrpo_scale.core.errors import ConfigError
from adrpo_scale.evaluation.report.bundle import write_bundle
from adrpo_scale.evaluation.report.costs import cost_of
from adrpo_scale.evaluation.report.document import Grid, Heading, Items, Paragraph, latex, markdown
from adrpo_scale.evaluation.report.folder import report_files
from adrpo_scale.evaluation.report.statement import statement, write_statement
from adrpo_scale.evaluation.report.tried import with_tried
from tests.evaluation.test_bundle import given_of
from tests.evaluation.test_report import made, written
from tests.support import starts
from tests.support.faults import DieAt
from tests.support.judged import write_evaluation

BEGAN = datetime.fromisoformat("2026-01-01T00:00:00+00:00")
HOUR = 3600.0


def recorded(run, number, began, ended=None, *, gpus=4, found=None, **more):
    """A record of a start; times in hours."""

    def at(hours):
        return (BEGAN + timedelta(hours=hours)).isoformat()

    record = {
        **{"began": at(began), "world_size": 4, "hosts": 1, "commit": "c0ffee", "cuda": "12.8"},
        **{
            "gpus": {"H100": gpus} if gpus else {},
            "versions": {"torch": "2.11"},
            "driver": "570.1",
        },
        **{"resumed_from": None, "found": None, "changed_settings": [], "disagreements": []},
    }
    if ended is not None:
        record |= {"ended": at(ended), "outcome": "done", "exit_code": 0}
    if found is not None:
        iterations, seconds, last = found
        record["found"] = {"iterations": iterations, "seconds": seconds, "last_line": at(last)}
    (run / "lives").mkdir(exist_ok=True)
    (run / "lives" / f"{number:02d}.json").write_text(json.dumps(record | more))


def metrics(run, seconds):
    rows = [
        {"iteration": n, "seconds": s, "seconds_between": 0.0} for n, s in enumerate(seconds, 1)
    ]
    written(run / "metrics.jsonl", rows)


def killed_and_resumed(run):
    """Four processes. Start 1: 1.5 h, iterations 1 to 4 of .25 h, killed; start 2 failed at once
    after .1 h; start 3 goes on from iteration 2 and makes 3 to 6 in 1 h, of 1.2 h."""
    metrics(run, [HOUR / 4] * 6)
    recorded(run, 1, 0.0)
    found = (2, HOUR / 2, 1.5)
    failed = {"outcome": "failed: no room", "exit_code": 2}
    recorded(run, 2, 2.0, 2.1, resumed_from=2, found=found, **failed)
    recorded(run, 3, 3.0, 4.2, resumed_from=2, found=(0, 0.0, 1.5))


def test_kept_repeated_lost_and_other_hours(tmp_path):
    killed_and_resumed(tmp_path)
    cost = cost_of(tmp_path)
    assert (cost.starts, cost.repeated_iterations, cost.open_ends, cost.on_gpus) == (3, 2, 0, 3)
    assert cost.kept == pytest.approx(4 * 1.5)
    assert cost.repeated == pytest.approx(4 * 0.5)
    assert cost.lost == pytest.approx(4 * 0.1)
    assert cost.rest == pytest.approx(4 * (1.5 - 0.5 - 0.5 + 1.2 - 1.0))
    assert cost.total == pytest.approx(4 * (1.5 + 0.1 + 1.2))


def test_a_start_without_an_end_is_counted_up_to_its_last_iteration(tmp_path):
    metrics(tmp_path, [HOUR, HOUR])
    recorded(tmp_path, 1, 0.0, gpus=0)
    cost = cost_of(tmp_path)
    assert (cost.total, cost.kept, cost.open_ends, cost.on_gpus) == (8.0, 8.0, 1, 0)
    assert cost_of(tmp_path / "nowhere").total == 0


def grid(text, caption):
    """The rows of a Markdown table, without its header."""
    lines = text.partition(caption)[2].split("\n\n")[1].splitlines()
    return [line[2:-2].split(" | ") for line in lines[2:]]


def test_what_was_run_and_what_is_not_shown(tmp_path):
    runs = tmp_path / "runs"
    runs.mkdir()
    names = [made(runs, "grpo", seed, [1.0, 2.0]) for seed in (0, 1)]
    names.append(made(runs, "grpo", 0, [3.0], overrides=["algorithm.clip_high=0.3"]))
    other = Path(made(runs, "grpo", 5, [9.0], overrides=["algorithm.clip_high=0.4"]))
    trial = runs / "a-trial"
    (trial / "lives").mkdir(parents=True)
    (trial / "trial.json").write_text("{}")
    for name in names:
        killed_and_resumed(Path(name))
    recorded(other, 1, 0.0, 1.0, gpus=0, outcome="failed: limits.max_divergence", exit_code=3)
    sets = {"train": {"prompts": 40, "hash": "abc"}, "overlap": {}}
    (Path(names[0]) / "prompt_sets.json").write_text(json.dumps(sets))
    given = with_tried(given_of(tmp_path, *names, line="seeds.toml: 3 done · 1 to do"))
    text = markdown(statement(given))

    rows = grid(text, "Rows of the tables.")
    assert [row[0] for row in rows] == ["R1", "R2"] and [row[3] for row in rows] == ["0, 1", "0"]
    differing = [row[:3] for row in grid(text, "Settings in which rows differ.")]
    assert differing == [
        ["algorithm.clip_high", "0.2", "R1"],
        ["algorithm.clip_high", "0.3", "R2"],
    ]
    shared = {row[0]: row[1:] for row in grid(text, "Settings that all rows have.")}
    assert shared["prompts.group_size"][0] == "12" and "seed" not in shared
    assert shared["optimizer.draws_per_sample"] == ["1", "the paper's, Algorithm 1"]
    assert "logging.pictures_every" not in shared and "regulariser.shape" not in shared

    hours = {row[0]: row[1:] for row in grid(text, "Computation, in GPU-hours.")}
    assert hours["R1"] == ["6", "12", "4", "0.8", "5.6", "22.4"]
    assert hours["R2"] == ["3", "6", "2", "0.4", "2.8", "11.2"]
    assert hours["all, each run once"] == ["9", "18", "6", "1.2", "8.4", "33.6"]
    assert "6 iterations in all" in text and "runs that are not shown took 4 more" in text

    tried = grid(text, "2 folders beside the runs that are shown.")
    assert [(row[0], row[3], row[5]) for row in tried] == [
        ("a-trial", "–", "a trial"),
        (other.name, "algorithm.clip_high = 0.4", "failed: limits.max_divergence"),
    ]
    for said in (
        "trained on 40 prompts, set abc",
        "hardware: 4 × H100; processes: 4, machines: 1, CUDA 12.8, driver 570.1 (9 starts)",
        "code: commit c0ffee (9 starts)",
        "versions: torch 2.11 (9 starts)",
        "The sweep: seeds.toml: 3 done · 1 to do",
        f"hashes of the prompts trained on: of {Path(names[1]).name}, {Path(names[2]).name}",
        "prompts of held_out: 8 prompts, set ",
    ):
        assert said in text, said


def test_models_have_the_revisions_and_licences_that_are_recorded(tmp_path, monkeypatch):
    hub = ["domain.model=stabilityai/sd3", "rewards.0.model=/models/clip"]
    name = Path(made(tmp_path, "grpo", 0, [1.0], overrides=hub))
    entry = {"type": "model", "id": "stabilityai/sd3", "revision": "b1d5", "licence": "its own"}
    entry |= {"patterns": "*", "ignored": "", "files": {}, "converted": None}
    lock = tmp_path / "prefetch.lock"
    lock.write_text(json.dumps({"format": 1, "repos": [entry]}))
    monkeypatch.setenv("ADRPO_PREFETCH_LOCK", str(lock))
    manifest = name / "checkpoints" / "step-000001" / "manifest.json"
    manifest.parent.mkdir(parents=True)
    base = {"model": "stabilityai/sd3", "revision": "b1d5", "sha256": "f" * 64}
    manifest.write_text(json.dumps({"document": {"base": base}}))
    given = with_tried(given_of(tmp_path, name))
    text = markdown(statement(given))
    rows = {row[0]: row[2:] for row in grid(text, "Models and datasets.")}
    assert rows["stabilityai/sd3"] == [f"b1d5; weights sha256 {'f' * 16}", "its own"]
    assert rows["/models/clip"] == ["not recorded", "not recorded"]
    assert rows["demo:image/prompts/train.jsonl"] == [
        "a file of adrpo_scale",
        "that of adrpo_scale",
    ]
    assert "* licences: of /models/clip" in text and "* records of starts: of grpo-0-0" in text
    own = made(tmp_path, "my_algorithm", 0, [1.0], overrides=hub)  # which cannot be imported here
    known = {row[0] for row in grid(markdown(statement(given_of(tmp_path, own))), "datasets.")}
    assert {"stabilityai/sd3", "/models/clip", "demo:image/prompts/train.jsonl"} <= known
    write_bundle(tmp_path / "out.tar", given)
    monkeypatch.delenv("ADRPO_PREFETCH_LOCK")
    again = with_tried(given_of(tmp_path, tmp_path / "out.tar"))
    assert markdown(statement(again)) == text  # with the lock of the bundle


def test_judged_models_are_stated_with_how_they_were_asked(tmp_path):
    run = Path(made(tmp_path, "grpo", 0, [1.0]))
    write_evaluation(tmp_path / "table1", json.loads((run / "config.json").read_text()))
    document = json.loads((tmp_path / "table1" / "evaluation.json").read_text())
    document |= {"config": {"sampling": {"per_prompt": 2, "seeds": [0, 7]}}}
    document |= {"scorers": {"clip": {"model": "openai/clip"}}}
    (tmp_path / "table1" / "evaluation.json").write_text(json.dumps(document))
    text = markdown(statement(given_of(tmp_path, tmp_path / "table1")))
    values = {(r[0], r[1]): r[2] for r in grid(text, "Settings in which rows differ.")}
    assert values["model.steps", "28"] == "R2" and values["algorithm.name", "grpo"] == "R1"
    assert "per_prompt = 2, seeds =" in text.replace("\\", "") and "openai/clip" in text
    assert "hub/flux" in text and "nobody trained it" in text


def test_a_judged_run_s_own_folder_is_found_and_goes_along(tmp_path, monkeypatch):
    """The evaluation lies elsewhere; of two folders of the run's name one has its settings."""
    made_run = Path(made(tmp_path, "grpo", 0, [1.0]))
    config = json.loads((made_run / "config.json").read_text())
    write_evaluation(tmp_path / "table1", config, seeds=(0,))
    for place, rate in (("mine", 1e-3), ("runs", 9.0)):
        run = tmp_path / place / "ours-run-0"
        run.mkdir(parents=True)
        optimizer = config["optimizer"] | {"learning_rate": rate}
        more = {"optimizer": optimizer} if place == "runs" else {"iterations": 777}
        (run / "config.json").write_text(json.dumps(config | more))
        killed_and_resumed(run)
    monkeypatch.chdir(tmp_path)
    given = with_tried(given_of(tmp_path, "table1"))
    assert [run.origin for run in given.runs] == [None, None]  # the file does not say where
    path = tmp_path / "table1" / "evaluation.json"
    stated = {"config": {"models": {"ours": {"run": "mine/ours-run-*@120"}}}}
    path.write_text(json.dumps(json.loads(path.read_text()) | stated))
    given = with_tried(given_of(tmp_path, "table1"))
    assert [run.origin for run in given.runs] == [tmp_path / "mine" / "ours-run-0", None]
    text = markdown(statement(given))
    assert "(3 starts)" in text and grid(text, "in GPU-hours.")[0][1:] == [
        *("3", "6", "2", "0.4", "2.8", "11.2")
    ]
    write_bundle(tmp_path / "out.tar", given)
    shutil.rmtree(tmp_path / "mine")
    again = with_tried(given_of(tmp_path, tmp_path / "out.tar"))
    assert markdown(statement(again)) == text


def test_latex_shows_texts_of_others_and_breaks_no_table(tmp_path):
    odd = "50 % of a_b & c^d #1 {x} ~ \\end{longtable} $2"
    blocks = [
        Heading(odd),
        Paragraph(odd),
        Items((odd,)),
        Grid((("k", "v"), ("a.b/c_d", odd), ("0.5", "")), odd),
    ]
    text = latex(blocks)
    assert text.count(r"\end{longtable}") == text.count(r"\begin{longtable}") == 1
    plain = re.sub(r"\\[&%#_${}]", "", text)
    body = plain[plain.index(r"\endfoot") :].splitlines()[1:3]
    assert [line.count("&") for line in body] == [1, 1] and all(r"\\" in line for line in body)
    assert r"a.\allowbreak{}b/\allowbreak{}c" in text and r"0.\allowbreak" not in text
    assert text.count("{") - text.count(r"\{") == text.count("}") - text.count(r"\}")
    with pytest.raises(ConfigError, match=r"FILE\.md or FILE\.tex"):
        write_statement(tmp_path / "out.txt", given_of(tmp_path))


@pytest.mark.slow
def test_a_real_run_that_was_killed_and_resumed(tmp_path):
    """Killed in iteration 4, after a checkpoint of iteration 2: iteration 3 is done again."""
    settings = ["iterations=4", "checkpoint.every_iterations=2", "evaluation.every=2"]
    folder = tmp_path / "one"
    rollouts = 4 + 2 * 2  # and two evaluations of both splits, before iterations 1 and 3
    saved = folder / "run" / "checkpoints" / "step-000002"
    die = DieAt("adrpo_scale.domains.flow:FlowDomain.sample", rollouts, saved)
    assert starts.train(folder, 1, settings, prepare=die).wait() == [-9]
    second = starts.train(folder, 1, settings)
    assert second.wait() == [0], second.text()
    cost = cost_of(folder / "run")
    assert (cost.starts, cost.repeated_iterations, cost.open_ends) == (2, 1, 0)
    assert cost.repeated > 0 and cost.kept > 0 and cost.on_gpus == 0
    given = with_tried(given_of(tmp_path, folder / "run"))
    write_bundle(tmp_path / "out.tar", given)
    for name in ("text.md", "text.tex"):
        write_statement(tmp_path / name, given)
        write_statement(tmp_path / f"again-{name}", given_of(tmp_path, tmp_path / "out.tar"))
        assert (tmp_path / name).read_bytes() == (tmp_path / f"again-{name}").read_bytes()
    text = (tmp_path / "text.md").read_text()
    assert (
        "1 iteration in all" in text and "Computation, in hours of processes without a GPU." in text
    )
    assert "None lies beside the runs that are shown." in text
    again = given_of(tmp_path, tmp_path / "out.tar")
    files = report_files(given.runs, "")[0]
    assert report_files(again.runs, "")[0] == files and "figures/reward_diversity.svg" in files
