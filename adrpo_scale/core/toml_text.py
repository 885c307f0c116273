"""TOML that people write, in files and after `--set`: read so that whatever is wrong with it is one
error with a remedy, and nothing that no setting can hold gets any further.

tomllib has no limits: a number of 5,000 digits is a ValueError of int, brackets in brackets end in
a RecursionError, and keys with 3,000 dots make data that only recursion can walk.
"""

from __future__ import annotations

import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from adrpo_scale.core.errors import ConfigError
from adrpo_scale.core.paths import read_given
from adrpo_scale.core.printable import shown

LARGEST_FILE = 10_000_000  # bytes
DEEPEST = 32  # tables and lists inside each other; the deepest setting of ours has 4
LONGEST_INTEGER = 128  # bits; settings have at most 64, and their own errors show more


class TomlError(ValueError):
    """A text is no TOML; the message is the end of a sentence."""


def parse_toml(text: str) -> dict[str, Any]:
    """The table that a text stands for. Raises TomlError."""
    try:
        return tomllib.loads(text)
    except RecursionError as error:
        raise TomlError(f"is nested deeper than {DEEPEST} tables and lists") from error
    except tomllib.TOMLDecodeError as error:
        raise TomlError(f"is not valid TOML: {error}") from error
    except ValueError as error:  # of int and float, e.g. for 5,000 digits
        raise TomlError("has a number that is too long to be one") from error


def read_toml(path: Path, remedy: str) -> dict[str, Any]:
    """The table in a file of settings. remedy: of a file that is not there. Raises ConfigError."""
    try:
        found = parse_toml(_text(path, remedy))
    except TomlError as error:
        raise ConfigError(f"config {path} {error}") from error
    check_values(found, f"config {path}: ")
    return found


def _text(path: Path, remedy: str) -> str:
    try:
        return read_given(path, LARGEST_FILE).decode("utf-8-sig")
    except FileNotFoundError as error:
        raise ConfigError(f"config {path} is not there; {remedy}") from error
    except UnicodeDecodeError as error:
        raise TomlError(f"is not valid TOML: {error}") from error
    except (OSError, ValueError) as error:  # ValueError: a NUL in the path
        why = getattr(error, "strerror", None) or str(error)
        name = shown(str(path), quote=False)
        raise ConfigError(f"config {name} cannot be read ({why}); {remedy}") from error


def check_values(data: Any, before: str = "") -> None:
    """Raises ConfigError for a value that no setting can hold: too deep, an integer of too many
    digits, text that is no text. before: the beginning of the error."""
    for path, value in _walk(data):
        where = f"{before}{shown('.'.join(map(str, path)), quote=False) or 'the value'}"
        if len(path) > DEEPEST:
            raise ConfigError(
                f"{where} is nested deeper than {DEEPEST} tables and lists; no setting is"
            )
        if isinstance(value, int) and value.bit_length() > LONGEST_INTEGER:
            raise ConfigError(
                f"{where} is an integer of {value.bit_length()} bits; settings have at most 64"
            )
        if isinstance(value, str):
            fault = fault_of(value)
            if fault is not None:
                raise ConfigError(f"{where} = {shown(value)} {fault}")


def _walk(data: Any) -> Iterator[tuple[tuple[Any, ...], Any]]:
    """(keys and numbers, value) of everything inside; what is too deep is not entered."""
    rest: list[tuple[tuple[Any, ...], Any]] = [((), data)]
    while rest:
        path, value = rest.pop()
        if path:
            yield path, value
        if len(path) > DEEPEST:
            continue
        if isinstance(value, dict):
            for key, item in value.items():
                yield (*path, key), key
                rest.append(((*path, key), item))
        elif isinstance(value, list | tuple):
            rest += [((*path, number), item) for number, item in enumerate(value)]


def fault_of(text: str) -> str | None:
    """Why a text can be no setting, as the end of a sentence: files, paths and processes take
    neither NUL nor half of a surrogate pair, and a terminal obeys other control characters."""
    for character in text:
        if (character < " " and character not in "\t\n\r") or "\x7f" <= character <= "\x9f":
            return f"holds the control character {character!r}: delete it"
        if "\ud800" <= character <= "\udfff":
            return "holds bytes that are no UTF-8: write it in UTF-8"
    return None
