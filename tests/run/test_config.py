"""Settings: every shipped config, every message, --set, where a value comes from."""

from __future__ import annotations

import json
import re

import pytest

from adrpo_scale.core.errors import ConfigError
from adrpo_scale.run.config import RunConfig
from adrpo_scale.run.config_view import differences, entries, schema
from adrpo_scale.run.load import assign, load_config, parse_config, parse_override
from tests.support.shipped import CONFIGS, RUNS, name_of

ADRPO, DPO = CONFIGS / "demo" / "image_adrpo.toml", CONFIGS / "demo" / "image_dpo.toml"
# What the configs of one task may differ in beside [algorithm]: DPO and RAFT collapse at the
# others' rate.
FIVE = ["adrpo", "dpo", "grpo", "orw_cfm_w2", "raft"]
SEVEN = sorted([*FIVE, "awm", "nft"])
OF_REFERENCE = {f"reference.{key}" for key in ("kind", "decay", "ramp", "base_coefficient")}
# family of configs → (its algorithms, what may differ beside the algorithm)
FAMILIES = {
    "demo/audio": (["adrpo", "grpo"], set()),
    "demo/dice": (["adrpo"], set()),
    "demo/image": (FIVE, {"optimizer.learning_rate"}),
    "demo/text": (["adrpo", "grpo"], set()),
    "demo/text_rm": (["adrpo", "grpo"], set()),
    "omni/avqa": (["adrpo", "grpo"], set()),
    "paper/demo/image": (["dpo"], set()),
    "paper/sd3": (["dpo"], set()),
    "paper/sd3_pairs": (["dpo"], set()),
    "qwen/qwen2_0.5b": (["adrpo", "grpo"], set()),
    "qwen/qwen3_0.6b": (["adrpo", "grpo"], set()),
    "sd3": (SEVEN, OF_REFERENCE),
}


def family(path):
    """demo/image of demo/image_adrpo.toml, sd3 of sd3/adrpo.toml."""
    name = name_of(path.with_suffix(""))
    algorithm = next(a for a in SEVEN if name.endswith(a))
    return name.removesuffix(algorithm).rstrip("_/")


def message(path=ADRPO, *overrides):
    with pytest.raises(ConfigError) as error:
        load_config(path, overrides)
    return str(error.value)


# ---- what ships ------------------------------------------------------------------------------


@pytest.mark.parametrize("path", RUNS, ids=name_of)
def test_every_shipped_config_parses_and_survives_its_resolved_form(path):
    loaded = load_config(path)
    resolved = json.loads(json.dumps(loaded.config.resolved()))
    assert parse_config(resolved) == loaded.config
    assert parse_config(resolved).digest() == loaded.config.digest()


def test_the_algorithms_of_each_family_ship():
    found = {}
    for path in RUNS:
        found.setdefault(family(path), []).append(load_config(path).config.algorithm.name)
    assert {name: sorted(algorithms) for name, algorithms in found.items()} == {
        name: algorithms for name, (algorithms, _) in FAMILIES.items()
    }


@pytest.mark.parametrize("path", RUNS, ids=name_of)
def test_the_configs_of_one_family_differ_in_the_algorithm_alone(path):
    first = min(other for other in RUNS if family(other) == family(path))
    different = {key for key, _, _ in differences(load_config(first), load_config(path))}
    other = {key for key in different if not key.startswith("algorithm.")}
    assert other <= FAMILIES[family(path)][1]


