"""Files that other tools read: citation, hooks, issue forms."""

from __future__ import annotations

import tomllib

import pytest
import yaml

from adrpo_scale.run.starts import previous_start
from tests.support.pages import ROOT

FORMS = sorted((ROOT / ".github/ISSUE_TEMPLATE").glob("*.yml"))


def read(name):
    return yaml.safe_load((ROOT / name).read_text())


def test_the_citation_is_of_this_version():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    citation = read("CITATION.cff")
    assert citation["version"] == project["version"]
    assert citation["license"] == project["license"]
    assert citation["references"][0]["url"].endswith("2510.18053")


def test_hooks_have_the_versions_of_the_constraints():
    pins = set((ROOT / "constraints.txt").read_text().split())
    hooks = [hook for repo in read(".pre-commit-config.yaml")["repos"] for hook in repo["hooks"]]
    wanted = {pin for hook in hooks for pin in hook.get("additional_dependencies", [])}
    assert {pin for pin in wanted if not pin.startswith("pre-commit-hooks")} <= pins
    assert {hook["id"] for hook in hooks} >= {"ruff-check", "mypy", "codespell", "large-files"}


def test_constraints_are_names_and_versions_alone_in_order():
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    assert all(line.count("==") == 1 and " " not in line and "@" not in line for line in lines)
    names = [line.partition("==")[0].lower().replace("_", "-") for line in lines]
    assert len(set(names)) == len(names)


@pytest.mark.parametrize("form", [f for f in FORMS if f.stem != "config"], ids=lambda f: f.stem)
def test_a_form_has_what_the_tracker_asks_for(form):
    content = yaml.safe_load(form.read_text())
    assert {"name", "description", "body"} <= content.keys()
    for field in content["body"]:
        assert field["type"] in ("textarea", "checkboxes", "input", "dropdown", "markdown")
        assert field["attributes"]["label"]


@pytest.mark.parametrize("name", ["bug", "results"])
def test_reports_ask_for_the_record_of_starts(name):
    fields = {f["id"]: f for f in read(f".github/ISSUE_TEMPLATE/{name}.yml")["body"]}
    assert "lives/*.json" in fields["starts"]["attributes"]["description"]
    assert fields["starts"]["validations"]["required"]
    assert previous_start(ROOT / "tests/golden/runs/image")  # where the form says it is
