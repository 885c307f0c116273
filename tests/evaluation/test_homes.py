"""Paths in tables and bundles: `~` in place of the home folder, and nothing else changed."""

from __future__ import annotations

import pytest

from adrpo_scale.evaluation.report.homes import without_home

SAID = {
    "/home/né": "~",
    "/home/né/models/a": "~/models/a",
    "file:///home/né/a": "file://~/a",
    "python '/home/né/x.py' --to=/home/né": "python '~/x.py' --to=~",
    "/home/néo/a": "/home/néo/a",
    "/home/né-2/a": "/home/né-2/a",
    "/mnt/home/né/a": "/mnt/home/né/a",
    "/home/n\\u00e9/a": "~/a",  # in the text of a JSON file
}


@pytest.mark.parametrize("text", SAID)
def test_the_home_folder_is_a_tilde_where_it_is_a_path_s_beginning(text, monkeypatch):
    monkeypatch.setenv("HOME", "/home/né/")
    assert without_home(text) == SAID[text]
    assert without_home({"a": [text, 1, None]}) == {"a": [SAID[text], 1, None]}


@pytest.mark.parametrize("home", ["/", "", "relative"])
def test_a_home_that_means_nothing_is_left_alone(home, monkeypatch):
    monkeypatch.setenv("HOME", home)
    assert without_home("/data/relative/x") == "/data/relative/x"