# ---- messages --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("optimizer.learnig_rate=1e-4", "unknown key; did you mean 'learning_rate'? known here:"),
        ("optimiser.updates=1", "optimiser: unknown key; did you mean 'optimizer'?"),
        ("algorithm.beta_0=1.0", "algorithm.beta_0: unknown key; did you mean 'beta0'?"),
        ("rewards.0.modle=x", "rewards.0.modle: unknown key; did you mean 'model'?"),
        ("domain.lora.rnak=4", "domain.lora.rnak: unknown key; did you mean 'rank'?"),
        ("domain.rollout.stepz=4", "domain.rollout.stepz: unknown key; did you mean 'steps'?"),
        ("algorithm.name=adrop", "algorithm.name: 'adrop' is not known; did you mean 'adrpo'?"),
        ("rewards.0.kind=clp", "rewards.0.kind: 'clp' is not known; did you mean 'clip'?"),
        ("optimizer.updates=two", "optimizer.updates = 'two': Input should be a valid integer"),
        ("iterations=1.5", "iterations = 1.5: Input should be a valid integer"),
        ("seed=true", "seed = True: Input should be a valid integer"),
        ("seed=9223372036854775808", "seed = 9223372036854775808: Input should be less than"),
        ("evaluation.seed=-1", "evaluation.seed = -1: Input should be greater than"),
        ("optimizer.learning_rate=nan", "optimizer.learning_rate = nan"),
        ("engine.shard=2", "engine.shard = 2: Input should be 1, 'node' or 'all'"),
        ("algorithm.advantage_min=1.0", "the clip range is reversed"),
        (
            "algorithm.beta0=0.0",
            "algorithm.beta0 = 0.0: the loss of a sample with advantage 0 has no lower bound",
        ),
        ("prompts.group_size=1", "prompts.group_size: group_size is 1"),
        ("domain.train=full", '[domain.lora] together with train = "full"'),
        ("domain.lora.dropout=0.1", "domain.lora: dropout = 0.1"),
        ("evaluation.weights=ema", 'evaluation.weights = "ema" without ema_decay'),
        ("rewards.0.use=evaluation", "no reward to train on"),
        ("rewards.1.name=clip", "rewards ['clip', 'clip'] share a name"),
        ("algorithm={}", "algorithm.name: is missing"),
        ("domain={name='flow'}", "domain.model: is required and was not given"),
    ],
)
def test_a_wrong_setting_is_named_with_what_is_expected(override, expected):
    assert expected in message(ADRPO, override)


def test_pairs_need_an_even_micro_batch_and_a_pool_another_model_than_the_policy():
    assert "trains on 2 rows at a time" in message(DPO, "optimizer.micro_batch=3")
    assert 'pool = 3 with rollouts = "policy"' in message(DPO, "algorithm.pool=3")
    for moves in ("reference.kind=ema", "reference.kind=snapshot"):
        moving = ("algorithm.rollouts=reference", "algorithm.pool=3", moves)
        assert "would make another pool" in message(DPO, *moving)
    for source in ("reference", "base"):
        assert load_config(DPO, [f"algorithm.rollouts={source}"]).config.algorithm.pool == 0
    assert load_config(ADRPO, ["optimizer.micro_batch=3"]).config.optimizer.micro_batch == 3


def test_every_fault_is_listed_at_once():
    text = message(ADRPO, "optimizer.updates=0", "seed=-1", "logging.pictures=3")
    assert [line.split(" ")[0].rstrip(":") for line in text.splitlines()] == [
        "seed",
        "optimizer.updates",
        "logging.pictures",
    ]


def test_files_that_cannot_be_read(tmp_path):
    broken = tmp_path / "broken.toml"
    broken.write_text("[domain\nname = 1")
    assert "is not valid TOML" in message(broken)
    assert "line 1" in message(broken)
    assert f"{tmp_path / 'nowhere.toml'} is not there" in message(tmp_path / "nowhere.toml")
    assert "cannot be read (it is no regular file)" in message(tmp_path)


# ---- --set -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a.b=3", ("a.b", 3)),
        ("a=3e-4", ("a", 3e-4)),
        ("a=true", ("a", True)),
        ("a=word", ("a", "word")),
        ("a=demo:image/x", ("a", "demo:image/x")),
        ('a="3"', ("a", "3")),
        ("a=[1, 2]", ("a", [1, 2])),
        ("a=", ("a", "")),
        ("a=b=c", ("a", "b=c")),
        (" a = 4 ", ("a", 4)),
        ("a=.0001", ("a", 0.0001)),
        ("a=-.5", ("a", -0.5)),
        ("a=1.", ("a", 1.0)),
        ("a=0.", ("a", 0.0)),
        ("a=1.e-4", ("a", 1e-4)),
        ("a=+5", ("a", 5)),
        ("a=1_000", ("a", 1000)),
        ("a=1e3", ("a", 1000)),
        ("a=007", ("a", "007")),
        ("a=1.2.3", ("a", "1.2.3")),
        ("a=.", ("a", ".")),
        ("a=True", ("a", True)),
        ("a=FALSE", ("a", False)),
        ("a=None", ("a", "null")),
        ("a=none", ("a", "none")),
        ("a=2024-01-01", ("a", "2024-01-01")),
        ("a=runs/x#2", ("a", "runs/x#2")),
        ("a=1#2", ("a", "1#2")),
        ("a=1\nb = 2", ("a", "1\nb = 2")),
        ("a=[q_proj,v_proj]", ("a", ["q_proj", "v_proj"])),
        ("a=[.5, 1.,True]", ("a", [0.5, 1.0, True])),
        ("a={kind=clip, weight=.5}", ("a", {"kind": "clip", "weight": 0.5})),
        ("a={rank = 4}", ("a", {"rank": 4})),
        ("a=[]", ("a", [])),
        ("a={clip}", ("a", "{clip}")),
    ],
)
def test_override_values_are_as_in_toml_or_as_people_write_them(text, expected):
    assert parse_override(text) == expected


