"""A sweep's file: which element has which settings, what is refused, and the record of it."""

from __future__ import annotations

import json
import subprocess
import sys
import threading

import pytest

from adrpo_scale.algorithms.regulariser import clip_limits
from adrpo_scale.core.errors import ConfigError, RunFolderError
from adrpo_scale.run.load import load_config, parse_override
from adrpo_scale.run.sweep import family, read_sweep, toml
from adrpo_scale.run.sweep_record import error_of, folder_of, forget_error, note_error, read_record
from adrpo_scale.run.sweep_runs import begun, checked, element_run, runs_of
from tests.support.shipped import CONFIGS, SWEEPS, name_of

DEMO = CONFIGS / "demo"
BASE = f'base = "{DEMO}/image_adrpo.toml"\n'
GRID = BASE + "[grid]\nseed = [0, 1]\nalgorithm.beta0 = [0.5, 2]\n"


@pytest.fixture(autouse=True)
def runs(tmp_path, monkeypatch):
    monkeypatch.setenv("ADRPO_RUNS", str(tmp_path / "runs"))
    return tmp_path / "runs"


def sweep_of(folder, text, name="mine"):
    (folder / f"{name}.toml").write_text(text)
    return read_sweep(folder / f"{name}.toml")


# ---- elements ----------------------------------------------------------------------------------


def test_the_first_axis_of_the_file_changes_slowest(tmp_path):
    text = BASE + (
        '[zip]\n"optimizer.learning_rate" = [1e-4, 3e-5]\niterations = [500, 1500]\n'
        "[grid]\nseed = [0, 1]\nengine.shard = [1]\n"
    )
    found = sweep_of(tmp_path, text)
    assert [dict(one.settings) for one in found.elements] == [
        {"optimizer.learning_rate": r, "iterations": i, "seed": s, "engine.shard": 1}
        for r, i in ((1e-4, 500), (3e-5, 1500))
        for s in (0, 1)
    ]
    assert str(found.elements[3]) == "#3 learning_rate=3e-05 iterations=1500 seed=1"
    (run,) = [run for run in runs_of(found) if run.element.number == 3]
    config = run.loaded.config
    assert (config.optimizer.learning_rate, config.iterations, config.seed) == (3e-5, 1500, 1)
    assert config.engine.shard == 1


def test_side_by_side_a_list_may_say_a_thing_twice(tmp_path):
    text = BASE + "[zip]\nseed = [0, 1, 2]\niterations = [9, 9, 5]\n"
    found = sweep_of(tmp_path, text)
    assert [one.label for one in found.elements][1:] == [
        "seed=1 iterations=9",
        "seed=2 iterations=5",
    ]
    with pytest.raises(ConfigError, match="#0 and #1 are one run"):
        runs_of(sweep_of(tmp_path, BASE + "[zip]\nseed = [1, 1]\niterations = [9, 9]\n"))


def test_several_configs_are_the_slowest_axis(tmp_path):
    text = f'base = ["{DEMO}/image_adrpo.toml", "{DEMO}/image_grpo.toml"]\n[grid]\nseed = [4, 5]\n'
    found = sweep_of(tmp_path, text)
    assert [str(one) for one in found.elements] == [
        "#0 demo_image_adrpo seed=4",
        "#1 demo_image_adrpo seed=5",
        "#2 demo_image_grpo seed=4",
        "#3 demo_image_grpo seed=5",
    ]
    assert [run.loaded.config.algorithm.name for run in runs_of(found)] == ["adrpo"] * 2 + [
        "grpo"
    ] * 2


def test_a_folder_has_family_keys_that_differ_and_the_runs_hash(tmp_path, runs):
    found = runs_of(sweep_of(tmp_path, GRID))
    config = load_config(DEMO / "image_adrpo.toml", ["seed=1", "algorithm.beta0=0.5"]).config
    assert found[2].folder == runs / f"demo_image_adrpo,seed=1,beta0=0.5-{config.digest()}"
    assert len({run.folder for run in found}) == 4


