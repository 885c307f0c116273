"""Prompt files, the split and the stream."""

from __future__ import annotations

import json
from pathlib import Path
from typing import get_args

import pyarrow
import pytest
from pyarrow import parquet

from adrpo_scale.core import paths
from adrpo_scale.core.errors import ConfigError, ModelNotFoundError, PromptError
from adrpo_scale.core.types import Prompt
from adrpo_scale.data.formats import READERS, guess_format
from adrpo_scale.data.prompts import (
    Format,
    load_prompts,
)
from tests.support.prompt_files import texts, write

# ---- formats -------------------------------------------------------------------------------------


def test_the_config_offers_exactly_the_readers() -> None:
    assert get_args(Format) == ("auto", *READERS)


def test_txt_keeps_order_skips_blank_lines_and_strips(tmp_path: Path) -> None:
    path = write(tmp_path, "a.txt", "\n  a red fox \n\n\t\na, blue hare\na red fox\n")
    assert load_prompts(path) == [
        Prompt(0, "a red fox"),
        Prompt(1, "a, blue hare"),
        Prompt(2, "a red fox"),
    ]


def test_txt_target_is_the_first_quoted_string(tmp_path: Path) -> None:
    lines = ['A sign: "Open, 9 to 5" and "Shut"', "the baker's 'door'", 'an 8" vinyl', "a “Salon”"]
    loaded = load_prompts(write(tmp_path, "ocr.txt", "\n".join(lines)))
    assert texts(loaded) == lines
    assert [dict(p.metadata) for p in loaded] == [
        {"target": "Open, 9 to 5"},
        {},
        {},
        {"target": "Salon"},
    ]


def test_txt_does_not_break_lines_at_unicode_separators(tmp_path: Path) -> None:
    path = write(tmp_path, "a.txt", "a fox\u2028in snow\x85\nnext")
    assert len(load_prompts(path)) == 2


@pytest.mark.parametrize("header", ["Prompts,Category", "Prompt,Category", " prompts , CATEGORY"])
@pytest.mark.parametrize("name", ["d.csv", "d.CSV", "d.txt"])
def test_drawbench_csv(tmp_path: Path, header: str, name: str) -> None:
    body = (
        f"{header}\n"
        "A red car.,Colors\n"
        '"A cat, a dog, and ""Hi"".",Text\n'
        "\n"
        '"two\nlines", Odd \n'
        "It's 6 o'clock.,'Quoted'\n"
    )
    path = write(tmp_path, name, body)
    assert guess_format(path) == "drawbench"
    assert load_prompts(path) == [
        Prompt(0, "A red car.", {"category": "Colors"}),
        Prompt(1, 'A cat, a dog, and "Hi".', {"category": "Text"}),
        Prompt(2, "two\nlines", {"category": "Odd"}),
        Prompt(3, "It's 6 o'clock.", {"category": "'Quoted'"}),
    ]


def test_drawbench_with_an_index_column_and_a_short_row(tmp_path: Path) -> None:
    path = write(tmp_path, "d.csv", ",Prompts,Category\n0,a fox,Colors\n1,a hare\n")
    assert load_prompts(path) == [Prompt(0, "a fox", {"category": "Colors"}), Prompt(1, "a hare")]


def test_drawbench_txt_without_header_is_one_prompt_a_line(tmp_path: Path) -> None:
    path = write(tmp_path, "drawbench.txt", 'Two cats, one dog.\nA "Hi" sign.\n')
    assert texts(load_prompts(path, "drawbench")) == ["Two cats, one dog.", 'A "Hi" sign.']


def test_partiprompts_quotes_are_literal(tmp_path: Path) -> None:
    path = write(
        tmp_path,
        "p.tsv",
        "Prompt\tCategory\tChallenge\tNote\n"
        '"a fox"\tAnimals\tBasic\t\n'
        'the word "START\tIndoor\tWriting\tone, open quote\n'
        "a hare, a hat\tAnimals\n",
    )
    assert load_prompts(path) == [
        Prompt(0, '"a fox"', {"category": "Animals", "challenge": "Basic", "note": ""}),
        Prompt(
            1,
            'the word "START',
            {"category": "Indoor", "challenge": "Writing", "note": "one, open quote"},
        ),
        Prompt(2, "a hare, a hat", {"category": "Animals"}),
    ]