def test_overrides_reach_sections_new_sections_and_list_items():
    data = {"rewards": [{"weight": 1.0}, {"weight": 2.0}]}
    assign(data, "rewards.1.weight", 3.0)
    assign(data, "limits.min_reward", 4.0)
    assert data == {"rewards": [{"weight": 1.0}, {"weight": 3.0}], "limits": {"min_reward": 4.0}}


def test_null_removes_a_section():
    full = load_config(ADRPO, ["domain.train=full", "domain.lora=null"]).config
    assert full.domain.lora is None and full.domain.train == "full"


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("seed", "expected section.key=value"),
        ("=3", "expected section.key=value"),
        ("seed.x=3", "seed is a value, not a section"),
        ("rewards.7.weight=1.0", "'7' should be a number from 0 to 1"),
        ("rewards.first.weight=1.0", "'first' should be a number from 0 to 1"),
    ],
)
def test_overrides_that_fit_nowhere(override, expected):
    assert expected in message(ADRPO, override)


def test_numbers_of_a_shell_are_the_same_run():
    given = ["optimizer.learning_rate=.0001", "iterations=1e2", "algorithm.beta0=1."]
    stated = ["optimizer.learning_rate=0.0001", "iterations=100", "algorithm.beta0=1.0"]
    assert load_config(ADRPO, given).config == load_config(ADRPO, stated).config


def test_all_faults_of_overrides_and_of_contradictions_are_named_at_once():
    text = message(ADRPO, "seed", "rewards.7.weight=1.0", "seed.x=3")
    assert len(text.splitlines()) == 3
    wrong = ["evaluation.weights=ema", "rebase_reference=true", "algorithm.beta0=0.0"]
    text = message(ADRPO, *wrong, "checkpoint.keep_best=1", "evaluation.every=0")
    for part in ("without ema_decay", "without init_from", "no lower bound", "keep_best with"):
        assert part in text
    assert len(text.splitlines()) == 4


# ---- identity, provenance, schema ------------------------------------------------------------


def test_the_digest_follows_the_settings_and_nothing_else(tmp_path):
    digest = load_config(ADRPO).config.digest()
    copy = tmp_path / "other_name.toml"
    copy.write_text("# a comment\n" + ADRPO.read_text())
    assert re.fullmatch(r"[0-9a-f]{8}", digest)
    assert load_config(copy).config.digest() == digest
    assert load_config(ADRPO, ["seed=0", "algorithm.beta0=1"]).config.digest() == digest
    changes = ["seed=1", "algorithm.beta0=0.5", "rewards.0.weight=2.0", "ema_decay=0.9"]
    assert len({load_config(ADRPO, [c]).config.digest() for c in changes} | {digest}) == 5


def test_each_value_says_where_it_comes_from():
    loaded = load_config(ADRPO, ["optimizer.updates=3", "limits.min_reward=1.0"])
    source = {entry.path: entry.source for entry in entries(loaded)}
    assert source["domain.lora.rank"] == source["rewards.1.use"] == "file"
    assert source["optimizer.updates"] == source["limits.min_reward"] == "--set"
    assert "paper" in source["optimizer.draws_per_sample"]
    assert source["engine.dtype"] == source["rewards.0.weight"] == "default"
    assert all(entry.meaning for entry in entries(loaded))
    one = {entry.path: entry.value for entry in entries(loaded)}
    assert one["optimizer.updates"] == "3" and one["domain.t5"] == "false"
    assert one["ema_decay"] == "–" and one["algorithm.name"] == '"adrpo"'


def test_differences_are_those_between_the_settings():
    found = differences(load_config(ADRPO), load_config(ADRPO, ["seed=5", "ema_decay=0.9"]))
    assert found == [("seed", "0", "5"), ("ema_decay", "–", "0.9")]


def test_the_schema_describes_every_key_and_refuses_others():
    text = json.dumps(schema())
    tree = json.loads(text)
    assert set(re.findall(r'"#/\$defs/(\w+)"', text)) == set(tree["$defs"])
    for section in [tree, *tree["$defs"].values()]:
        assert section["type"] == "object" and section["additionalProperties"] is False
        for key, value in section["properties"].items():
            assert value.get("description"), key
    assert tree["properties"].keys() == RunConfig.model_fields.keys()
