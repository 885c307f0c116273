"""Which prompts an iteration gets, and the files that the package ships."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from adrpo_scale.core.errors import ConfigError, PromptError
from adrpo_scale.data.formats import guess_format
from adrpo_scale.data.prompts import (
    PromptStream,
    load_prompts,
)
from tests.support.prompt_files import numbered

SHIPPED = Path(__file__).parents[2] / "configs" / "sd3" / "prompts"
KINDS = {
    "drawbench_style": "drawbench_style.csv",
    "artistic": "artistic.txt",
    "compositional": "compositional.jsonl",
}
COLORS = {"red", "orange", "yellow", "green", "blue", "purple", "pink", "brown", "black", "white"}


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