def test_keys_with_one_last_part_keep_all_of_their_path(tmp_path):
    keys = '"algorithm.scale" = ["none", "group_std"]\n"domain.lora" = [{rank = 4, alpha = 4}]\n'
    keys += '"domain.rollout.steps" = [4, 8]\n"domain.evaluation.steps" = [4, 8]\n'
    found = sweep_of(tmp_path, BASE + "[grid]\n" + keys)
    last = "#7 scale=group_std domain.rollout.steps=8 domain.evaluation.steps=8"
    assert str(found.elements[7]) == last
    name = runs_of(found)[7].folder.name
    start = "demo_image_adrpo,scale=group_std,domain.rollout.steps=8,domain.evaluation.steps=8-"
    assert name.startswith(start)


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("configs/sd3/adrpo.toml", "sd3_adrpo"),
        ("/home/me/adrpo/configs/demo/image_dpo.toml", "demo_image_dpo"),
        ("configs/qwen/qwen3_0.6b_adrpo.toml", "qwen3_0.6b_adrpo"),
        ("my_run.toml", "my_run"),
        ("/data/mine/run.toml", "run"),
    ],
)
def test_a_family_is_the_configs_path(path, expected):
    assert family(path) == expected


@pytest.mark.parametrize(
    "value", [True, 3, 0.5, 1e-5, "a b", 'a "b"', [1, 2.5, "x"], {"name": "adrpo", "beta0": 1.0}]
)
def test_a_value_reaches_the_config_as_it_is_in_the_file(value):
    assert parse_override(f"key={toml(value)}") == ("key", value)


@pytest.mark.parametrize("path", SWEEPS, ids=name_of)
def test_every_shipped_sweep_has_runs(path, monkeypatch):
    monkeypatch.chdir(CONFIGS.parent)
    found = runs_of(read_sweep(path))
    assert len(found) == len({run.folder for run in found}) > 1


def test_table_3_is_a_grid_of_clips_in_units_of_beta0(monkeypatch):
    monkeypatch.chdir(CONFIGS.parent)
    found = runs_of(read_sweep(CONFIGS / "sweeps" / "clip_range.toml"))
    algorithms = [run.loaded.config.algorithm for run in found]
    limits = [clip_limits(a.advantage_clip, a.beta0) for a in algorithms]
    assert limits == [(-0.02, 0.02), (-0.04, 0.04), (-0.08, 0.08)]


# ---- faults ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("[grid]\nseed = [0]\n", "base: is required and was not given"),
        ("base = 3\n[grid]\nseed = [0]\n", "base = 3: a config's path, or a list of them"),
        ('base = ["a.toml", "a.toml"]\n', "a config is there twice"),
        (BASE, "nothing differs; give [grid]"),
        (BASE + "[grids]\nseed = [0]\n", "grids: unknown key; did you mean 'grid'?"),
        (BASE + "grid = 3\n", "grid = 3: a table is expected, [grid]"),
        (BASE + "[grid]\nseed = 3\n", "grid.seed = 3: a list of values is expected, e.g. [1, 2]"),
        (BASE + "[grid]\nseed = []\n", "grid.seed = []: a list of values is expected"),
        (BASE + "[grid]\nseed = [1, 2, 1]\n", "grid.seed: 1 is there twice"),
        (BASE + "[grid]\nseed = [2024-01-01]\n", "grid.seed: a date is no setting"),
        (BASE + "[zip]\nseed = [1, 2]\niterations = [1]\n", "seed has 2, iterations has 1"),
        (BASE + "[grid]\nseed = [1]\n[zip]\nseed = [2]\n", "seed is in [grid] and in [zip]"),
        (BASE + "[grid]\n" + "\n".join(f"k{n} = [1, 2]" for n in range(14)), "16,384 elements"),
    ],
)
def test_a_fault_is_named_with_what_is_expected(tmp_path, text, expected):
    with pytest.raises(ConfigError) as error:
        sweep_of(tmp_path, text)
    assert expected in str(error.value)


def test_a_setting_that_the_config_refuses_names_the_element(tmp_path):
    text = BASE + '[grid]\nseed = [0, 1]\n"algorithm.bet0" = [1.0]\n'
    with pytest.raises(ConfigError, match=r"element #0 seed=0: .*did you mean 'beta0'\?") as error:
        runs_of(sweep_of(tmp_path, text))
    assert str(error.value).count("did you mean") == 1  # once for both
    with pytest.raises(ConfigError, match=r"elements #0 beta0=1 and #1 beta0=1.0 are one run"):
        runs_of(sweep_of(tmp_path, BASE + '[grid]\n"algorithm.beta0" = [1, 1.0]\n'))


