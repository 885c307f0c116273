"""Rows of given pairs: TRL's layouts, names of pictures, and rows that are none."""

from __future__ import annotations

import pyarrow
import pytest
from pyarrow import parquet

from adrpo_scale.core.errors import PromptError
from adrpo_scale.data.pairs import check_file, each_pair, files_of, folder_of, texts_of
from adrpo_scale.data.prompts import load_prompts
from tests.support.given_pairs import said, save_rows

USER, GOOD, BAD = said("user", "w1"), said("assistant", "w2"), said("assistant", "w3")
SYSTEM = said("system", "w4")
LAYOUTS = {
    "texts": {"prompt": "w1", "chosen": "w2", "rejected": "w3"},
    "messages": {"prompt": [USER], "chosen": [GOOD], "rejected": [BAD]},
    "whole conversations": {"prompt": "w1", "chosen": [USER, GOOD], "rejected": [USER, BAD]},
    "prompt inside": {"chosen": [SYSTEM, USER, GOOD], "rejected": [SYSTEM, USER, BAD]},
    "of both kinds": {"prompt": "w1", "chosen": "w2", "rejected": [BAD]},
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_layouts_of_preference_data_are_read(tmp_path, layout):
    (prompt,) = load_prompts(save_rows(tmp_path / "pairs.jsonl", [LAYOUTS[layout]]))
    assert texts_of(prompt) == ("w2", "w3")
    before = [SYSTEM, USER] if layout == "prompt inside" else [USER]
    assert prompt.conversation == before


def test_parquet_has_the_same_rows(tmp_path):
    rows = [LAYOUTS["prompt inside"]] * 2
    parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "pairs.parquet")
    prompts = load_prompts(tmp_path / "pairs.parquet")
    assert [texts_of(prompt) for prompt in prompts] == [("w2", "w3")] * 2
    assert prompts[0].conversation == [SYSTEM, USER]


def test_a_file_with_prompts_of_its_own_is_read_as_before(tmp_path):
    """An answered question beside two conversations."""
    row = {"question": "w9", "chosen": [USER, GOOD], "rejected": [USER, BAD]}
    (prompt,) = load_prompts(save_rows(tmp_path / "pairs.jsonl", [row]))
    assert prompt.text == "w9" and prompt.messages == ()


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        ({"prompt": "w1", "chosen": "w2"}, "has no `rejected`"),
        ({"prompt": "w1", "chosen": " ", "rejected": "w3"}, "a text that is not empty"),
        ({"prompt": "w1", "chosen": [USER], "rejected": [BAD]}, "the last is the assistant's"),
        ({"prompt": "w1", "chosen": [SYSTEM, GOOD], "rejected": [BAD]}, "the prompt's own"),
        ({"prompt": "w1", "chosen": 4, "rejected": "w3"}, "got 4 under `chosen`"),
    ],
)
def test_rows_that_are_no_pairs_are_named_by_file_and_line(tmp_path, row, expected):
    path = save_rows(tmp_path / "pairs.jsonl", [LAYOUTS["texts"], row, LAYOUTS["texts"], row])
    with pytest.raises(PromptError) as raised:
        each_pair(load_prompts(path), texts_of)
    text = str(raised.value)
    assert expected in text and f"{path}, line 2" in text
    assert "2 of 4 pairs are refused" in text and "line 4" in text


def test_names_of_pictures_are_relative_to_the_file(tmp_path):
    path = save_rows(tmp_path / "data" / "pairs.jsonl", [LAYOUTS["texts"]])
    (prompt,) = load_prompts(path)
    assert folder_of(str(path)) == folder_of(str(path.parent)) == path.parent
    chosen, rejected = files_of(prompt, path.parent)
    assert (chosen, rejected) == (path.parent / "w2", path.parent / "w3")
    with pytest.raises(PromptError, match=r"pairs.jsonl, line 1.*No such file"):
        check_file(prompt, "chosen", chosen)
    rejected.write_text("no picture")
    with pytest.raises(PromptError, match="no image that Pillow reads"):
        check_file(prompt, "rejected", rejected)
