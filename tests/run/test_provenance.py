"""Which values of the shipped configs, and which defaults, the paper states or implies.

`golden/provenance.toml` and, for configs that came after it, `provenance.toml` beside this file are
the complete list: of each config, every marked `key = value` and its mark. A value that changes
under its mark, a mark that appears or disappears, and a default whose `setting(..., paper=...)`
names a place that no config names, fail here.
"""

from __future__ import annotations

import json
import re
import tomllib
from pathlib import Path

import pytest

from adrpo_scale.core.settings import Section
from adrpo_scale.run.load import load_config
from docs.marks import marked
from tests.support.shipped import EVALUATIONS, PAPER, RUNS, name_of

FILES = [Path(__file__).parents[1] / "golden", Path(__file__).parent]
GOLDEN = dict(
    row for f in FILES for row in tomllib.loads((f / "provenance.toml").read_text()).items()
)
SHIPPED = sorted({*RUNS, *EVALUATIONS, *PAPER})  # other sweeps have values of ours alone


def sections(base: type[Section] = Section) -> list[type[Section]]:
    return [one for cls in base.__subclasses__() for one in (cls, *sections(cls))]


def test_the_list_names_every_config():
    assert sorted(GOLDEN) == [name_of(path) for path in SHIPPED]


@pytest.mark.parametrize("path", SHIPPED, ids=name_of)
def test_the_marks_of_a_config_are_those_of_the_list(path):
    assert marked(path) == GOLDEN[name_of(path)]


@pytest.mark.parametrize("path", SHIPPED, ids=name_of)
def test_a_config_explains_its_marks_and_marks_nothing_of_ours(path):
    text = path.read_text()
    for line in (
        '# "# paper" marks values that arXiv 2510.18053 states',
        '"# inferred" those that',
    ):
        assert line in text
    is_released = any(mark.startswith("released") for mark in marked(path).values())
    assert is_released == ('"# released" those of the code of' in text)
    assert "our choice" not in text.replace("our own choice.", "", 1)
    for mark in marked(path).values():
        assert re.fullmatch(r"paper: .+|inferred: .{15,}|released: .+", mark), mark


def test_defaults_of_the_code_that_are_the_papers_are_those_of_the_configs():
    stated = {
        (*re.search(r"(\w+) = (.*)", row).groups(), place)
        for rows in GOLDEN.values()
        for row, mark in rows.items()
        for place in re.findall("^paper: ([^;]+)", mark)
    }
    for path in RUNS:
        load_config(path)  # so that the sections of its components are defined
    found = {
        (key, json.dumps(info.default), info.json_schema_extra["paper"])
        for section in sections()
        if section.__module__.startswith("adrpo_scale.")
        for key, info in section.model_fields.items()
        if isinstance(info.json_schema_extra, dict) and "paper" in info.json_schema_extra
    }
    assert found <= stated
    assert {(key, place) for key, _, place in found} >= {
        ("beta0", "image experiments"),
        ("draws_per_sample", "Algorithm 1"),
        ("scale", "Algorithm 1"),
        ("train", "appendix B.2"),
    }


def test_how_kl_is_estimated_is_nobodys_but_ours():
    """The paper says D_KL alone (eq. 3 and 7)."""
    assert not [row for rows in GOLDEN.values() for row in rows if "kl_estimator" in row]