def test_elements_and_blocks_that_are_not_there(tmp_path):
    found = sweep_of(tmp_path, BASE + "[grid]\nseed = [0, 1, 2, 3, 4]\n")
    assert [one.number for one in found.block(1, 3)] == [3, 4]
    with pytest.raises(ConfigError, match=r"has the elements 0 to 4; on Slurm, --array=0-4"):
        found.element(5)
    with pytest.raises(ConfigError, match=r"5 elements, 2 blocks of 3; on Slurm, --array=0-1"):
        found.block(2, 3)


# ---- the record --------------------------------------------------------------------------------


def test_a_changed_grid_is_refused_with_the_difference(tmp_path):
    first = begun(sweep_of(tmp_path, GRID))
    assert [run.folder for run in begun(sweep_of(tmp_path, GRID))] == [run.folder for run in first]
    longer = sweep_of(tmp_path, GRID.replace("[0, 1]", "[0, 1, 2]"))
    for look in (read_record, begun, checked, lambda sweep: element_run(sweep, 0, True)):
        with pytest.raises(ConfigError) as error:
            look(longer)
        text = str(error.value)
        assert f"#4 is new: {DEMO}/image_adrpo.toml seed=2 algorithm.beta0=0.5" in text
        assert "#0" not in text and "give the file another name" in text
    with pytest.raises(ConfigError, match=r"#3: .* seed=1 algorithm.beta0=2 → .*beta0=3"):
        read_record(sweep_of(tmp_path, GRID.replace("2]", "3]")))
    with pytest.raises(ConfigError, match="#2 is gone: "):
        read_record(sweep_of(tmp_path, GRID.replace("[0, 1]", "[0]")))
    again = begun(sweep_of(tmp_path, GRID.replace("[0, 1]", "[0, 1, 2]"), "longer"))
    assert [run.folder for run in again[:4]] == [run.folder for run in first]  # done already


def test_a_changed_config_is_refused_with_its_keys(tmp_path):
    base = tmp_path / "base.toml"
    base.write_text((DEMO / "image_adrpo.toml").read_text())
    sweep = sweep_of(tmp_path, f'base = "{base}"\n[grid]\nseed = [0, 1]\n')
    begun(sweep)
    base.write_text(base.read_text().replace("iterations = 60", "iterations = 90"))
    checked(sweep)  # a longer run is the same run
    base.write_text(base.read_text().replace("learning_rate = 1e-3", "learning_rate = 2e-3"))
    for look in (begun, checked, lambda sweep: element_run(sweep, 1, False)):
        with pytest.raises(ConfigError, match=r"optimizer.learning_rate: 0.001 → 0.002"):
            look(sweep)


def test_starts_at_the_same_time_keep_one_record(tmp_path):
    sweep = sweep_of(tmp_path, GRID)
    found, threads = [], []
    for _ in range(4):
        threads.append(threading.Thread(target=lambda: found.append(begun(sweep))))
        threads[-1].start()
    for thread in threads:
        thread.join()
    assert len({tuple(run.folder for run in runs) for runs in found}) == 1 and len(found) == 4
    assert [path.name for path in folder_of(sweep).iterdir()] == ["elements.json"]


def test_a_record_that_cannot_be_read_is_an_error(tmp_path):
    sweep = sweep_of(tmp_path, GRID)
    begun(sweep)
    (folder_of(sweep) / "elements.json").write_text(json.dumps({"elements": [{}]}))
    with pytest.raises(RunFolderError, match="restore it, or remove it"):
        read_record(sweep)


def test_the_error_of_a_start_is_kept_until_the_next(tmp_path):
    sweep = sweep_of(tmp_path, GRID)
    one = sweep.elements[2]
    assert error_of(sweep, one) is None
    note_error(sweep, one, 2, "no model")
    assert error_of(sweep, one)[1:] == (2, "no model")
    forget_error(sweep, one)
    assert error_of(sweep, one) is None


def test_a_sweeps_file_and_state_are_read_without_torch():
    modules = "adrpo_scale.cluster.sweep.view, adrpo_scale.run.sweep, adrpo_scale.run.sweep_record"
    program = f"import sys, {modules}; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.stdout.strip() == "False", done.stderr
