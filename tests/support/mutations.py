"""Configs and command lines that nobody would write on purpose, drawn by a seed.

`mutated(base, random)` changes one to three things of a config that trains in tenths of a second:
numbers, texts, types, choices, keys, components, the text of the file itself. Half of the draws are
tame, so that many of the results pass `config` and can be trained.
"""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

from pydantic.fields import FieldInfo

from adrpo_scale.core.settings import Leaf, walk
from adrpo_scale.run.load import parse_config
from adrpo_scale.run.registry import ALGORITHMS, DOMAINS, ENGINES, REWARDS

NUMBERS = [
    "0",
    "-1",
    "1",
    "2",
    "3",
    "5",
    "0.5",
    "-0.5",
    "1e-3",
    "1e3",
    "1.0",
    "-0.0",
    "1e-300",
    "5e-324",
    "1e300",
    "-1e300",
    "1e30",
    "1e-18",
    "nan",
    "inf",
    "-inf",
    "2147483647",
    "2147483648",
    "9223372036854775807",
    "9223372036854775808",
    "-9223372036854775809",
    "0x10",
    "0b1",
    "1_0",
    "1e400",
    "²",
    "٣",
    "1,5",
    "1e",
    "1e+",
    "0x",
    "00",
    "007",
    "true",
    '"3"',
    "[1]",
    "{}",
]
NUMBERS += ["9" * 4301, "0x" + "f" * 5000, "1" + "0" * 400, "0." + "3" * 5000]
TAME = ["1", "2", "3", "0.5", "0.1", "0.0", "0", "1.0", "4", "0.25", "5", "30.0", "0.9"]
TEXTS = [
    *(
        "",
        " ",
        "x",
        "[/INST]",
        "[/x]",
        "[bold]",
        "[red]a[/red]",
        ":smile:",
        "\\[",
        "{",
        "{}",
        "{0}",
    ),
    *("%s%n", "%(x)s", "a\nb", "a\r", "\t", "a\0b", "\x1b[2J", "\x07", "\x9b", "\u202e", "²", "٣"),
    *(
        "😀",
        "\udcff",
        "\ud800",
        "ÿ",
        "e\u0301",
        "'",
        '"',
        '"""',
        "`id`",
        "$(id)",
        "; rm",
        "#",
        "a#b",
    ),
    *(".", "..", "../x", "/", "//", "/dev/null", "/dev/zero", "/dev/stdin", "/proc/self/mem", "~"),
    *("~nobody/x", "~~", "a" * 300, "a" * 5000, "a/" * 2500, "demo:", "demo:..", "demo:image/../x"),
    *(
        "hub:",
        "hub:a",
        "hub:a/b",
        "hub:a/b/c:d",
        "hub:²",
        ":",
        "a:b",
        ":x",
        "x:",
        "os:path",
        "sys:x",
    ),
    *(
        "adrpo_scale:train",
        "..:x",
        "a.b:c",
        "a b:c",
        "tests.support.own:Red",
        "null",
        "nan",
        "true",
    ),
    *(
        "file:///etc",
        "http://x",
        "s3://x",
        "con",
        "-",
        "--",
        "-x",
        "\u2028",
        "a\u00a0b",
        "*",
        "?",
        "(",
    ),
]
KEYS = ["x", "", "²", "[/x]", "a.b", "name", "kind", "__class__", "0", "-1", "seed ", "Seed", "😀"]
KEYS += ["model_config", "model_fields", "schema", "json", "copy", "dict", "validate", "digest"]
SHAPES: list[Any] = [None, [], {}, [[]], [{}], {"a": {}}, True, 1, "x", [1, "x"], [None], 1.5]
COMPONENTS = {"domain": DOMAINS, "algorithm": ALGORITHMS, "engine": ENGINES, "rewards.0": REWARDS}


@dataclass(frozen=True)
class Case:
    """A config's text and further words of the command line; kinds: of the mutations."""

    text: str
    words: tuple[str, ...]
    kinds: tuple[str, ...]


@dataclass(frozen=True)
class Base:
    """A config that trains. text: its file; leaves: its settings."""

    text: str
    leaves: tuple[Leaf, ...]


def base_of(data: dict[str, Any]) -> Base:
    return Base(toml(data), tuple(walk(parse_config(data))))


