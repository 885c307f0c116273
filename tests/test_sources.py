"""What no source of the package may hold, because it would be a claim and no check."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "adrpo_scale"
FILES = sorted(PACKAGE.rglob("*.py"))


def nodes(path):
    return ast.walk(ast.parse(path.read_text()))


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_nothing_is_checked_by_what_python_leaves_out_when_it_optimises(path):
    asserted = [node.lineno for node in nodes(path) if isinstance(node, ast.Assert)]
    debug = [n.lineno for n in nodes(path) if isinstance(n, ast.Name) and n.id == "__debug__"]
    assert asserted == debug == []