def test_geneval(tmp_path: Path) -> None:
    row = {
        "tag": "counting",
        "include": [{"class": "fox", "count": 2}],
        "exclude": [{"class": "fox", "count": 3}],
        "prompt": "a photo of two foxes",
    }
    path = write(tmp_path, "g.jsonl", json.dumps(row) + "\n\n" + json.dumps(row))
    assert guess_format(path) == "geneval"
    metadata = {key: row[key] for key in ("tag", "include", "exclude")}
    assert load_prompts(path) == [
        Prompt(0, "a photo of two foxes", metadata),
        Prompt(1, "a photo of two foxes", metadata),
    ]


def test_jsonl_other_keys_are_metadata(tmp_path: Path) -> None:
    path = write(tmp_path, "j.jsonl", '{"id": 9, "prompt": "füchse\\n2", "k": [1]}\n{"prompt":"b"}')
    assert guess_format(path) == "jsonl"
    assert load_prompts(path) == [Prompt(0, "füchse\n2", {"id": 9, "k": [1]}), Prompt(1, "b")]


def test_imagereward(tmp_path: Path) -> None:
    rows = [{"id": "0012-7", "prompt": "a fox"}, {"id": 3, "prompt": "a hare", "class": "x"}]
    path = write(tmp_path, "i.json", json.dumps(rows, indent=2))
    assert load_prompts(path) == [
        Prompt(0, "a fox", {"id": "0012-7"}),
        Prompt(1, "a hare", {"id": 3, "class": "x"}),
    ]


@pytest.mark.parametrize("bom", [b"", b"\xef\xbb\xbf"])
@pytest.mark.parametrize("newline", ["\n", "\r\n"])
@pytest.mark.parametrize(
    ("name", "body"),
    [
        ("a.txt", "un café\na hare\n"),
        ("a.csv", 'Prompts,Category\n"un café",x\na hare,y\n'),
        ("a.tsv", "Prompt\tCategory\nun café\tx\na hare\ty\n"),
        ("a.json", '[{"id": 1, "prompt": "un café"},\n{"id": 2, "prompt": "a hare"}]\n'),
        ("a.jsonl", '{"prompt": "un café"}\n{"prompt": "a hare"}\n'),
    ],
)
def test_byte_order_mark_and_crlf(
    tmp_path: Path, bom: bytes, newline: str, name: str, body: str
) -> None:
    path = write(tmp_path, name, bom + body.replace("\n", newline).encode())
    assert [(p.id, p.text) for p in load_prompts(path)] == [(0, "un café"), (1, "a hare")]


def test_an_explicit_format_overrides_the_suffix(tmp_path: Path) -> None:
    path = write(tmp_path, "prompts.list", "Prompts,Category\n")
    assert texts(load_prompts(path, "txt")) == ["Prompts,Category"]
    geneval_as_jsonl = write(tmp_path, "g.jsonl", '{"tag": 1, "include": 2, "prompt": "a fox"}')
    assert texts(load_prompts(geneval_as_jsonl, "jsonl")) == ["a fox"]


# ---- conversations -------------------------------------------------------------------------------


TURNS = [
    {"role": "user", "content": "Hello"},
    {"role": "assistant", "content": "Hi"},
    {"role": "user", "content": "Tell me more"},
]


def rows_of(kind: str, path: Path, rows: list[dict]) -> Path:
    """The same rows as JSON lines or as parquet."""
    file = path / f"rows.{kind}"
    if kind == "jsonl":
        file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    else:
        parquet.write_table(pyarrow.Table.from_pylist(rows), file)
    return file


@pytest.mark.parametrize("kind", ["jsonl", "parquet"])
@pytest.mark.parametrize("key", ["context_messages", "messages", "prompt"])
def test_conversations(tmp_path: Path, kind: str, key: str) -> None:
    file = rows_of(kind, tmp_path, [{key: TURNS, "answer": "4"}, {key: TURNS[:1], "answer": "5"}])
    long, short = load_prompts(file)
    assert [dict(m) for m in long.messages] == TURNS == long.conversation
    assert long.text == "user: Hello\nassistant: Hi\nuser: Tell me more"
    assert long.metadata == {"answer": "4"}
    assert short.text == "Hello" and short.conversation == TURNS[:1]


@pytest.mark.parametrize("kind", ["jsonl", "parquet"])
def test_a_plain_prompt_is_one_message_of_the_users(tmp_path: Path, kind: str) -> None:
    (prompt,) = load_prompts(rows_of(kind, tmp_path, [{"prompt": "What is 2 + 2?", "answer": "4"}]))
    assert prompt.messages == ()
    assert prompt.conversation == [{"role": "user", "content": "What is 2 + 2?"}]


