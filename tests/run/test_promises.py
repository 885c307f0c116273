"""A run of before is the same run: settings added since, keys renamed since, and the inventory of
what runs have had from the beginning.

`golden/settings.json` holds the settings and defaults of commit e257290, by component. It is never
written again: a setting that is not in it declares the value that runs had before it.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

import pytest
from pydantic_core import PydanticUndefined

from adrpo_scale.algorithms.adrpo import Adrpo, AdrpoConfig
from adrpo_scale.core.errors import ConfigError
from adrpo_scale.core.settings import Section, names_of, notes_of, setting
from adrpo_scale.run.compare import settings_changes
from adrpo_scale.run.config import RunConfig
from adrpo_scale.run.load import LoadedConfig, load_config, overridden, parse_config
from adrpo_scale.run.registry import ALGORITHMS, DOMAINS, ENGINES, REWARDS
from adrpo_scale.run.sections import current_key
from tests.support.tiny import CONFIGS

IMAGE = CONFIGS / "demo" / "image_adrpo.toml"
GOLDEN = Path(__file__).parents[1] / "golden" / "settings.json"

# ---- an algorithm, before and now ----------------------------------------------------------------


class FirstCoolingConfig(Section):
    rate: float = setting(0.5, "how fast", ge=0)


class FirstConfig(AdrpoConfig):
    gain: float = setting(1.0, "how much")
    cooling: FirstCoolingConfig = setting(FirstCoolingConfig(), "how it cools")


class First(Adrpo):
    Config: ClassVar[type[FirstConfig]] = FirstConfig


class DecayConfig(Section):
    speed: float = setting(0.5, "how fast", ge=0, formerly=("rate",))
    floor: float | None = setting(None, "where it ends", before=None)


class LaterConfig(AdrpoConfig):
    strength: float = setting(1.0, "how much", formerly=("gain", "push"))
    decay: DecayConfig = setting(DecayConfig(), "how it cools", formerly=("cooling",))
    momentum: float = setting(0.0, "added later", before=0.0)


class Later(Adrpo):
    Config: ClassVar[type[LaterConfig]] = LaterConfig


Mine: type[Adrpo] = First  # what the config names; the package is upgraded by `upgrade`
NAME = f"algorithm.name={__name__}:Mine"


@pytest.fixture
def upgrade(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Puts the later class in the place of the first."""
    return lambda: monkeypatch.setattr(f"{__name__}.Mine", Later)


def written(folder: Path, *lines: str) -> Path:
    """The image demo's config with an [algorithm] of ours."""
    head, _, rest = IMAGE.read_text().partition("[algorithm]")
    after = rest[rest.index("\n[") :]
    path = folder / "mine.toml"
    section = "\n".join(["[algorithm]", f'name = "{__name__}:Mine"', *lines])
    path.write_text(f"{head}{section}\n{after}")
    return path


OLD = ("gain = 2.0", "cooling = { rate = 0.25 }")


def loaded(path: Path, *overrides: str) -> tuple[LoadedConfig, list[str]]:
    """The config, and what was warned of."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        config = load_config(path, overrides)
    return config, [str(warning.message) for warning in caught]


def test_the_same_file_is_the_same_run_after_renames_and_additions(tmp_path, upgrade):
    path = written(tmp_path, *OLD)
    before, said_before = loaded(path)
    upgrade()
    now, said = loaded(path)
    assert now.config.algorithm.strength == 2.0 and now.config.algorithm.decay.speed == 0.25
    assert now.config.digest() == before.config.digest()
    assert now.config.identity() == before.config.identity()
    assert "algorithm.gain" in now.config.identity()
    assert settings_changes(before.config.resolved(), now.config) == []
    assert said_before == []
    assert said == [
        "keys by old names, which still mean the same: algorithm.gain is now algorithm.strength, "
        "algorithm.cooling is now algorithm.decay, algorithm.decay.rate is now "
        "algorithm.decay.speed"
    ]


def test_the_same_command_is_the_same_run_whichever_names_the_file_has(tmp_path, upgrade):
    """`--set` with an old key over a file that has today's."""
    path = written(tmp_path)
    sets = ["algorithm.gain=3.0", "algorithm.cooling.rate=0.125"]
    before, _ = loaded(path, *sets)
    upgrade()
    for lines in ((), ("strength = 1.5", "decay = { speed = 0.3 }"), OLD):
        now, said = loaded(written(tmp_path, *lines), *sets)
        assert now.config.digest() == before.config.digest()
        assert len(said) == 1 and "algorithm.gain is now algorithm.strength" in said[0]
        assert now.given["algorithm.strength"] == now.given["algorithm.decay.speed"] == "--set"
    assert loaded(path, "algorithm.push=3.0")[0].config.algorithm.strength == 3.0
    with pytest.warns(UserWarning, match=r"algorithm.cooling.rate is now algorithm.decay.speed"):
        further = overridden(before_as_now(before), ["algorithm.cooling.rate=0.5"])
    assert further.algorithm.decay.speed == 0.5


