"""Components by name and by import path: an algorithm, rewards, a domain and an engine from outside
the package, each with its own settings section."""

from __future__ import annotations

import json

import pytest

from adrpo_scale.core.errors import ConfigError
from adrpo_scale.demo.image.rewards import GlyphChecker
from adrpo_scale.demo.text.rewards import DemoGold
from adrpo_scale.run.compare import settings_changes
from adrpo_scale.run.config import RunConfig
from adrpo_scale.run.config_view import differences, entries, schema
from adrpo_scale.run.load import LoadedConfig, load_config, overridden, parse_config
from adrpo_scale.run.registry import ALGORITHMS, DOMAINS, ENGINES, REWARDS
from tests.support import own
from tests.support.tiny import CONFIGS

OWN = "tests.support.own"
IMAGE = CONFIGS / "demo" / "image_adrpo.toml"
TABLES = (ALGORITHMS, DOMAINS, ENGINES, REWARDS)
SETS = (
    f"algorithm.name={OWN}:Steady",
    "algorithm.pull=0.25",
    f"domain.name={OWN}:Tiles",
    f"engine.name={OWN}:Plain",
    f'rewards.1={{kind="{OWN}:Red", channel=2}}',
)


def mine(*overrides: str) -> LoadedConfig:
    return load_config(IMAGE, [*SETS, *overrides])


def refusal(*overrides: str) -> str:
    with pytest.raises(ConfigError) as error:
        mine(*overrides)
    return str(error.value)


# ---- the tables ------------------------------------------------------------------------------


@pytest.mark.parametrize("table", TABLES, ids=[table.what for table in TABLES])
def test_every_entry_is_what_its_table_says(table):
    for name in table:
        component = table[name]
        assert issubclass(component, table.base)
        assert issubclass(table.config_of(name), table.section)
        default = table.config_of(name).model_fields[table.tag].default
        assert default == name


def test_the_demos_rewards_are_found_by_their_kinds():
    assert REWARDS["glyph_checker"] is GlyphChecker
    assert REWARDS["demo_gold"] is DemoGold


# ---- a user's own ----------------------------------------------------------------------------


def test_sections_of_ones_own_classes():
    config = mine().config
    assert ALGORITHMS[config.algorithm.name] is own.Steady
    assert DOMAINS[config.domain.name] is own.Tiles
    assert ENGINES[config.engine.name] is own.Plain
    assert REWARDS[config.rewards[1].kind] is own.Red
    assert type(config.algorithm) is own.SteadyConfig and config.algorithm.pull == 0.25
    assert type(config.domain) is own.TilesConfig and config.domain.tiles == 2
    assert config.rewards[1].label == "Red"


def test_ones_own_settings_are_resolved_shown_and_part_of_the_identity():
    loaded = mine()
    resolved = json.loads(json.dumps(loaded.config.resolved()))
    assert resolved["algorithm"]["pull"] == 0.25 and resolved["rewards"][1]["channel"] == 2
    assert parse_config(resolved) == loaded.config
    assert parse_config(resolved).digest() == loaded.config.digest()
    shown = {entry.path: entry for entry in entries(loaded)}
    assert shown["algorithm.pull"].source == "--set"
    assert shown["algorithm.pull"].meaning == "how hard"
    assert shown["domain.tiles"].source == "default"

    assert mine("algorithm.pull=0.5").config.digest() != loaded.config.digest()
    assert mine("engine.note=x").config.digest() == loaded.config.digest()
    assert differences(loaded, mine("domain.tiles=3")) == [("domain.tiles", "2", "3")]
    (change,) = settings_changes(resolved, overridden(loaded.config, ["algorithm.pull=0.5"]))
    assert str(change) == "algorithm.pull: 0.25 → 0.5" and change.effect == "maths"
    assert settings_changes(resolved, loaded.config) == []


def test_a_config_made_of_sections():
    config = mine().config
    fields = {name: getattr(config, name) for name in RunConfig.model_fields}
    assert RunConfig(**fields) == config


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("algorithm.pul=1.0", "algorithm.pul: unknown key; did you mean 'pull'? known here: adv"),
        ("rewards.1.chanel=1", "rewards.1.chanel: unknown key; did you mean 'channel'?"),
        ("domain.lora.rnak=1", "domain.lora.rnak: unknown key; did you mean 'rank'?"),
        ("algorithm.pull=-1.0", "algorithm.pull = -1.0: Input should be greater than or equal"),
        ("rewards.1.channel=two", "rewards.1.channel = 'two': Input should be a valid integer"),
        ("rewards.1.kind=here.is:nothing", "rewards.1.kind: 'here.is:nothing' cannot be imported"),
        (f"algorithm.name={OWN}:Stedy", "has no attribute 'Stedy'); expected module:name"),
        (f"algorithm.name={OWN}", "is not known; known: 'adrpo', 'grpo'"),
        (f"algorithm.name={OWN}:Red", "derive it from adrpo_scale.Algorithm"),
        (f"rewards.1.kind={OWN}:a_number", "the class of a reward is expected: derive it from"),
        (f"rewards.1.kind={OWN}:a_function", f'write kind = "function" and path = "{OWN}:a_func'),
        (f"algorithm.name={OWN}:a_function", "is a function, and the class of an algorithm is"),
        (f"rewards.1.kind={OWN}:NoConfig", "has no Config, and the class of its settings is"),
        (f"rewards.1.kind={OWN}:OtherConfig", "derive one from adrpo_scale.RewardConfig"),
        (f"algorithm.name={OWN}:NothingDefined", "lacks credit, loss, which every algorithm has"),
        ("algorithm.name=3", "algorithm.name: '3' is not known"),
        ("rewards.1=null", "null removes a key, and rewards.1 is an item of a list: give the list"),
        ("rewards.1=3", "rewards.1 = 3: a section with the key kind is expected"),
    ],
)
def test_a_fault_in_ones_own_is_named_with_what_is_expected(override, expected):
    assert expected in refusal(override)


def test_faults_inside_and_outside_ones_own_section_are_listed_at_once():
    lines = refusal("algorithm.pull=-1.0", "seed=-1", "rewards.1.channel=7").splitlines()
    assert [line.split(" ")[0] for line in lines] == ["seed", "algorithm.pull", "rewards.1.channel"]


def test_a_broken_module_says_what_python_said(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "broken_component.py").write_text("1 / 0\n")
    text = refusal("algorithm.name=broken_component:Mine")
    assert "'broken_component:Mine' cannot be imported (ZeroDivisionError: division by" in text


def test_a_library_that_ones_own_module_misses_is_told_from_a_missing_module(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "asks_for_more.py").write_text("import no_such_library\n")
    text = refusal("algorithm.name=asks_for_more:Mine")
    assert "asks_for_more was found, and imports no_such_library, which is not installed" in text
    assert "expected module:name" in refusal("algorithm.name=no_such_package.part:Mine")


# ---- the schema of editors -------------------------------------------------------------------


def test_the_schema_knows_the_librarys_names_and_lets_ones_own_through():
    tree = schema()
    for table, place in ((ALGORITHMS, "algorithm"), (REWARDS, "rewards")):
        field = tree["properties"][place]
        choices = field.get("items", field)["anyOf"]
        tags = [choice["allOf"][1]["properties"][table.tag]["const"] for choice in choices[:-1]]
        assert tags == list(table)
        assert choices[-1]["properties"] == {table.tag: {"type": "string", "pattern": ":"}}