def mutated(base: Base, draw: random.Random) -> Case:
    text, words, kinds = base.text, [], []
    for _ in range(draw.choice([1, 1, 1, 2, 2, 3])):
        kind = draw.choice([*_SETS, *["choice", "number"] * 6, *_TEXTS])
        kinds.append(kind)
        if kind in _SETS:
            words += ["--set", _SETS[kind](base, draw)]
        else:
            text = _TEXTS[kind](text, draw)
    return Case(text, tuple(words), tuple(kinds))


# ---- one setting ---------------------------------------------------------------------------------


def _number(base: Base, draw: random.Random) -> str:
    leaves = [leaf for leaf in base.leaves if is_number(leaf.info)]
    value = draw.choice(draw.choice([NUMBERS, TAME, TAME]))
    return f"{draw.choice(leaves).path}={value}"


def _text(base: Base, draw: random.Random) -> str:
    leaves = [leaf for leaf in base.leaves if str in _parts(leaf.info)]
    value = draw.choice(TEXTS)
    quoted = draw.choice([value, value, json.dumps(value, ensure_ascii=False), f"'{value}'"])
    return f"{draw.choice(leaves).path}={quoted}"


def _choice(base: Base, draw: random.Random) -> str:
    leaves = [leaf for leaf in base.leaves if choices(leaf.info)]
    leaf = draw.choice(leaves)
    return f"{leaf.path}={draw.choice(choices(leaf.info))}"


def _shape(base: Base, draw: random.Random) -> str:
    path = draw.choice(base.leaves).path
    if draw.random() < 0.4:  # a section in place of a value
        path = path.rpartition(".")[0] or path
    return f"{path}={_inline(draw.choice(SHAPES))}"


def _component(base: Base, draw: random.Random) -> str:
    path = draw.choice([*COMPONENTS])
    names = [*COMPONENTS[path], *COMPONENTS[path], draw.choice(TEXTS)]
    return f"{path}.{COMPONENTS[path].tag}={draw.choice(names)}"


def _key(base: Base, draw: random.Random) -> str:
    parts = draw.choice(base.leaves).path.split(".")
    parts[draw.randrange(len(parts))] = draw.choice(KEYS)
    return f"{'.'.join(parts)}={draw.choice([*TAME, 'x', '[]', '{}'])}"


def _garbled(base: Base, draw: random.Random) -> str:
    leaf = draw.choice(base.leaves)
    text = f"{leaf.path}={_inline(leaf.value if leaf.value is not None else 'null')}"
    return _noise(text, draw)


def _null(base: Base, draw: random.Random) -> str:
    path = draw.choice(base.leaves).path
    return f"{path if draw.random() < 0.6 else path.partition('.')[0]}=null"


_SETS = {
    "number": _number,
    "text": _text,
    "choice": _choice,
    "shape": _shape,
    "component": _component,
    "key": _key,
    "garbled": _garbled,
    "null": _null,
}


# ---- the file ------------------------------------------------------------------------------------


def _noise(text: str, draw: random.Random) -> str:
    """The text with one to four characters changed, or a piece of it doubled, left out or moved."""
    for _ in range(draw.randint(1, 4)):
        a, b = sorted(draw.randrange(len(text) + 1) for _ in range(2))
        b = min(b, a + 12)
        piece = draw.choice(
            ["", text[a:b] * 2, draw.choice("\"[]{}=.,#\n\0\\'\t²"), chr(draw.randrange(300))]
        )
        text = text[:a] + piece + text[b:]
    return text


def _cut(text: str, draw: random.Random) -> str:
    return text[: draw.randrange(len(text))]


def _lines(text: str, draw: random.Random) -> str:
    """A line left out, doubled, or at another place."""
    lines = text.splitlines()
    line = lines.pop(draw.randrange(len(lines)))
    for _ in range(draw.randrange(3)):
        lines.insert(draw.randrange(len(lines) + 1), line)
    return "\n".join(lines)


def _added(text: str, draw: random.Random) -> str:
    deep = draw.choice([40, 400, 5000])
    return (
        text
        + "\n"
        + draw.choice(
            [
                f"x = {'[' * deep}{']' * deep}",
                f"{'.'.join('a' * deep)} = 1",
                "\n".join(f"[{'.'.join(['a'] * n)}]" for n in range(1, 60)),
                f"[limits]\nmin_reward = {draw.choice(NUMBERS)}",
                f"{json.dumps(draw.choice(KEYS))} = {json.dumps(draw.choice(KEYS))}",
                "[[rewards]]",
                "[[domain]]",
                "[optimizer.updates]",
                "d = 2024-01-01T00:00:00Z",
                "\ufeff",
                "# " + "x" * 100_000,
                'a = "\\ud800"',
                "\udcff",
                "\r",
            ]
        )
    )


