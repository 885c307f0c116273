"""`report`: which runs are one line, what a line is called, and folders of any age."""

from __future__ import annotations

import json
import random
import sys
from pathlib import Path

import pytest

from adrpo_scale.core.errors import RunFolderError
from adrpo_scale.evaluation.report.comparison import by_seed, comparison, labels
from adrpo_scale.evaluation.report.evaluated import read_run, unevaluated
from adrpo_scale.run.load import load_config, parse_config
from adrpo_scale.run.tables import read_rows
from tests.support.tiny import CONFIGS

OLD = Path(__file__).parents[1] / "golden" / "runs"
DEMO = CONFIGS / "demo"


def run_folder(to: Path, config: Path | dict, overrides=(), reward=1.0):
    """A run folder with the settings of a config and two evaluations, at 0 (of 0.0) and at 2."""
    to.mkdir(parents=True)
    if isinstance(config, Path):
        config = load_config(config, overrides).config.resolved()
    (to / "config.json").write_text(json.dumps(config))
    identity = {"run": to.name, "algorithm": config["algorithm"]["name"], "seed": config["seed"]}
    rows = [
        identity | {"iteration": k, "split": "train", "metric": "reward", "value": value, "n": 4}
        for k, value in ((0, 0.0), (2, reward))
    ]
    (to / "eval.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return read_run(to)


def sweep(folder: Path, *lines: tuple[str, list[str], float]):
    return [
        run_folder(folder / str(number), DEMO / f"{config}.toml", overrides, reward)
        for number, (config, overrides, reward) in enumerate(lines)
    ]


def test_runs_of_another_beta0_are_no_seeds(tmp_path):
    runs = sweep(
        tmp_path,
        ("image_adrpo", ["seed=0"], 1.0),
        ("image_adrpo", ["seed=1"], 3.0),
        ("image_adrpo", ["seed=0", "algorithm.beta0=4.0"], 10.0),
        ("image_adrpo", ["seed=1", "algorithm.beta0=4.0"], 20.0),
    )
    assert comparison(runs) == [
        ["", "reward (train)"],
        ["base", "0.00"],
        ["adrpo ×2, beta0 = 1.0", "2.00 ± 1.00"],
        ["adrpo ×2, beta0 = 4.0", "15.0 ± 5.0"],
    ]


def test_what_only_one_algorithm_has_is_no_difference(tmp_path):
    runs = sweep(
        tmp_path,
        ("image_raft", ["seed=0", "optimizer.learning_rate=0.001"], 1.0),
        ("image_adrpo", ["seed=0"], 2.0),
        ("image_grpo", ["seed=0"], 3.0),
        ("image_adrpo", ["seed=1"], 4.0),
    )
    assert labels(by_seed(runs)) == ["adrpo ×2", "grpo ×1", "raft ×1"]


def test_a_setting_outside_the_algorithm_is_named_on_every_line(tmp_path):
    runs = sweep(tmp_path, ("image_adrpo", [], 1.0), ("image_dpo", [], 1.0))
    assert labels(by_seed(runs)) == [
        "adrpo ×1, learning_rate = 0.001",
        "dpo ×1, learning_rate = 0.0003",
    ]


def test_keys_that_end_alike_are_written_out(tmp_path):
    runs = sweep(
        tmp_path,
        ("text_adrpo", [], 1.0),
        ("text_adrpo", ["domain.rollout.temperature=0.5", "domain.evaluation.temperature=0"], 1.0),
    )
    assert labels(by_seed(runs)) == [
        "adrpo ×1, domain.rollout.temperature = 1.0, domain.evaluation.temperature = 1.0",
        "adrpo ×1, domain.rollout.temperature = 0.5, domain.evaluation.temperature = 0.0",
    ]


def test_a_second_reward_names_the_line_that_has_it(tmp_path):
    one = load_config(DEMO / "image_adrpo.toml").config.resolved()
    less = one | {"rewards": one["rewards"][:1]}
    runs = [run_folder(tmp_path / "a", one), run_folder(tmp_path / "b", less)]
    assert labels(by_seed(runs)) == ["adrpo ×1, kind = glyph_checker", "adrpo ×1"]


def test_bases_of_two_models_are_two_lines(tmp_path):
    runs = sweep(tmp_path, ("text_adrpo", [], 1.0), ("text_rm_adrpo", [], 1.0))
    assert [line[0] for line in comparison(runs)[1:3]] == ["base demo:text", "base demo:text_rm"]


def test_labels_tell_lines_apart_and_the_order_of_runs_does_not_matter(tmp_path):
    runs = sweep(
        tmp_path,
        *((f"image_{name}", [f"seed={seed}"], 1.0) for name in ("adrpo", "dpo") for seed in (0, 1)),
        ("image_adrpo", ["algorithm.baseline=batch"], 1.0),
        ("image_adrpo", ["engine.shard=all"], 1.0),
        ("text_adrpo", [], 1.0),
    )
    first = labels(by_seed(runs))
    assert len(set(first)) == len(first) == 5
    random.Random(0).shuffle(runs)
    assert sorted(labels(by_seed(runs))) == sorted(first)


@pytest.mark.parametrize("name", sorted(path.name for path in OLD.iterdir()))
def test_a_folder_that_is_older_than_a_setting_is_a_seed_of_a_new_one(tmp_path, name):
    """Settings added since have the value that runs had before."""
    old = json.loads((OLD / name / "config.json").read_text())
    new = parse_config(old | {"seed": old["seed"] + 1}).resolved()
    for key in ("max_stalled_lives", "hang_seconds"):  # as if they had been added since
        old["limits"].pop(key)
    (group,) = by_seed([run_folder(tmp_path / "old", old), run_folder(tmp_path / "new", new)])
    assert len(group) == 2
    assert read_run(OLD / name).settings["algorithm.name"] == old["algorithm"]["name"]
    assert len(comparison([read_run(OLD / name)])) == 3


MINE = """
from adrpo_scale.algorithms.adrpo import Adrpo, AdrpoConfig
from adrpo_scale.core.settings import setting


class MineConfig(AdrpoConfig):
    name: str = setting("mine", "of the user's own")
    courage: float = setting(1.0, "how much more")


class Mine(Adrpo):
    Config = MineConfig
"""


def test_components_of_the_users_own_are_compared_here_and_where_they_cannot_be_imported(
    tmp_path, monkeypatch
):
    (tmp_path / "own_algorithm.py").write_text(MINE)
    monkeypatch.syspath_prepend(str(tmp_path))
    name = ["algorithm.name=own_algorithm:Mine"]
    lines = [
        ("image_adrpo", [*name, "seed=0"], 1.0),
        ("image_adrpo", [*name, "seed=1"], 1.0),
        ("image_adrpo", [*name, "algorithm.courage=2.0"], 1.0),
    ]
    expected = ["own_algorithm:Mine ×2, courage = 1.0", "own_algorithm:Mine ×1, courage = 2.0"]
    assert labels(by_seed(sweep(tmp_path / "runs", *lines))) == expected
    sys.modules.pop("own_algorithm")
    (tmp_path / "own_algorithm.py").unlink()
    elsewhere = [read_run(tmp_path / "runs" / str(number)) for number in range(3)]
    assert labels(by_seed(elsewhere)) == expected


def test_a_folder_of_a_benchmark_is_a_line_of_its_own(tmp_path):
    run = run_folder(tmp_path / "run", DEMO / "image_adrpo.toml")
    runs = [run]
    for name in ("gpt", "gemini"):
        row = {**run.rows[1], "run": name, "algorithm": "none", "seed": None, "iteration": 0}
        (tmp_path / name).mkdir()
        (tmp_path / name / "eval.jsonl").write_text(json.dumps(row) + "\n")
        runs.append(read_run(tmp_path / name))
    assert labels(by_seed(runs)) == ["adrpo ×1", "none ×1, run = gpt", "none ×1, run = gemini"]


def test_a_line_that_is_being_written_is_not_read(tmp_path):
    run_folder(tmp_path / "run", DEMO / "image_adrpo.toml")
    with (tmp_path / "run" / "eval.jsonl").open("a") as file:
        file.write('{"run": "ru')
    assert len(read_rows(tmp_path / "run")) == 2


def test_a_broken_config_is_named(tmp_path):
    run_folder(tmp_path / "run", DEMO / "image_adrpo.toml")
    (tmp_path / "run" / "config.json").write_text('{"seed": ')
    with pytest.raises(RunFolderError, match=r"config\.json is not JSON .*copied completely"):
        read_run(tmp_path / "run")


def test_trials_and_runs_without_evaluations_are_left_out_beside_others(tmp_path):
    run, trial, failed, foreign = (tmp_path / name for name in ("run", "trial", "failed", "papers"))
    run_folder(run, DEMO / "image_adrpo.toml")
    (failed / "lives").mkdir(parents=True)
    trial.mkdir()
    (trial / "trial.json").write_text("{}")
    foreign.mkdir()
    assert unevaluated([run, trial, failed, foreign, tmp_path / "nowhere"]) == [trial, failed]
    assert unevaluated([trial, failed]) == []  # reading them then says what is missing
