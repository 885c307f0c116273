"""Rows as public sets have them: columns, answers, conversations, faults."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import pyarrow
import pytest
from pyarrow import parquet

from adrpo_scale.core.console import warnings_on_screen
from adrpo_scale.core.errors import ConfigError, PromptError
from adrpo_scale.core.types import Prompt
from adrpo_scale.data.prompt_files import load_prompts, needs_from_hub
from adrpo_scale.data.prompts import PromptsConfig, build_prompts
from adrpo_scale.data.rows import Reading
from adrpo_scale.run.compare import prompts_digest
from adrpo_scale.run.load import load_config
from tests.support.prompt_files import texts, write
from tests.support.tiny import CONFIGS

TURNS = [
    {"role": "user", "content": "Hello"},
    {"role": "assistant", "content": "Hi", "tool_calls": []},
    {"role": "user", "content": "More"},
]
CALL = [{"type": "function", "function": {"name": "w", "arguments": '{"x": 1}'}}]


def lines(*rows: Any) -> str:
    return "".join(json.dumps(row) + "\n" for row in rows)


def one(folder: Path, row: Any, name: str = "rows.jsonl", **reading: Any) -> Prompt:
    (prompt,) = load_prompts(write(folder, name, lines(row)), reading=Reading(**reading))
    return prompt


# ---- columns and answers -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("row", "text", "answer", "note"),
    [
        (
            {"question": "Add 2 and 3", "answer": "2 and 3 make 5.\n#### 5"},
            "Add 2 and 3",
            "5",
            "prompt from `question`, answer after ####",
        ),
        (
            {"problem": "Add 2 and 3", "solution": "So $\\boxed{\\frac{10}{2}}$."},
            "Add 2 and 3",
            "\\frac{10}{2}",
            "prompt from `problem`, answer in \\boxed{} of `solution`",
        ),
        (
            {"problem": "Add 2 and 3", "solution": "\\boxed{4}", "answer": "5"},
            "Add 2 and 3",
            "5",
            "prompt from `problem`, answer from `answer`",
        ),
        (
            {"instruction": "Add the numbers", "input": "2 3", "output": "5"},
            "Add the numbers\n2 3",
            "5",
            "prompt from `instruction` and `input`, answer from `output`",
        ),
        (
            {"instruction": "Add 2 and 3", "input": "", "output": "5"},
            "Add 2 and 3",
            "5",
            "prompt from `instruction` and `input`, answer from `output`",
        ),
        (
            {"Question": "Add 2 and 3", "Final_Answer": 5},
            "Add 2 and 3",
            5,
            "prompt from `Question`, answer from `Final_Answer`",
        ),
        ({"Prompt": "Add 2 and 3"}, "Add 2 and 3", None, "prompt from `Prompt`, no answer found"),
        (
            {
                "prompt": [{"role": "user", "content": "Add 2 and 3"}],
                "reward_model": {"style": "rule", "ground_truth": "5"},
            },
            "Add 2 and 3",
            "5",
            "prompt from `prompt`, answer from `reward_model.ground_truth`",
        ),
        (
            {
                "conversations": [
                    {"from": "human", "value": "Add 2 and 3"},
                    {"from": "gpt", "value": "5"},
                ],
                "tools": "[]",
            },
            "Add 2 and 3",
            "5",
            "prompt from `conversations` without its last message, which is the answer",
        ),
        (
            {"messages": TURNS[:2], "problem": "Add 2 and 3", "answer": "5"},
            "Add 2 and 3",
            "5",
            "prompt from `problem`, answer from `answer`",
        ),
    ],
)
@pytest.mark.parametrize("suffix", ["jsonl", "parquet"])
def test_common_columns_are_read_by_themselves_and_said(
    tmp_path: Path,
    row: dict[str, Any],
    text: str,
    answer: object,
    note: str,
    suffix: str,
    caplog: pytest.LogCaptureFixture,
) -> None:
    path = tmp_path / f"rows.{suffix}"
    if suffix == "parquet":
        parquet.write_table(pyarrow.Table.from_pylist([row, row]), path)
    else:
        path.write_text(lines(row, row))
    with caplog.at_level(logging.INFO):
        prompts = load_prompts(path)
    assert [(p.text, p.metadata.get("answer")) for p in prompts] == [(text, answer)] * 2
    assert caplog.messages == [f"{path}: {note}"]
    assert warnings_on_screen().filter(caplog.records[0])


def test_what_an_answer_was_taken_from_stays(tmp_path: Path) -> None:
    row = {"question": "Add 2 and 3", "answer": "2 and 3 make 5.\n#### 5", "id": 7}
    prompt = one(tmp_path, row)
    assert prompt.metadata == {"id": 7, "answer": "5", "answer_text": row["answer"]}


def test_a_row_whose_answer_has_another_form_has_none(tmp_path: Path) -> None:
    rows = [{"problem": "a", "solution": "\\boxed{1}"}, {"problem": "b", "solution": "I gave up."}]
    first, second = load_prompts(write(tmp_path, "rows.jsonl", lines(*rows)))
    assert first.metadata["answer"] == "1"
    assert "answer" not in second.metadata


def test_tables_and_lists_of_texts(tmp_path: Path) -> None:
    table = write(tmp_path, "math.csv", 'id,Question,Answer\n1,"Add 2, 3",work #### 5\n')
    assert load_prompts(table) == [
        Prompt(0, "Add 2, 3", {"id": "1", "answer": "5", "answer_text": "work #### 5"})
    ]
    strings = write(tmp_path, "strings.json", '["a red fox", "a blue bird"]')
    assert load_prompts(strings) == [Prompt(0, "a red fox"), Prompt(1, "a blue bird")]
    long = write(tmp_path, "long.csv", f"Prompt,Note\na fox,{'x' * 200_000}\n")
    assert texts(load_prompts(long)) == ["a fox"]


def test_settings_name_the_columns_of_other_files(tmp_path: Path) -> None:
    row = {"text": "Add 2 and 3", "label": {"value": "so \\boxed{5}"}, "answer": "wrong"}
    prompt = one(tmp_path, row, column="text", answer="label.value", form="boxed")
    assert prompt.text == "Add 2 and 3" and prompt.metadata["answer"] == "5"
    nested = {"doc": {"turns": [{"role": "user", "content": "Hi"}]}}
    assert one(tmp_path, nested, column="doc.turns").text == "Hi"
    config = PromptsConfig(train=str(tmp_path / "rows.jsonl"), column="doc.turns")
    assert build_prompts(config)[0][0].text == "Hi"
    table = write(tmp_path, "t.csv", "Text,Label\nAdd 2 and 3,5\n")
    (prompt,) = load_prompts(table, reading=Reading(column="text", answer="label"))
    assert prompt.text == "Add 2 and 3" and prompt.metadata["answer"] == "5"


# ---- conversations -------------------------------------------------------------------------------


def test_an_empty_system_message_stays(tmp_path: Path) -> None:
    messages = [{"role": "system", "content": ""}, {"role": "user", "content": "Add 2 and 3"}]
    assert one(tmp_path, {"messages": messages}).conversation == messages


def test_parts_of_text_are_joined(tmp_path: Path) -> None:
    parts = [{"type": "text", "text": "Add 2 "}, {"type": "text", "text": "and 3"}]
    prompt = one(tmp_path, {"messages": [{"role": "user", "content": parts}]})
    assert prompt.conversation == [{"role": "user", "content": "Add 2 and 3"}]


def test_a_turn_that_only_calls_tools_keeps_its_calls(tmp_path: Path) -> None:
    messages = [
        {"role": "user", "content": "weather?"},
        {"role": "assistant", "content": None, "tool_calls": CALL},
        {"role": "tool", "content": "3"},
        {"role": "user", "content": "and now?"},
    ]
    prompt = one(tmp_path, {"messages": messages})
    call = {"type": "function", "function": {"name": "w", "arguments": {"x": 1}}}
    assert prompt.conversation[1] == {"role": "assistant", "content": "", "tool_calls": [call]}
    other = [{**m, "tool_calls": [{"id": 1}]} if m["role"] == "assistant" else m for m in messages]
    assert one(tmp_path, {"messages": other}).text != prompt.text


def test_a_conversation_that_ends_with_an_answer_gives_it(tmp_path: Path) -> None:
    system = {"from": "system", "value": "Be short."}
    said = [system, {"from": "human", "value": "2 + 3?"}, {"from": "gpt", "value": "5"}]
    prompt = one(tmp_path, {"conversations": said})
    assert prompt.conversation == [
        {"role": "system", "content": "Be short."},
        {"role": "user", "content": "2 + 3?"},
    ]
    assert prompt.metadata == {"answer": "5"}


@pytest.mark.parametrize(
    ("message", "named"),
    [
        ({"role": "user", "content": [{"type": "image", "image": "x.png"}]}, "['image']"),
        ({"content": "hi"}, "without a role"),
        ({"role": "assistant", "content": None}, "an empty message of the role 'assistant'"),
        ({"role": "user", "content": 3}, "content of the type int"),
    ],
)
def test_messages_that_cannot_be_read_are_named(
    tmp_path: Path, message: object, named: str
) -> None:
    with pytest.raises(PromptError) as caught:
        one(tmp_path, {"messages": [message, {"role": "user", "content": "?"}]})
    assert named in str(caught.value) and "rows.jsonl, line 1: got" in str(caught.value)


# ---- faults --------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["rows.jsonl", "rows.json"])
def test_half_a_surrogate_pair_is_named(tmp_path: Path, name: str) -> None:
    body = '{"prompt": "a red ring"}\n{"prompt": "a blue ring \\ud83d"}\n'
    if name.endswith("json"):
        body = "[" + body.replace("\n{", ",\n{") + "]"
    where = "entry 2" if name.endswith("json") else "line 2"
    with pytest.raises(PromptError, match=rf"{name}, {where}: .*half of a surrogate pair"):
        load_prompts(write(tmp_path, name, body))


def test_every_refused_row_is_named_at_once(tmp_path: Path) -> None:
    rows = [{"prompt": "fox"}, *[{"id": n} for n in range(7)], {"prompt": 3}, {"prompt": "hare"}]
    with pytest.raises(PromptError) as caught:
        load_prompts(write(tmp_path, "rows.jsonl", lines(*rows) + '{"prompt": \n'))
    first, count, *named, last = str(caught.value).split("\n")
    assert first.startswith(f"{tmp_path / 'rows.jsonl'}, line 2: got {{'id': 0}}")
    assert count == "9 of 11 rows are refused; the next ones:"
    assert [line.split(":")[0].strip() for line in named] == [f"line {n}" for n in (3, 4, 5, 6)]
    assert last.strip() == "and 4 more"


def test_every_line_with_a_bad_encoding_is_counted(tmp_path: Path) -> None:
    path = write(tmp_path, "a.txt", "fox\ncafé\nhare\nthé\n".encode("latin-1"))
    with pytest.raises(PromptError, match=r"line 2 \(as 1 more lines\): got b'\\xe9'"):
        load_prompts(path)


def test_a_config_may_begin_with_a_byte_order_mark(tmp_path: Path) -> None:
    source = CONFIGS / "demo" / "image_adrpo.toml"
    path = write(tmp_path, "c.toml", b"\xef\xbb\xbf" + source.read_bytes())
    assert load_config(path).config == load_config(source).config
    with pytest.raises(ConfigError, match="is not valid TOML"):
        load_config(write(tmp_path, "d.toml", source.read_text().encode("utf-16")))


# ---- splits and files ----------------------------------------------------------------------------


def _dataset(folder: Path) -> None:
    for place in ("main/train-00000-of-00002", "main/train-00001-of-00002", "main/test", "b/test"):
        path = folder / f"{place}.jsonl"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(lines({"question": place, "answer": "#### 1"}))


def test_a_split_or_a_file_of_a_dataset_is_named_behind_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    commit = "0" * 40
    root = tmp_path / "datasets--owner--sums"
    (root / "refs").mkdir(parents=True)
    (root / "refs" / "main").write_text(commit)
    _dataset(root / "snapshots" / commit)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    train = ["main/train-00000-of-00002", "main/train-00001-of-00002"]
    assert texts(load_prompts("hub:owner/sums:train")) == train
    assert texts(load_prompts("hub:owner/sums/main:test")) == ["main/test"]
    assert texts(load_prompts("hub:owner/sums/b/test.jsonl")) == ["b/test"]
    assert texts(load_prompts(f"{root / 'snapshots' / commit / 'main'}:train")) == train
    with pytest.raises(PromptError, match=r"several splits \(test, train\).*:train"):
        load_prompts("hub:owner/sums")
    with pytest.raises(PromptError, match=r"no file of the split 'dev'; there are: test, train"):
        load_prompts("hub:owner/sums:dev")
    with pytest.raises(PromptError, match=r"has no 'c' in .*; it has b/test\.jsonl"):
        load_prompts("hub:owner/sums/c")


def test_prefetch_brings_what_is_named(tmp_path: Path) -> None:
    def allowed(name: str) -> tuple[str, ...]:
        (need,) = needs_from_hub(name, "prompts.train")
        assert need.name == "owner/sums"
        return need.allow

    assert allowed("hub:owner/sums") == ("*.parquet", "*.jsonl") == allowed("hub:owner/sums:test")
    assert allowed("hub:owner/sums/main:test") == ("main/*.parquet", "main/*.jsonl")
    assert allowed("hub:owner/sums/data/a.csv") == ("data/a.csv",)
    assert needs_from_hub("rows.jsonl", "prompts.train") == []


# ---- the promise ---------------------------------------------------------------------------------

QUESTION = {"id": 1, "question": "Which?", "choices": ["a", "b"], "answer": "a", "audio": "x.wav"}
GENEVAL = {"tag": "one", "include": [{"class": "fox", "count": 1}], "prompt": "a fox"}
BEFORE = [  # digests of the prompts as commit 161d4f7 read them
    ("a.txt", 'a fox\n\nA sign: "Open"\n', "d2033e5988886086"),
    ("d.csv", 'Prompts,Category\na fox,Colors\n"two, three",Odd\n', "9ef8d6ea467e5c1a"),
    ("p.tsv", "Prompt\tCategory\tNote\na fox\tAnimals\t\n", "0c6757124f3bf8a5"),
    ("g.jsonl", lines(GENEVAL), "50051423454c7099"),
    (
        "j.jsonl",
        '{"id": 9, "prompt": "f\\u00fcchse", "question": "why?", "answer": "2 + 2\\n#### 4"}\n'
        '{"prompt": "b", "solution": "\\\\boxed{3}", "instruction": "c"}\n',
        "f20faf14a1f2d9f2",
    ),
    (
        "truth.jsonl",
        lines({"prompt": TURNS, "reward_model": {"style": "rule", "ground_truth": "5"}}),
        "acda87439b6fea03",
    ),
    (
        "chat.jsonl",
        lines(
            {"messages": TURNS, "ground_truth": "5"},
            {"prompt": "hi", "messages": None, "Prompt": "x"},
        ),
        "b331c2362ecf7eb1",
    ),
    (
        "i.json",
        json.dumps([{"id": "1", "prompt": "a fox"}, {"id": 2, "prompt": "a hare"}]),
        "cea61133b5292552",
    ),
    ("q.jsonl", lines(QUESTION), "015fd0c4320bd5b0"),
]


@pytest.mark.parametrize(("name", "content", "digest"), BEFORE, ids=[row[0] for row in BEFORE])
def test_files_of_before_give_the_same_prompts(
    tmp_path: Path, name: str, content: str, digest: str
) -> None:
    assert prompts_digest(load_prompts(write(tmp_path, name, content))).startswith(digest)
