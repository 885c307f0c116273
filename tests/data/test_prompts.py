"""Prompt files, the split and the stream."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import get_args

import pyarrow
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pyarrow import parquet
from pydantic import ValidationError

from adrpo_scale.core import paths
from adrpo_scale.core.errors import ConfigError, ModelNotFoundError, PromptError
from adrpo_scale.core.types import Prompt
from adrpo_scale.data.formats import READERS, guess_format
from adrpo_scale.data.prompts import (
    Format,
    PromptsConfig,
    PromptStream,
    build_prompts,
    load_prompts,
    split,
)

SHIPPED = Path(__file__).parents[2] / "configs" / "sd3" / "prompts"
KINDS = {
    "drawbench_style": "drawbench_style.csv",
    "artistic": "artistic.txt",
    "compositional": "compositional.jsonl",
}
COLORS = {"red", "orange", "yellow", "green", "blue", "purple", "pink", "brown", "black", "white"}


def write(folder: Path, name: str, content: str | bytes) -> Path:
    path = folder / name
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def numbered(n: int) -> list[Prompt]:
    return [Prompt(i, f"prompt {i}") for i in range(n)]


def texts(prompts: list[Prompt]) -> list[str]:
    return [prompt.text for prompt in prompts]


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
        with pytest.raises(PromptError, match="nothing to part"):
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


# ---- stream --------------------------------------------------------------------------------------


def take(stream: PromptStream, iterations: int, cursor: int = 0) -> list[int]:
    ids: list[int] = []
    for _ in range(iterations):
        ids += [prompt.id for prompt in stream.at(cursor)]
        cursor += stream.per_iteration
    return ids


@given(
    n=st.integers(1, 25),
    per_iteration=st.integers(1, 60),
    seed=st.integers(0, 2**40),
    shuffle=st.booleans(),
)
def test_every_prompt_once_an_epoch(n: int, per_iteration: int, seed: int, shuffle: bool) -> None:
    stream = PromptStream(numbered(n), per_iteration, seed, shuffle)
    ids = take(stream, iterations=-(-3 * n // per_iteration))
    for epoch in range(3):
        assert sorted(ids[epoch * n : (epoch + 1) * n]) == list(range(n))


@given(n=st.integers(1, 25), per_iteration=st.integers(1, 30), done=st.integers(0, 40))
def test_the_cursor_alone_resumes(n: int, per_iteration: int, done: int) -> None:
    running = PromptStream(numbered(n), per_iteration, seed=5)
    whole = take(running, done + 2)
    fresh = PromptStream(numbered(n), per_iteration, seed=5)
    assert take(fresh, 2, cursor=done * per_iteration) == whole[done * per_iteration :]


def test_the_cursor_counts_prompts_so_p_may_change_between_runs() -> None:
    assert take(PromptStream(numbered(10), 3, 0), 8) == take(PromptStream(numbered(10), 4, 0), 6)


def test_seeds_and_epochs_give_different_orders() -> None:
    first, again, other = (PromptStream(numbered(40), 40, seed) for seed in (1, 1, 2))
    assert first.at(0) == again.at(0)
    assert first.at(0) != other.at(0)
    assert first.at(0) != first.at(40)


def test_the_order_is_pinned() -> None:
    """Changing it would change the prompts of every run that is resumed."""
    assert take(PromptStream(numbered(8), 8, seed=0), 2) == [
        0,
        6,
        2,
        3,
        7,
        4,
        5,
        1,
        0,
        4,
        6,
        5,
        3,
        1,
        7,
        2,
    ]


def test_without_shuffle_the_order_of_the_file() -> None:
    assert take(PromptStream(numbered(3), 2, seed=0, shuffle=False), 3) == [0, 1, 2, 0, 1, 2]


def test_more_prompts_an_iteration_than_there_are() -> None:
    ids = [prompt.id for prompt in PromptStream(numbered(2), 5, seed=0).at(0)]
    assert [sorted(ids[:2]), sorted(ids[2:4])] == [[0, 1], [0, 1]]
    assert len(ids) == 5


def test_stream_refuses() -> None:
    with pytest.raises(PromptError, match="no prompts"):
        PromptStream([], 2, 0)
    with pytest.raises(ConfigError, match="per_iteration is 0"):
        PromptStream(numbered(2), 0, 0)
    with pytest.raises(ValueError, match="cursor is -1"):
        PromptStream(numbered(2), 1, 0).at(-1)


# ---- shipped files -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "format", "count"),
    [
        ("drawbench_style.csv", "drawbench", 140),
        ("artistic.txt", "txt", 96),
        ("compositional.jsonl", "geneval", 168),
        ("train.jsonl", "jsonl", 404),
        ("held_out.jsonl", "jsonl", 72),
    ],
)
def test_shipped_files_parse_and_have_no_duplicates(name: str, format: str, count: int) -> None:
    assert guess_format(SHIPPED / name) == format
    prompts = load_prompts(SHIPPED / name)
    assert len(prompts) == count
    assert [p.id for p in prompts] == list(range(count))
    assert len({p.text.lower() for p in prompts}) == count
    readme = (SHIPPED / "README.md").read_text()
    assert f"| `{name}` | {count} | `{format}` |" in readme


def test_train_is_the_union_and_held_out_is_disjoint() -> None:
    union = [
        (prompt.text, kind)
        for kind, name in KINDS.items()
        for prompt in load_prompts(SHIPPED / name)
    ]
    train = [(p.text, p.metadata["kind"]) for p in load_prompts(SHIPPED / "train.jsonl")]
    held_out = [(p.text, p.metadata["kind"]) for p in load_prompts(SHIPPED / "held_out.jsonl")]
    assert train == union
    assert {kind for _, kind in held_out} == set(KINDS)
    assert not {text.lower() for text, _ in train} & {text.lower() for text, _ in held_out}


def test_shipped_categories_are_balanced() -> None:
    with (SHIPPED / "drawbench_style.csv").open(newline="") as file:
        categories = [row["Category"] for row in csv.DictReader(file)]
    assert len(set(categories)) == 10
    assert all(categories.count(category) == 14 for category in set(categories))


def test_shipped_compositional_rows_match_their_prompts() -> None:
    numbers = {2: "two", 3: "three", 4: "four"}
    tags: list[str] = []
    for prompt in load_prompts(SHIPPED / "compositional.jsonl"):
        tag, include = prompt.metadata["tag"], prompt.metadata["include"]
        tags.append(tag)
        pairs = tag in ("two_object", "position", "color_attr")
        assert len(include) == (2 if pairs else 1), prompt
        for thing in include:
            color = thing.get("color")
            assert (color in COLORS) == (tag in ("colors", "color_attr")), prompt
            assert (f"{color} {thing['class']}" if color else thing["class"]) in prompt.text
            assert thing["count"] in ((2, 3, 4) if tag == "counting" else (1,)), prompt
        if tag == "counting":
            thing = include[0]
            assert f"{numbers[thing['count']]} {thing['class']}" in prompt.text
            more = {"class": thing["class"], "count": thing["count"] + 1}
            assert prompt.metadata["exclude"] == [more]
        if tag == "position":
            relation, target = include[1]["position"]
            assert target == 0
            end = prompt.text.split(f"{include[1]['class']} {relation} ")[1]
            assert end in (f"a {include[0]['class']}", f"an {include[0]['class']}")
    assert sorted(set(tags)) == [
        "color_attr",
        "colors",
        "counting",
        "position",
        "single_object",
        "two_object",
    ]
    assert all(tags.count(tag) == 28 for tag in tags)
