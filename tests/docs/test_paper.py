"""The recipes of the paper's numbers: complete, as the page shows them, and planned as they are."""

from __future__ import annotations

from pathlib import Path

import pytest

from adrpo_scale.data.prompt_files import load_prompts
from adrpo_scale.evaluation.file import load_evaluation
from adrpo_scale.run.sweep import read_sweep
from adrpo_scale.run.sweep_runs import runs_of
from docs import generate_paper
from docs.paper_recipes import CONFIGS, RECIPES, SWEEPS, cost_of, inputs_of
from tests.support.pages import ROOT
from tests.support.shipped import EVALUATIONS, PAPER

ALL_SWEEPS = tuple(dict.fromkeys(recipe.sweep for recipe in RECIPES))
DRAWBENCH = 200
HELD_OUT = {"texts": 200, "table2": 400, "table3": 400}  # of hub sets, by the sweep's name
TABLE_1 = {"clip", "aesthetic", "blip_score", "image_reward", "pick_score"}


@pytest.fixture(autouse=True)
def in_the_checkout(monkeypatch):
    monkeypatch.chdir(ROOT)


def test_every_file_of_the_paper_belongs_to_a_number():
    shown = {file for recipe in RECIPES for file in recipe.files}
    assert {path.relative_to(ROOT).as_posix() for path in PAPER} <= shown
    assert [file for file in shown if not (ROOT / file).is_file()] == []


@pytest.mark.parametrize("sweep", ALL_SWEEPS)
def test_a_recipe_keeps_weights_at_every_evaluation_of_all_prompts_that_are_held_out(sweep):
    for run in runs_of(read_sweep(Path(sweep))):
        config = run.loaded.config
        assert config.checkpoint.keep_trajectory == config.evaluation.every > 0
        held_out = config.prompts.held_out
        if held_out is not None and held_out.startswith("demo:"):
            count = len(load_prompts(held_out))
        else:
            count = HELD_OUT.get(Path(sweep).stem, DRAWBENCH)
        assert config.evaluation.prompts >= count


@pytest.mark.parametrize("sweep", [s for s in ALL_SWEEPS if "table1" in s or "demo_images" in s])
def test_dpo_of_table_1_is_offline(sweep):
    algorithms = [run.loaded.config.algorithm for run in runs_of(read_sweep(Path(sweep)))]
    rollouts = {one.rollouts for one in algorithms if one.name == "dpo"}
    assert rollouts and rollouts <= {"base", "file"}


@pytest.mark.parametrize("name", ["table1_images", "table1_disjoint_images"])
def test_table_1_has_its_scorers_and_its_rows(name):
    found = load_evaluation(CONFIGS / f"{name}.toml")
    assert {scorer.kind for scorer in found.scorers} == TABLE_1
    assert found.prompts[0].file == "data/drawbench/drawbench.jsonl"
    assert found.models["trained"].sweep == f"{CONFIGS}/{name.removesuffix('_images')}.toml"
    assert found.models["sd3"].pipeline.startswith("stabilityai/")


@pytest.mark.parametrize("path", [p for p in EVALUATIONS if p in PAPER], ids=lambda p: p.stem)
def test_an_evaluation_names_a_sweep_that_ships(path):
    sweeps = [model.sweep for model in load_evaluation(path).rows.values() if model.sweep]
    assert sweeps and set(sweeps) <= set(ALL_SWEEPS)


def test_the_demo_has_five_scorers_and_two_pipelines_that_nobody_trained():
    found = load_evaluation(CONFIGS / "demo/demo_images_evaluation.toml")
    assert len(found.scorers) >= 5
    assert len([model for model in found.rows.values() if model.pipeline]) == 2


@pytest.mark.parametrize("sweep", SWEEPS, ids=lambda path: path.stem)
def test_plans_are_of_the_settings_of_today(sweep):
    cost = cost_of(sweep.as_posix())
    assert cost is not None and not cost.is_stale, "python -m benchmarks.paper_plans"
    assert cost.runs == len(read_sweep(sweep).elements)


def test_other_settings_are_other_inputs(tmp_path, monkeypatch):
    sweep = SWEEPS[0].as_posix()
    before = inputs_of(sweep)
    for file in [sweep, *(f for r in RECIPES if r.sweep == sweep for f in r.files)]:
        (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / file).write_text((ROOT / file).read_text() + "\n# a comment\n")
    monkeypatch.setattr("docs.paper_recipes.ROOT", tmp_path)
    assert inputs_of(sweep) == before
    config = tmp_path / "configs/sd3/adrpo.toml"
    config.write_text(config.read_text().replace("iterations = 300", "iterations = 301"))
    assert inputs_of(sweep) != before


def test_the_page_shows_each_number_with_its_commands_cost_and_state():
    page = generate_paper.page()
    for recipe in RECIPES:
        section = page.partition(f"\n## {recipe.title}\n")[2].partition("\n## ")[0]
        assert all(line in section for line in recipe.commands)
        assert all(f"`{file}`" in section for file in recipe.files)
        cost = cost_of(recipe.sweep)
        assert cost is None or f"{cost.gpu_hours:,.0f} for {cost.runs} runs" in section
        assert "never run" in section or recipe.state in section
    assert "What the paper does not state" in page and "Not comparable" in page
