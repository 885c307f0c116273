"""Views of a config: all keys with value, source and meaning; differences; JSON schema."""

from __future__ import annotations

import textwrap
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from rich.table import Table

from adrpo_scale.core.settings import Leaf, Section, walk
from adrpo_scale.run.config import RunConfig
from adrpo_scale.run.load import LoadedConfig

TABLE_COLUMNS = 120  # below, the cells of the table are columns of single words


@dataclass(frozen=True)
class Entry:
    """One key. value: as in TOML. source: as `LoadedConfig.source` gives it."""

    path: str
    value: str
    source: str
    meaning: str


def entries(loaded: LoadedConfig) -> list[Entry]:
    """All keys of a config, in declaration order."""
    return _entries(loaded.config, loaded.source)


def settings_of(config: Section, given: Mapping[str, str]) -> list[Entry]:
    """All keys of any section, e.g. an evaluation. given: file or --set, by the keys that are."""
    return _entries(config, lambda leaf: given.get(leaf.path, "default"))


def _entries(config: Section, source: Callable[[Leaf], str]) -> list[Entry]:
    return [
        Entry(leaf.path, _toml(leaf.value), source(leaf), leaf.info.description or "")
        for leaf in walk(config)
    ]


def _toml(value: Any) -> str:
    if value is None:
        return "–"
    if isinstance(value, bool):
        return str(value).lower()
    return f'"{value}"' if isinstance(value, str) else str(value)


def config_table(loaded: LoadedConfig) -> Table:
    return entry_table(f"{loaded.name}-{loaded.config.digest()}", entries(loaded))


def entry_table(title: str, shown: Iterable[Entry]) -> Table:
    table = Table(title=title)
    for name in ("key", "value", "from"):
        table.add_column(name, overflow="fold", no_wrap=name == "key")
    table.add_column("meaning", ratio=1)
    for entry in shown:
        table.add_row(entry.path, entry.value, entry.source, entry.meaning)
    return table


def config_lines(loaded: LoadedConfig, width: int) -> Iterator[str]:
    """The same as the table, for narrow terminals: a line for a key, then its meaning."""
    yield from entry_lines(f"{loaded.name}-{loaded.config.digest()}", entries(loaded), width)


def entry_lines(title: str, shown: Iterable[Entry], width: int) -> Iterator[str]:
    yield title
    for entry in shown:
        yield f"{entry.path} = {entry.value}   ({entry.source})"
        yield textwrap.indent(textwrap.fill(entry.meaning, width - 4), "    ")


def differences(one: LoadedConfig, other: LoadedConfig) -> list[tuple[str, str, str]]:
    """(key, value in `one`, value in `other`) of each key that differs; "–" for a missing key."""
    here = {entry.path: entry.value for entry in entries(one)}
    there = {entry.path: entry.value for entry in entries(other)}
    keys = list(dict.fromkeys([*here, *there]))
    pairs = [(key, here.get(key, "–"), there.get(key, "–")) for key in keys]
    return [pair for pair in pairs if pair[1] != pair[2]]


def difference_table(one: LoadedConfig, other: LoadedConfig) -> Table:
    table = Table("key", one.name, other.name, title="settings that differ")
    for row in differences(one, other):
        table.add_row(*row)
    return table


def schema() -> dict[str, Any]:
    """JSON schema of a config file, for editors (e.g. the `#:schema` line of taplo)."""
    return RunConfig.model_json_schema()