def before_as_now(before: LoadedConfig) -> RunConfig:
    """A checkpoint's settings as the package reads them today: without a warning."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        return parse_config(json.loads(json.dumps(before.config.resolved())))


def test_other_values_of_what_is_new_are_another_run(tmp_path, upgrade):
    path = written(tmp_path, *OLD)
    before, _ = loaded(path)
    upgrade()
    assert before_as_now(before).digest() == before.config.digest()
    for override, change in {
        "algorithm.momentum=0.9": "algorithm.momentum: 0.0 → 0.9",
        "algorithm.decay.floor=0.1": "algorithm.decay.floor: null → 0.1",
        "algorithm.strength=3.0": "algorithm.strength: 2.0 → 3.0",
    }.items():
        now, _ = loaded(path, override)
        assert now.config.digest() != before.config.digest()
        (found,) = settings_changes(before.config.resolved(), now.config)
        assert str(found) == change and found.effect == "maths"
    allowed = current_key("algorithm.cooling.rate", now.config.resolved())
    assert allowed == "algorithm.decay.speed"


@pytest.mark.parametrize(
    "lines", [("gain = 1.0", "strength = 1.0"), ("gain = 1.0", "push = 1.0")], ids=str
)
def test_a_key_by_two_of_its_names_is_refused(tmp_path, upgrade, lines):
    upgrade()
    with pytest.raises(
        ConfigError, match=r"whose name is strength now, .* give algorithm.strength"
    ):
        load_config(written(tmp_path, *lines))


def test_a_later_default_is_the_value_of_before():
    for effect in (None, "maths", "content"):
        with pytest.raises(TypeError, match=r"default 1.0 with before = 0.0: a run of before"):
            setting(1.0, "added later", before=0.0, effect=effect)
    assert setting(1.0, "in no identity", before=0.0, effect="rounding").default == 1.0


# ---- the inventory ------------------------------------------------------------------------------

TABLES = (DOMAINS, ALGORITHMS, REWARDS, ENGINES)
Found = tuple[str, Any, bool]  # key by its first name, its default, whether it declares a before


def components() -> dict[str, type[Section]]:
    own = {f"{table.what}.{name}": table.config_of(name) for table in TABLES for name in table}
    return {"run": RunConfig, **own}


def settings_of(
    model: type[Section], value: Section | None = None, prefix: str = ""
) -> list[Found]:
    """Of a section and of those inside it. value: the section that is the default, if one is."""
    found: list[Found] = []
    for name, info in model.model_fields.items():
        if model is RunConfig and name in ("domain", "algorithm", "rewards", "engine"):
            continue  # of the components
        default = info.default if value is None else getattr(value, name)
        default = notes_of(info).get("before", default)  # where new runs have another one
        key = prefix + names_of(name, info)[0]
        inner = next(sections_in(info.annotation), None)
        if inner is not None:
            of = default if isinstance(default, Section) else None
            found += settings_of(inner, of, f"{key}.")
        else:
            default = "REQUIRED" if default is PydanticUndefined else default
            found.append((key, default, "before" in notes_of(info)))
    return found


def sections_in(annotation: Any) -> Iterator[type[Section]]:
    if isinstance(annotation, type) and issubclass(annotation, Section):
        yield annotation
    for part in getattr(annotation, "__args__", ()):
        yield from sections_in(part)


TODAY = {name: settings_of(model) for name, model in components().items()}
BEFORE: dict[str, dict[str, Any]] = json.loads(GOLDEN.read_text())


@pytest.mark.parametrize("component", BEFORE)
def test_every_setting_of_before_is_there_with_the_same_default(component):
    today = {key: default for key, default, _ in TODAY[component]}
    assert {key: today.get(key, "(gone)") for key in BEFORE[component]} == BEFORE[component]


@pytest.mark.parametrize("component", BEFORE)
def test_every_setting_added_since_declares_the_value_of_before(component):
    undeclared = [
        key
        for key, _, is_declared in TODAY[component]
        if key not in BEFORE[component] and not is_declared
    ]
    assert undeclared == []
