"""The scripts and components of docs/examples, each run for real on the image demo."""

from __future__ import annotations

import importlib
import math
import sys
from functools import partial
from pathlib import Path
from typing import Any

import pandas
import pytest

import adrpo_scale
from adrpo_scale.engines.base import OptimizerConfig
from tests.support.starts import TINY, Started
from tests.support.tiny import CONFIGS

EXAMPLES = Path(__file__).parents[2] / "docs" / "examples"
DEMO = str(CONFIGS / "demo" / "image_adrpo.toml")
SHORT = [*TINY, "iterations=2", "evaluation.every=1"]
OWN = {
    "extend_algorithm": ['algorithm={name="extend_algorithm:Smooth", temperature=0.5}'],
    "extend_beta": ['algorithm={name="extend_beta:SmoothBeta", height=0.5}'],
    "extend_reward": ['rewards=[{kind="extend_reward:Colour", colour=[0, 0, 255]}]'],
    "extend_domain": ["domain.name=extend_domain:Enlarged", "domain.times=3"],
    "extend_engine": ["engine.name=extend_engine:Careful", "engine.largest_norm=1e6"],
    "extend_engine_alone": ["engine.name=extend_engine_alone:OneProcess", "engine.shard=null"],
}


def carry_out(script: str, run: Path, overrides: list[str], rank: int) -> None:
    """In a process of its own: the script's `main`, or `train` with what it defines."""
    sys.path.insert(0, str(EXAMPLES))
    main = getattr(importlib.import_module(script), "main", adrpo_scale.train)
    main(DEMO, run_dir=run, overrides=overrides)


def carry_out_twice(script: str, run: Path, overrides: list[str], rank: int) -> None:
    """One iteration, then, by a second call in the same processes, the other."""
    carry_out(script, run, [*overrides, "iterations=1"], rank)
    carry_out(script, run, overrides, rank)


def finished(
    folder: Path, world: int, script: str, overrides: list[str], how: Any = carry_out
) -> adrpo_scale.Run:
    """The run of a script in `world` processes, once they have ended."""
    run = folder / "run"
    prepare = partial(how, script, run, [*SHORT, *overrides])
    start = Started(folder, world, ["inspect", str(run)], prepare)
    assert start.wait(240) == [0] * world, start.text()
    return adrpo_scale.open_run(run)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> adrpo_scale.Run:
    """By `train_from_python` in two processes, as torchrun starts them, which resume it once."""
    folder = tmp_path_factory.mktemp("python")
    return finished(folder, 2, "train_from_python", [], carry_out_twice)


def test_a_script_trains_in_two_processes_and_a_run_tells_of_it(trained):
    assert [row["iteration"] for row in trained.metrics()] == [1, 2]
    assert {row["iteration"] for row in trained.evaluations()} == {0, 1, 2}
    assert trained.config.iterations == 2
    assert [*trained.checkpoints()] == [1, 2] and trained.checkpoints()[2].is_dir()
    starts = trained.starts()
    assert [start["outcome"] for start in starts] == ["done", "done"]
    assert [start["resumed_from"] for start in starts] == [None, 1]
    assert {start["world_size"] for start in starts} == {2}
    assert trained.name == "run"


def test_curves_are_frames_by_iteration(trained, monkeypatch, capsys):
    monkeypatch.syspath_prepend(EXAMPLES)
    script = importlib.import_module("curves_into_pandas")
    curves, evaluations = script.main(trained.folder)
    assert isinstance(curves, pandas.DataFrame) and [*curves.index] == [1, 2]
    assert evaluations["train"]["reward"].notna().all() and [*evaluations.index] == [0, 1, 2]
    assert "adrpo of 2 starts" in capsys.readouterr().out


def test_the_reward_with_state_counts_the_prompts_of_the_run(tmp_path, monkeypatch):
    run = finished(tmp_path, 1, "reward_with_state", [])
    assert run.config.rewards[0].power == 1.0
    assert all(row["reward"] > 0 for row in run.metrics())
    script = importlib.import_module("reward_with_state")
    reward = script.RareColours(script.RareColoursConfig(kind=script.ME, power=1.0), None)
    prompts = [adrpo_scale.Prompt(i, f"a {c} ring") for i, c in enumerate(["red", "red", "blue"])]
    reward.check(prompts)
    assert reward.counts == {"red": 2, "blue": 1}


@pytest.fixture(autouse=True)
def examples_are_importable(monkeypatch: pytest.MonkeyPatch) -> None:
    """For `Run.config` of a run with components of them."""
    monkeypatch.syspath_prepend(EXAMPLES)


def test_the_careful_engine_takes_no_step_above_its_limit():
    script = importlib.import_module("extend_engine")
    engine = script.Careful(script.CarefulConfig(largest_norm=2.0), OptimizerConfig(), 0)
    assert [engine.accepts(norm) for norm in (0.5, 2.0, 2.1, math.nan)] == [
        True,
        True,
        False,
        False,
    ]


@pytest.mark.parametrize("script", OWN)
def test_a_component_from_outside_the_package_trains(script, tmp_path, trained):
    run = finished(tmp_path, 1, script, OWN[script])
    rows = run.metrics()
    assert [row["iteration"] for row in rows] == [1, 2]
    assert all(row["grad_norm"] > 0 for row in rows)
    assert all(row["updates_skipped"] == 0 for row in rows)
    if script == "extend_engine_alone":  # the same as the library's engine in two processes
        for here, there in zip(rows, trained.metrics(), strict=True):
            assert here["reward"] == pytest.approx(there["reward"], rel=1e-4)
            assert here["loss"] == pytest.approx(there["loss"], rel=1e-3, abs=1e-6)
