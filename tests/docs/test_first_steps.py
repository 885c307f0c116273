"""The first things that a reader copies from the pages run: whole configs, and a reward."""

from __future__ import annotations

import sys
import tomllib

import pytest

from adrpo_scale.run.load import load_config, parse_config
from tests.docs.test_settings import WHOLE
from tests.support.pages import ROOT, blocks, command_lines, name_of
from tests.support.tiny import SMALL, demo_trainer, records

SECONDS = ["iterations=1", "prompts.per_iteration=2", "evaluation.every=0"]


def whole_config(page):
    """The one TOML block of a page that is a whole run."""
    texts = [block.text for block in blocks(page) if block.language == "toml"]
    (whole,) = [text for text in texts if tomllib.loads(text).keys() >= WHOLE]
    return whole


@pytest.mark.parametrize(
    "page", [ROOT / "README.md", ROOT / "docs/start/your-config.md"], ids=name_of
)
def test_the_config_of_a_page_trains(page, tmp_path):
    file = tmp_path / "my_run.toml"
    file.write_text(whole_config(page))
    demo_trainer(tmp_path / "run", load_config(file, SECONDS).config).train()
    assert [line["updates"] for line in records(tmp_path / "run")] == [1]


@pytest.mark.parametrize("page", [ROOT / "README.md", ROOT / "docs/extend/reward.md"], ids=name_of)
def test_the_reward_of_a_page_trains(page, tmp_path, monkeypatch):
    (code,) = [b.text for b in blocks(page) if b.text.startswith("# my_rewards.py")]
    (tmp_path / "my_rewards.py").write_text(code)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "my_rewards", raising=False)
    shown = [words for words in command_lines(ROOT / "docs/extend/reward.md") if "--trial" in words]
    given = [shown[0][k + 1] for k, word in enumerate(shown[0]) if word == "--set"]
    config = load_config(ROOT / "configs/demo/image_adrpo.toml", [*SMALL, *given]).config
    demo_trainer(tmp_path / "run", config).train()
    (line,) = records(tmp_path / "run")
    assert 0 < line["reward"] < 255


def test_sections_of_the_guides_join_into_runs():
    """Each fragment of a guide fits into the config that it is about."""
    for page, config in (("images", "sd3/adrpo"), ("language", "qwen/qwen3_0.6b_adrpo")):
        data = tomllib.loads((ROOT / f"configs/{config}.toml").read_text())
        (fragment,) = [b for b in blocks(ROOT / f"docs/guide/{page}.md") if b.language == "toml"]
        given = tomllib.loads(fragment.text)
        if "held_out_share" in given.get("prompts", {}):
            data["prompts"].pop("held_out", None)
        parse_config({**data, **{k: merged(data.get(k), v) for k, v in given.items()}})


def merged(old, new):
    return {**old, **new} if isinstance(old, dict) else new
