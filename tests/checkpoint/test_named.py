"""Names of weights: RUN, RUN@last, RUN@best, RUN@120, RUN@*, and which set they mean."""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path

import pytest

from adrpo_scale.checkpoint.base import MANIFEST
from adrpo_scale.checkpoint.locate import every_checkpoint, open_checkpoint
from adrpo_scale.checkpoint.named import (
    Named,
    best_iteration,
    named,
    parse_weights,
    set_of,
    stated_weights,
    weights_of,
)
from adrpo_scale.checkpoint.reader import Reader
from adrpo_scale.core.errors import CheckpointError, ConfigError
from tests.support.starts import newest

OLD = Path(__file__).parents[1] / "golden" / "runs"


def rewritten(path, **fields):
    """A manifest with other fields, and the hash of what it then holds."""
    body = json.loads(path.read_text()) | fields
    body.pop("sha256")
    canonical = json.dumps(body, sort_keys=True, separators=(",", ":"))
    digest = hashlib.sha256(canonical.encode()).hexdigest()
    path.write_text(json.dumps({"sha256": digest, **body}))


@pytest.fixture
def run(tmp_path):
    """Checkpoints of iterations 2 and 4, weights of 3; held-out rewards 9 at 0, then 1, 3, 3, 2."""
    run = tmp_path / "run"
    there = newest(OLD / "image").folder
    for place in ("checkpoints/step-000002", "trajectory/step-000003", "checkpoints/step-000004"):
        shutil.copytree(there, run / place)
        document = json.loads((run / place / MANIFEST).read_text())["document"]
        iteration = document["counters"]["iteration"] = int(place[-6:])
        rewritten(run / place / MANIFEST, iteration=iteration, document=document)
    shutil.copy(OLD / "image" / "config.json", run)
    rows = [
        {"iteration": k, "split": "held_out", "metric": "reward", "value": value, "n": 1}
        for k, value in enumerate((9.0, 1.0, 3.0, 3.0, 2.0))
    ]
    (run / "eval.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return run


def changed(run, **settings):
    config = json.loads((run / "config.json").read_text())
    config["checkpoint"] |= settings
    (run / "config.json").write_text(json.dumps(config))


@pytest.mark.parametrize(
    ("which", "folder"),
    [
        ("", "checkpoints/step-000004"),
        ("@last", "checkpoints/step-000004"),
        ("@2", "checkpoints/step-000002"),
        ("@3", "trajectory/step-000003"),
        ("@best", "trajectory/step-000003"),  # the later of two; iteration 0 is the base model
    ],
)
def test_a_name_stands_for_one_checkpoint(run, which, folder):
    assert open_checkpoint(f"{run}{which}").folder == run / folder


def test_the_best_is_by_the_runs_own_metric_and_direction(run):
    assert best_iteration(run) == 3
    changed(run, best_mode="min")
    assert best_iteration(run) == 1
    with pytest.raises(CheckpointError, match=r"no checkpoint of iteration 1 .*keep_best keeps it"):
        open_checkpoint(f"{run}@best")
    changed(run, best_metric="checker")
    with pytest.raises(CheckpointError, match=r"checker on held_out .*has reward on held_out"):
        best_iteration(run)


def test_a_star_is_every_checkpoint_where_several_make_sense(run):
    assert every_checkpoint(f"{run}@*") == [f"{run}@2", f"{run}@3", f"{run}@4"]
    assert every_checkpoint(f"{run}@3") == [f"{run}@3"]
    with pytest.raises(CheckpointError, match="names several checkpoints, and one is expected"):
        open_checkpoint(f"{run}@*")


def test_other_words_are_refused_and_a_folder_with_an_at_is_a_folder(run, tmp_path):
    with pytest.raises(CheckpointError, match=r"RUN@last, RUN@best or RUN@\*"):
        named(f"{run}@newest")
    odd = run.rename(tmp_path / "run@best")
    assert named(str(odd)) == Named(odd)
    assert named(f"{odd}@7") == Named(odd, 7)


@pytest.mark.parametrize(
    ("measured", "wanted", "meant"),
    [
        ("raw", "evaluated", "raw"),
        ("ema", "evaluated", "ema"),
        ("ema", "raw", "raw"),
        ("raw", "ema", "ema"),
    ],
)
def test_a_run_means_the_weights_that_its_evaluation_measures(run, measured, wanted, meant):
    path = run / "checkpoints" / "step-000004" / MANIFEST
    document = json.loads(path.read_text())["document"]
    document["config"]["evaluation"]["weights"] = measured
    rewritten(path, document=document)
    reader = Reader(path.parent)
    assert weights_of(reader, wanted) == meant
    assert set_of(reader, wanted) == {"raw": "policy", "ema": "ema"}[meant]
    assert stated_weights(reader, wanted).endswith("of iteration 4")


def test_an_average_that_is_not_there_is_refused_and_the_evaluation_measured_the_weights():
    reader = newest(OLD / "text_rm")
    assert set_of(reader, "evaluated") == "policy"
    with pytest.raises(CheckpointError, match="no moving average"):
        set_of(reader, "ema")


def test_the_word_of_before_is_understood():
    assert parse_weights("trained") == "raw"
    with pytest.raises(ConfigError, match="expected one of evaluated, raw, ema"):
        parse_weights("best")