_TEXTS = {"noise": _noise, "cut": _cut, "lines": _lines, "added": _added}


# ---- command lines -------------------------------------------------------------------------------

COMMANDS: dict[str, Sequence[str]] = {
    "config": ("CONFIG", "--diff", "--set", "--schema"),
    "train": (
        "CONFIG",
        "--run-dir",
        "--set",
        "--init-from",
        "--allow-change",
        "--trial",
        "--fresh",
    ),
    "plan": (
        "CONFIG",
        "--nodes",
        "--gpus-per-node",
        "--gpu",
        "--network-gbit",
        "--time-limit",
        "--trial",
    ),
    "sample": ("NAME", "--prompts", "--to", "--limit", "--per-prompt", "--seed", "--set"),
    "export": ("NAME", "--to", "--as", "--dtype", "--max-shard-size"),
    "inspect": ("NAME", "--json"),
    "report": ("NAME", "--curves"),
    "status": ("NAME", "--json", "--queue"),
    "prefetch": ("CONFIG", "--lock", "--dry-run"),
    "evaluate": ("CONFIG", "--model", "--data", "--to", "--limit", "--set"),
    "prepare avqa": ("--rows", "--to", "--audio", "--videos", "--workers", "--shard-megabytes"),
    "prepare mmau": ("--json", "--audio", "--to", "--revision"),
    "demo": ("NAME", "--to"),
}


_WRITTEN = ("--to", "--run-dir", "--curves", "--lock")  # stays below the current folder


def command_line(config: Path, run: Path, draw: random.Random) -> list[str]:
    """Words of a command that must end soon: a config or a run may be real, the rest is odd. A
    NUL cannot be in one."""
    name = draw.choice([*COMMANDS])
    words = name.split()
    for option in COMMANDS[name]:
        if option in ("CONFIG", "NAME"):
            real = [str(config), str(run), f"{run}@1", f"{run}@²", f"{run}@{'9' * 40}"]
            words.append(draw.choice([*real, draw.choice(TEXTS)]))
        elif draw.random() < 0.4:
            odd = [text for text in TEXTS if not (option in _WRITTEN and text[:1] in ("/", "~"))]
            values = [draw.choice(odd), draw.choice(NUMBERS), str(config), "seed=1"]
            values += [] if option in _WRITTEN else [str(run)]
            words += [option] if draw.random() < 0.1 else [option, draw.choice(values)]
    if draw.random() < 0.1:
        words.insert(draw.randrange(len(words) + 1), draw.choice(TEXTS))
    return [word.replace("\0", "") for word in words]


# ---- what settings are ---------------------------------------------------------------------------


def _parts(info: FieldInfo) -> list[Any]:
    return [info.annotation, *get_args(info.annotation)]


def is_number(info: FieldInfo) -> bool:
    return any(part in (int, float) for part in _parts(info))


def choices(info: FieldInfo) -> list[str]:
    """The values of a Literal or a truth value, as `--set` takes them."""
    found: list[Any] = []
    for part in _parts(info):
        found += get_args(part) if get_origin(part) is Literal else []
        found += [True, False] if part is bool else []
    return [_inline(value) for value in found]


def _inline(value: Any) -> str:
    """A value as TOML."""
    if isinstance(value, dict):
        return "{" + ", ".join(f"{key} = {_inline(item)}" for key, item in value.items()) + "}"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(map(_inline, value)) + "]"
    return '"null"' if value is None else json.dumps(value, ensure_ascii=False)


def toml(data: dict[str, Any], path: str = "") -> str:
    """A config as a file."""
    values = {k: v for k, v in data.items() if not isinstance(v, dict)}
    lines = [f"[{path}]"] if path else []
    lines += [f"{key} = {_inline(value)}" for key, value in values.items()]
    for key, value in data.items():
        if isinstance(value, dict):
            lines.append(toml(value, f"{path}.{key}" if path else key))
    return "\n".join(lines)
