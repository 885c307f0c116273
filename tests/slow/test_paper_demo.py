"""Table 1 over the image demo, at a reduced size: the shipped sweep, its evaluation, its report."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest

from adrpo_scale.run.sweep import read_sweep
from tests.support.shipped import CONFIGS
from tests.support.starts import Started

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]
DEMO = CONFIGS / "paper/demo"
SWEEP = {
    "seed = [0, 1, 2]": "seed = [0]\nprompts.per_iteration = [2]\nprompts.group_size = [4]",
    "iterations = [40]": "iterations = [2]",
    "evaluation.every = [10]": "evaluation.every = [1]",
    "evaluation.prompts = [60]": "evaluation.prompts = [4]",
    "samples_per_prompt = [4]": "samples_per_prompt = [2]",
    "keep_trajectory = [10]": "keep_trajectory = [1]",
    '"configs/': f'"{CONFIGS}/',
}
EVALUATION = {
    "demo:image/prompts/held_out.jsonl": "four.jsonl",
    "per_prompt = 4": "per_prompt = 2",
    "seeds = [0, 1, 2]": "seeds = [0, 1]",
    "batch = 48": "batch = 8",
    "configs/paper/demo/demo_images.toml": "demo_images.toml",
}
SCORERS = {"clip", "checker", "graded", "readable", "count", "colors"}


def reduced(name: str, changes: dict[str, str]) -> str:
    text = (DEMO / name).read_text()
    for old, new in changes.items():
        assert old in text, old
        text = text.replace(old, new)
    return text


def run(folder: Path, *words: str) -> str:
    start = Started(folder / f"start-{words[0]}", 1, words, environment={"ADRPO_RUNS": "runs"})
    assert start.wait() == [0], start.text()
    return start.text()


def test_three_commands_give_the_table_of_five_algorithms_and_two_pipelines(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    prompts = (CONFIGS.parent / "adrpo_scale/demo/assets/image/prompts/held_out.jsonl").read_text()
    Path("four.jsonl").write_text("".join(prompts.splitlines(keepends=True)[::15]))
    Path("demo_images.toml").write_text(reduced("demo_images.toml", SWEEP))
    name = "demo_images_evaluation"
    Path(f"{name}.toml").write_text(reduced(f"{name}.toml", EVALUATION))
    for element in read_sweep(Path("demo_images.toml")).elements:  # as `sweep --run` starts them
        run(tmp_path, "sweep", "demo_images.toml", "--element", str(element.number))
    for kept in ("step-000001", "step-000002"):
        assert len(list(Path("runs").glob(f"*/trajectory/{kept}/manifest.json"))) == 5
    run(tmp_path, "evaluate", f"{name}.toml")
    text = run(tmp_path, "report", f"runs/evaluations/{name}", "--to", "reports")

    rows = sorted(Path(f"runs/evaluations/{name}/rows").iterdir())
    facts = [json.loads((row / "evaluation.json").read_text()) for row in rows]
    assert sorted(one["algorithm"] for one in facts if not one["published"]) == sorted(
        ["raft", "dpo", "orw_cfm_w2", "adrpo", "grpo"]
    )
    published = [one for one in facts if one["published"]]
    assert [one["model"]["guidance"] for one in published] == [1.0, 2.0]
    # Otherwise it would not be the model that the runs began with.
    assert {one["model"]["max_sequence_length"] for one in published} == {12}
    assert all(len(list((row / "images").iterdir())) == 4 * 2 * 2 for row in rows)
    assert text.count("nobody trained it") == 2 * (len(SCORERS) + 1)
    with open("reports/table.csv") as file:
        cells = list(csv.DictReader(file))
    assert {cell["metric"] for cell in cells} == {*SCORERS, "clip_diversity_l2"}
    clip = {c["row"]: float(c["mean"]) for c in cells if c["metric"] == "clip"}
    assert len(clip) == 7
    # Two iterations move little, and the noise is the same: with the pipeline's own number of
    # tokens the base is some 24 points away.
    (trained,) = [value for row, value in clip.items() if "raft" in row]
    assert abs(clip["base"] - trained) < 5