@pytest.mark.parametrize(
    "messages",
    [[], "no list", [{"role": "user"}], [{"role": "user", "content": " "}], TURNS[:2], [3]],
)
def test_a_broken_conversation_is_named(tmp_path: Path, messages: object) -> None:
    file = rows_of("jsonl", tmp_path, [{"messages": TURNS}, {"messages": messages}])
    with pytest.raises(PromptError, match=r"rows\.jsonl, line 2: got .*the last one of the user's"):
        load_prompts(file)


def test_a_folder_of_data_files_is_one_dataset(tmp_path: Path) -> None:
    folder = tmp_path / "dataset" / "data"
    folder.mkdir(parents=True)
    for number in range(2):
        table = pyarrow.Table.from_pylist([{"context_messages": TURNS[:1], "n": number}])
        parquet.write_table(table, folder / f"test-0000{number}.parquet")
    prompts = load_prompts(str(tmp_path / "dataset"))
    assert [(p.id, p.metadata["n"]) for p in prompts] == [(0, 0), (1, 1)]


def test_a_folder_of_several_splits_is_refused(tmp_path: Path) -> None:
    for name in ("train", "test"):
        rows_of("jsonl", tmp_path, [{"prompt": name}]).rename(tmp_path / f"{name}-00000.jsonl")
    with pytest.raises(PromptError, match=r"several splits \(test, train\): test-00000\.jsonl"):
        load_prompts(tmp_path)
    (tmp_path / "test-00000.jsonl").unlink()
    assert [prompt.text for prompt in load_prompts(tmp_path)] == ["train"]


@pytest.mark.parametrize("messages", [None, TURNS[:2], TURNS])
def test_a_prompt_beside_a_whole_conversation_is_the_prompt(
    tmp_path: Path, messages: object
) -> None:
    (prompt,) = load_prompts(rows_of("jsonl", tmp_path, [{"prompt": "hi", "messages": messages}]))
    assert prompt.text == "hi" and prompt.messages == ()
    assert prompt.metadata["messages"] == messages


def test_a_dataset_of_the_hub_is_looked_for_in_the_cache(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    commit = "0" * 40
    root = tmp_path / "datasets--owner--chats"
    folder = root / "snapshots" / commit
    folder.mkdir(parents=True)
    (root / "refs").mkdir()
    (root / "refs" / "main").write_text(commit)
    rows_of("jsonl", folder, [{"messages": TURNS}])
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    (prompt,) = load_prompts("hub:owner/chats")
    assert prompt.conversation == TURNS
    with pytest.raises(ModelNotFoundError, match="hf download owner/others --repo-type dataset"):
        load_prompts("hub:owner/others")


def test_a_file_that_is_no_parquet(tmp_path: Path) -> None:
    write(tmp_path, "bad.parquet", "text")
    with pytest.raises(PromptError, match=r"bad\.parquet: cannot be read as parquet"):
        load_prompts(tmp_path / "bad.parquet")
    with pytest.raises(PromptError, match=r"gone\.parquet: no such prompt file"):
        load_prompts(tmp_path / "gone.parquet")


# ---- paths ---------------------------------------------------------------------------------------


def test_demo_names_are_shipped_assets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(paths, "ASSETS", tmp_path / "assets")
    with pytest.raises(ConfigError, match="no demo assets at all"):
        paths.resolve_path("demo:image/train.txt")
    (tmp_path / "assets" / "image").mkdir(parents=True)
    path = write(tmp_path / "assets" / "image", "train.txt", "fox")
    write(tmp_path, "secret.txt", "fox")
    assert paths.resolve_path("demo:image/train.txt") == path
    assert paths.resolve_path("demo:image") == path.parent
    assert texts(load_prompts("demo:image/train.txt")) == ["fox"]
    message = "demo:image/trian.txt: no such demo asset. Did you mean demo:image/train.txt.*There"
    with pytest.raises(ConfigError, match=message):
        paths.resolve_path("demo:image/trian.txt")
    for name in ("demo:", "demo:../secret.txt"):
        with pytest.raises(ConfigError, match=r"There are: demo:image/train\.txt"):
            paths.resolve_path(name)


def test_other_names_are_paths_of_the_file_system(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/someone")
    assert paths.resolve_path("data/a.txt") == Path("data/a.txt")
    assert paths.resolve_path("/data/a.txt") == Path("/data/a.txt")
    assert paths.resolve_path("~/a.txt") == Path("/home/someone/a.txt")
