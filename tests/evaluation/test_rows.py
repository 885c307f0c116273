"""Which rows the models of an evaluation file are; nothing is loaded."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from adrpo_scale.core.errors import ConfigError
from adrpo_scale.evaluation.asked import ImageModel
from adrpo_scale.evaluation.rows import rows_of
from adrpo_scale.run.sweep import read_sweep
from adrpo_scale.run.sweep_runs import begun
from tests.support.starts import newest
from tests.support.tiny import CONFIGS

OLD = Path(__file__).parents[1] / "golden" / "runs"


def run_at(folder, *places):
    """A run with checkpoints in these places; all hold iteration 2."""
    for place in places:
        shutil.copytree(newest(OLD / "image").folder, folder / place)
    shutil.copy(OLD / "image" / "config.json", folder)
    return folder


@pytest.fixture
def runs(tmp_path):
    """Two runs with a checkpoint, one of which keeps trajectory weights, and one without."""
    run_at(tmp_path / "ours-0", "checkpoints/step-000002")
    run_at(tmp_path / "ours-1", "trajectory/step-000001", "checkpoints/step-000002")
    (tmp_path / "ours-2" / "checkpoints").mkdir(parents=True)
    return tmp_path


def names(**models):
    return [row.name for row in rows_of({k: ImageModel(**v) for k, v in models.items()})]


def test_a_run_is_one_row_by_the_name_of_its_model(runs):
    (row,) = rows_of({"mine": ImageModel(run=str(runs / "ours-0"))})
    assert (row.name, row.run, row.is_published) == ("mine", f"{runs}/ours-0@2", False)
    of = {"run": "ours-0", "algorithm": "adrpo", "seed": 0, "iteration": 2, "weights": "raw"}
    assert row.of == of and row.config["domain"]["name"] == "flow"
    assert names(a={"run": f"{runs}/ours-0@2"}, b={"pipeline": "x/y"}) == ["a", "b"]
    (average,) = rows_of({"a": ImageModel(run=f"{runs}/ours-0", weights="ema")})
    assert average.of == of | {"weights": "ema"}
    folder = runs / "ours-0" / "checkpoints" / "step-000002"
    assert rows_of({"a": ImageModel(run=str(folder))})[0].of == of


def test_a_pipeline_is_a_row_that_nobody_trained(runs):
    (row,) = rows_of({"flux": ImageModel(pipeline="x/y")})
    assert (row.name, row.run, row.is_published, row.config) == ("flux", None, True, None)
    assert row.of["seed"] is None


def test_a_glob_makes_a_row_of_each_run_with_weights(runs):
    pattern = {"run": f"{runs}/ours-*"}
    assert names(ours=pattern) == ["ours,ours-0", "ours,ours-1"]
    assert names(ours={"run": f"{runs}/ours-[1-9]"}) == ["ours,ours-1"]  # the name stays the same
    assert names(ours={"run": f"{runs}/ours-*@2"}) == ["ours,ours-0@2", "ours,ours-1@2"]


def test_a_star_makes_a_row_of_each_iteration(runs):
    assert names(ours={"run": f"{runs}/ours-0@*"}) == ["ours,ours-0@2"]
    shutil.rmtree(runs / "ours-1" / "trajectory")
    assert names(ours={"run": f"{runs}/ours-*@*"}) == ["ours,ours-0@2", "ours,ours-1@2"]


def test_a_sweep_makes_a_row_of_each_run_that_has_begun(runs, monkeypatch):
    monkeypatch.setenv("ADRPO_RUNS", str(runs / "runs"))
    file = runs / "mine.toml"
    file.write_text(f'base = "{CONFIGS}/demo/image_adrpo.toml"\n[grid]\nseed = [0, 1]\n')
    with pytest.raises(ConfigError, match="no run of it has a checkpoint yet"):
        names(swept={"sweep": str(file)})
    first, _ = begun(read_sweep(file))
    run_at(first.folder, "checkpoints/step-000002")
    assert names(swept={"sweep": str(file)}) == [f"swept,{first.folder.name}"]


def test_every_model_that_is_not_there_is_named(runs):
    models = {
        "one": ImageModel(run=f"{runs}/none"),
        "two": ImageModel(run=f"{runs}/none-*"),
        "three": ImageModel(run=f"{runs}/ours-0@7"),
    }
    with pytest.raises(ConfigError) as error:
        rows_of(models)
    lines = str(error.value).splitlines()
    assert [line.partition(":")[0] for line in lines] == [f"models.{name}" for name in models]
    assert "committed iterations: 2" in lines[2]
