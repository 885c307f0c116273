"""What a file of prompts is refused for: the place, the value, the remedy."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from adrpo_scale.core.errors import ConfigError, PromptError
from adrpo_scale.core.types import Prompt
from adrpo_scale.data.prompts import (
    PromptsConfig,
    build_prompts,
    load_prompts,
    split,
)
from tests.support.prompt_files import numbered, write

# ---- errors --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "content", "parts"),
    [
        ("a.txt", b"", ["holds no prompt", "at least one"]),
        ("a.txt", b" \n\r\n", ["holds no prompt"]),
        ("a.jsonl", b"\n", ["holds no prompt"]),
        ("a.json", b"", ["holds no prompt"]),
        ("a.json", b"[]", ["holds no prompt"]),
        ("a.csv", b"Prompts,Category\n", ["holds no prompt"]),
        ("a.txt", b"fox\nha\0re", ["line 2", "binary or UTF-16", "UTF-8"]),
        ("a.txt", "fox".encode("utf-16"), ["line 1", "UTF-16"]),
        ("a.txt", b"fox\nhare\ncaf\xe9\n", ["line 3", r"b'\xe9'", "UTF-8 text"]),
        ("a.xlsx", b"fox", ["'.xlsx'", ".jsonl", "set format"]),
        ("a", b"fox", ["suffix ''", ".txt"]),
        ("a.csv", b"a fox,Colors\n", ["line 1", "'a fox,Colors'", "header", "'txt'"]),
        ("a.csv", b"Prompts,Category\nfox,C\n,Colors\n", ["line 3", "got ''", "non-empty string"]),
        ("a.csv", b"Prompts,Category\na fox, a hat,C\n", ["line 2", "2 fields", "double quotes"]),
        ("a.csv", b'Prompts,Category\n"a fox,C\nhare,D\n', ["line 3", "close every quoted"]),
        ("a.csv", b'Prompts,Category\n"a "big" fox",C\n', ["line 2", "twice"]),
        ("a.tsv", b"Text\tCategory\nfox\tC\n", ["line 1", "Prompt\\tCategory"]),
        ("a.tsv", b"Prompt\tCategory\nfox\tC\n \tD\n", ["line 3", "got ''", "add the prompt"]),
        ("a.jsonl", b'{"prompt": "fox"}\n\n{"prompt": \n', ["line 3", "JSON object", "column"]),
        ("a.jsonl", b'{"prompt": "fox"}\n["fox"]\n', ["line 2", "['fox']", "imagereward"]),
        ("a.jsonl", b'{"prompt": "fox"}\n{"text": "fox"}\n', ["line 2", "'text'", "prompt"]),
        ("a.jsonl", b'{"prompt": 3}\n', ["line 1", "got 3", "non-empty string"]),
        ("a.jsonl", b'{"tag": "x", "include": 3, "prompt": "f"}', ["line 1", "'include'", "got 3"]),
        (
            "a.jsonl",
            b'{"tag": "x", "include": [{"class": "fox"}], "prompt": "f"}',
            ["line 1", "count: int", "format = 'jsonl'"],
        ),
        ("a.jsonl", b'{"tag": 1, "include": [], "prompt": "f"}', ["line 1", "'tag'"]),
        ("a.json", b'[{"prompt": "fox"},\n{"prompt"}]', ["line 2", "column"]),
        ("a.json", b'{"prompt": "fox"}\n{"prompt": "hare"}', ["line 2", "'jsonl'"]),
        ("a.json", b'{"prompt": "fox"}', ["line 1", "a JSON list"]),
        ("a.json", b'[{"prompt": "fox"}, "hare"]', ["entry 2", "'hare'"]),
        ("a.json", b'[{"prompt": "fox"}, {"id": 1}]', ["entry 2", "{'id': 1}"]),
    ],
)
def test_errors_say_where_what_and_what_to_do(
    tmp_path: Path, name: str, content: bytes, parts: list[str]
) -> None:
    path = write(tmp_path, name, content)
    with pytest.raises(PromptError) as caught:
        load_prompts(path)
    message = str(caught.value)
    assert message.startswith(str(path))
    assert [part for part in parts if part not in message] == []


def test_a_long_value_is_shortened(tmp_path: Path) -> None:
    with pytest.raises(PromptError) as caught:
        load_prompts(write(tmp_path, "a.jsonl", "x" * 10_000))
    assert len(str(caught.value)) < 400 + len(str(tmp_path))


def test_missing_file_folder_and_format(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(PromptError, match=r"^sub/a\.txt: no such prompt file .*nothing is downl"):
        load_prompts("sub/a.txt")
    (tmp_path / "folder.txt").mkdir()
    with pytest.raises(PromptError, match=r"no \*\.parquet or \*\.jsonl in this folder"):
        load_prompts("folder.txt")
    with pytest.raises(PromptError, match="cannot read this prompt file"):
        load_prompts("folder.txt", "txt")
    write(tmp_path, "b.txt", "fox")
    with pytest.raises(PromptError, match=r"unknown prompt format 'xml'; .*auto, txt, geneval"):
        load_prompts("b.txt", "xml")


# ---- config --------------------------------------------------------------------------------------


def test_config_defaults() -> None:
    config = PromptsConfig(train="a.txt")
    assert (config.per_iteration, config.group_size, config.shuffle) == (6, 12, True)
    assert (config.held_out, config.held_out_share, config.format) == (None, 0.0, "auto")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({}, "train"),
        ({"train": ""}, "at least 1 character"),
        ({"train": "a", "held_out": "b", "held_out_share": 0.1}, "keep the file or the share"),
        ({"train": "a", "held_out": "a"}, "same file, 'a'"),
        ({"train": "a", "held_out_share": 1.0}, "less than 1"),
        ({"train": "a", "held_out_share": -0.1}, "greater than or equal to 0"),
        ({"train": "a", "group_size": 1}, "group_size is 1, but .* at least 2"),
        ({"train": "a", "group_size": True}, "valid integer"),
        ({"train": "a", "per_iteration": 0}, "greater than or equal to 1"),
        ({"train": "a", "format": "xml"}, "'txt'"),
        ({"train": "a", "trian": "a"}, "trian"),
    ],
)
def test_config_refuses(settings: dict[str, object], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        PromptsConfig.model_validate(settings)


def test_build_prompts(tmp_path: Path) -> None:
    train = str(write(tmp_path, "a.txt", "\n".join(f"fox {i}" for i in range(20))))
    held_out = str(write(tmp_path, "b.jsonl", '{"prompt": "hare"}'))
    whole = load_prompts(train)
    assert build_prompts(PromptsConfig(train=train)) == (whole, [])
    by_file = build_prompts(PromptsConfig(train=train, held_out=held_out))
    assert by_file == (whole, [Prompt(20, "hare")])  # ids go on where those of train end
    by_share = build_prompts(PromptsConfig(train=train, held_out_share=0.25, split_seed=3))
    assert by_share == split(whole, 0.25, 3)


# ---- split ---------------------------------------------------------------------------------------


@given(
    n=st.integers(2, 60),
    share=st.floats(0, 1, exclude_max=True),
    seed=st.integers(0, 2**63 - 1),
)
def test_split_puts_every_prompt_in_exactly_one_part(n: int, share: float, seed: int) -> None:
    prompts = numbered(n)
    train, held_out = split(prompts, share, seed)
    assert sorted(train + held_out, key=lambda p: p.id) == prompts
    for part in (train, held_out):
        assert part == sorted(part, key=lambda p: p.id)
    assert len(held_out) == (0 if share == 0 else min(max(round(share * n), 1), n - 1))
    assert (train, held_out) == split(prompts, share, seed)


def test_split_depends_on_the_seed() -> None:
    assert split(numbered(50), 0.2, 0) != split(numbered(50), 0.2, 1)


@given(texts=st.lists(st.sampled_from("abcdef"), min_size=1), seed=st.integers(0, 99))
def test_split_never_parts_equal_texts(texts: list[str], seed: int) -> None:
    prompts = [Prompt(i, text) for i, text in enumerate(texts)]
    if len(set(texts)) < 2:
        with pytest.raises(PromptError, match="nothing to split"):
            split(prompts, 0.3, seed)
        return
    train, held_out = split(prompts, 0.3, seed)
    assert train
    assert held_out
    assert not {p.text for p in train} & {p.text for p in held_out}
    assert len(train) + len(held_out) == len(prompts)


@pytest.mark.parametrize("share", [-0.1, 1.0, float("nan")])
def test_split_refuses_a_share_outside_its_range(share: float) -> None:
    with pytest.raises(ConfigError, match="expected a number in"):
        split(numbered(5), share, 0)
