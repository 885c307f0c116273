"""Every setting, file and test that the pages name is there, and every TOML block is one that a run
accepts."""

from __future__ import annotations

import re
import tomllib

import pytest

from adrpo_scale.core.settings import leaves
from adrpo_scale.evaluation.asked import ImageModel
from adrpo_scale.evaluation.file import parse_evaluation
from adrpo_scale.run.config import RunConfig
from adrpo_scale.run.load import parse_config
from docs.generate import COMPONENTS, section_of, setting_rows
from tests.support.pages import ROOT, blocks, files_in, inline_code, name_of, pages

PACKAGE = ROOT / "adrpo_scale"
EVALUATION = {
    "benchmark": "images",
    "prompts": {"file": "a"},
    "scorers": [{"kind": "image_reward"}],
}
WHOLE = {"domain", "algorithm", "rewards", "prompts"}  # tables that make a file a run's


def known_keys() -> set[str]:
    """Dotted keys of all settings, items of lists without their number."""
    found = set()
    for name, info in RunConfig.model_fields.items():
        table = COMPONENTS[name][1] if name in COMPONENTS else None
        sections = [table.config_of(component) for component in table] if table else []
        sections += [section] if (section := section_of(info.annotation)) else []
        found |= {f"{name}.{row[0]}" for section in sections for row in setting_rows(section, "")}
        found |= set() if sections else {name}
    return found


KNOWN = known_keys()


def is_known(key: str) -> bool:
    """Whether `key` is a setting, or a section of settings."""
    plain = re.sub(r"\.\d+\b", "", key.strip())
    return plain in KNOWN or any(known.startswith(f"{plain}.") for known in KNOWN)


@pytest.mark.parametrize("page", pages(), ids=name_of)
def test_settings_that_a_page_names_are_there(page):
    sections = "|".join(name for name in RunConfig.model_fields if name not in ("rewards",))
    pattern = re.compile(rf"(({sections})\.[a-z0-9_.]+)( = .+)?")
    named = [found[1] for text in inline_code(page) if (found := pattern.fullmatch(text))]
    named = [key for key in named if not key.endswith((".py", ".json"))]
    if page != ROOT / "docs/reference/settings.md":  # whose keys are those of one section
        assert [key for key in named if not is_known(key)] == []


@pytest.mark.parametrize("page", pages(), ids=name_of)
def test_a_page_s_toml_is_accepted(page):
    for block in blocks(page):
        if block.language != "toml":
            continue
        data = tomllib.loads(block.text)
        if data.keys() >= WHOLE:
            parse_config(data)
            continue
        if "models" in data:  # an evaluation, or its models alone
            parse_evaluation(EVALUATION | data)
            continue
        if data.keys() == {"models"}:  # rows of an evaluation
            for model in data["models"].values():
                ImageModel.model_validate(model)
            continue
        if "base" in data:  # a sweep
            data = {**data.get("grid", {}), **data.get("zip", {})}
        own = {name for name in COMPONENTS if ":" in chosen(data, name)}  # the reader's component
        keys = [key for key, _ in leaves(data) if key.split(".")[0] not in own]
        assert [key for key in keys if not is_known(key)] == []


def chosen(data, name):
    """The `name` or `kind` of a section, or of the first of its list; "" without."""
    section = data.get(name, {})
    section = section[0] if isinstance(section, list) else section
    return str(section.get(COMPONENTS[name][1].tag, ""))


@pytest.mark.parametrize("page", pages(), ids=name_of)
def test_files_that_a_page_names_are_there(page):
    named = list(inline_code(page))
    missing = [file for file in files_in(named) if not (ROOT / file).exists()]
    rooms = "|".join(path.name for path in PACKAGE.iterdir() if path.is_dir())
    inner = [text for text in named if re.fullmatch(rf"({rooms})/[\w/]+\.py", text)]
    missing += [file for file in inner if not (PACKAGE / file).exists()]
    assert missing == []


def test_tests_that_the_guarantees_name_are_there():
    written = "".join(path.read_text() for path in (ROOT / "tests").rglob("test_*.py"))
    page = ROOT / "docs/internals/guarantees.md"
    named = {text for text in inline_code(page) if text.startswith("test_")}
    assert len(named) > 10
    assert [name for name in sorted(named) if f"def {name}(" not in written] == []


def test_a_setting_that_is_none_is_found():
    assert is_known("optimizer.learning_rate") and is_known("rewards.0.weight")
    assert is_known("optimizer") and is_known("seed")
    assert not is_known("optimizer.rate") and not is_known("sead")
