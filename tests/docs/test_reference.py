"""The reference is made from the code: nothing of the code is missing in it, and Sphinx builds it
with every other page without a warning."""

from __future__ import annotations

import os
import re
import subprocess
import sys

import pytest
import typer.main

from adrpo_scale.cli.main import app
from adrpo_scale.core import errors
from adrpo_scale.core.settings import walk
from adrpo_scale.run.load import load_config
from docs import generate
from tests.support.pages import ROOT, pages
from tests.support.shipped import RUNS, name_of
from tests.test_layers import FOLDERS


def leaves_of(command, words=()):
    for name, inner in getattr(command, "commands", {}).items():
        yield from leaves_of(inner, (*words, name))
    if not hasattr(command, "commands"):
        yield words, command


def test_every_command_and_option_is_there():
    page = generate.command_line()
    commands = list(leaves_of(typer.main.get_command(app)))
    assert len(commands) > 10
    for words, command in commands:
        _, heading, rest = page.partition(f"## adrpo-scale {' '.join(words)}\n")
        assert heading
        section = rest.partition("\n## ")[0]
        for parameter in command.params:
            shown = parameter.opts[0]
            shown = shown if shown.startswith("-") else shown.upper()
            assert f"`{shown}" in section
            assert generate.escaped(parameter.help) in section


@pytest.mark.parametrize("path", RUNS, ids=name_of)
def test_every_setting_of_a_shipped_config_is_there(path):
    page = generate.settings()
    for leaf in walk(load_config(path).config):
        section, _, inner = leaf.path.partition(".")
        inner = inner.partition(".")[2] if section == "rewards" else inner
        shown = inner or section
        if f"[`{shown}." in page:  # a section that this config does without
            continue
        assert f"[`{shown}`]" in page
        assert generate.escaped(leaf.info.description or "") in page


def test_every_registered_component_has_its_table():
    page = generate.settings()
    for _, table in generate.COMPONENTS.values():
        for name in table:
            _, heading, rest = page.partition(f'### {table.tag} = "{name}"\n')
            assert heading
            section = rest.partition("\n### ")[0]
            for field in table.config_of(name).model_fields:
                assert f"[`{field}" in section


def test_every_error_is_there():
    def subclasses(error):
        for inner in error.__subclasses__():
            yield from (inner, *subclasses(inner))

    page = generate.errors()
    found = [e for e in subclasses(errors.AdrpoError) if e.__module__ == errors.__name__]
    assert len(found) > 10
    assert [error.__name__ for error in found if f"`{error.__name__}`" not in page] == []


def test_every_example_stands_on_a_page():
    shown = "".join(page.read_text() for page in pages())
    examples = sorted((ROOT / "docs/examples").glob("*.py"))
    assert len(examples) >= 7
    assert [
        e.name for e in examples if f"{{literalinclude}} ../examples/{e.name}\n" not in shown
    ] == []


def test_the_layers_are_shown_in_their_order():
    page = (ROOT / "docs/internals/layers.md").read_text()
    shown = re.findall(r"^\| `(\w+)/` \|", page.partition("Beside the package")[0], re.M)
    assert tuple(shown) == FOLDERS


def test_every_module_is_there():
    page, package = generate.PAGES["modules.md"](), ROOT / "adrpo_scale"
    for file in package.rglob("*.py"):
        if file.name != "__init__.py" and file.parent != package:
            folder, _, rest = file.relative_to(package).as_posix().partition("/")
            section = page.partition(f"\n## {folder}\n")[2].partition("\n## ")[0]
            assert re.search(rf"^`{re.escape(rest)}`\n: \S", section, re.M), file


def test_the_pages_build_without_a_warning(tmp_path):
    command = [sys.executable, "-m", "sphinx", "--fail-on-warning", "--keep-going", "--quiet"]
    command += ["-d", str(tmp_path / "cache"), str(ROOT / "docs"), str(tmp_path / "html")]
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    page = (tmp_path / "html/reference/settings.html").read_text()
    assert 'id="setting-optimizer-learning-rate"' in page
