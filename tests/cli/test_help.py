"""`--help` in a terminal of 80 columns: whole paragraphs, and examples that can be copied."""

from __future__ import annotations

import pytest
import typer
from typer.testing import CliRunner

from adrpo_scale.cli.help import help_text, summary
from adrpo_scale.cli.main import app

DOCSTRING = r"""Train a model, or
    resume it. It takes
    long.

    A second
    paragraph.

    Example:
        train A
        train B \
            --set seed=1
    """


def commands(group, path=()):
    yield path, group
    for name, command in getattr(group, "commands", {}).items():
        yield from commands(command, (*path, name))


ALL = dict(commands(typer.main.get_command(app)))


def shown(path, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    answer = CliRunner().invoke(app, [*path, "--help"])
    assert answer.exit_code == 0
    return answer.output


def test_lines_become_paragraphs_and_examples_stay():
    prose, _, examples = help_text(DOCSTRING).partition("\f")
    assert prose == "Train a model, or resume it. It takes long.\n\nA second paragraph."
    assert examples == "train A\ntrain B \\\n    --set seed=1"
    assert summary(DOCSTRING) == "Train a model, or resume it"


@pytest.mark.parametrize("path", ALL, ids=" ".join)
def test_examples_can_be_copied(path, monkeypatch):
    """Each line as it is in the docstring: not folded, not filled with spaces, nor cut."""
    examples = (ALL[path].help or "").partition("\f")[2].splitlines()
    assert examples
    lines = shown(path, monkeypatch).splitlines()
    for line in examples:
        assert f"  {line}" in lines
        assert len(line) <= 78
        assert line == line.rstrip()


@pytest.mark.parametrize("path", ALL, ids=" ".join)
def test_a_paragraph_has_no_short_line_but_its_last(path, monkeypatch):
    """A line ends only where the next word would not fit."""
    prose = (ALL[path].help or "").partition("\f")[0]
    lines = [line.strip() for line in shown(path, monkeypatch).splitlines()]
    for paragraph in prose.split("\n\n"):
        begin = next(n for n, line in enumerate(lines) if line and paragraph.startswith(line))
        words, taken = paragraph, 0
        while words:
            line = lines[begin + taken]
            assert words.startswith(line)
            words, taken = words.removeprefix(line).strip(), taken + 1
            assert not words or len(f"{line} {words.split()[0]}") > 78


@pytest.mark.parametrize("path", [p for p in ALL if hasattr(ALL[p], "commands")], ids=" ".join)
def test_the_list_of_commands_has_a_sentence_each(path, monkeypatch):
    output = " ".join(shown(path, monkeypatch).replace("│", " ").split())
    for name, command in ALL[path].commands.items():
        sentence = summary(command.help)
        assert sentence and not sentence.endswith(".")
        assert f" {name} {sentence} " in output
