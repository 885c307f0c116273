"""Keys and tokens of this process: read once, and shown by no message, log or file.

What an endpoint, the hub or a library says may repeat a key. `printable` masks the known ones in
all that is printed or logged; a text of others is masked before it is cut or stored, because a half
of a key would not be known again.
"""

from __future__ import annotations

import html
import json
import os
import re
from collections.abc import Mapping
from urllib.parse import quote

from adrpo_scale.core.errors import ConfigError

MASK = "***"
LEAST = 8  # characters: a shorter value ("none", "EMPTY") is no secret, and occurs in other words
_NAMES = re.compile(r".*(API_KEY|ACCESS_KEY|SECRET|TOKEN|PASSWORD)")
_SENDABLE = re.compile(r"[\x21-\x7e]*")
_bare: list[str] = []
_forms: list[str] = []  # in which known secrets may occur: as they are, then written otherwise


def keep(secret: str) -> str:
    """The secret itself, which `masked` knows from now on."""
    bare = secret.strip()
    if len(bare) >= LEAST:
        found = {repr(secret)[1:-1], repr(bare)[1:-1], quote(bare, safe=""), html.escape(bare)}
        found |= {json.dumps(bare)[1:-1], json.dumps(bare)[1:-1].replace("/", "\\/")}
        _bare[:] = sorted({*_bare, secret, bare}, key=len, reverse=True)
        others = sorted({*_forms, *found} - {*_bare}, key=len, reverse=True)
        _forms[:] = [*_bare, *others]
    return secret


def masked(text: str) -> str:
    """The text with every known secret replaced."""
    for form in _forms:
        if form in text:
            text = text.replace(form, MASK)
    return text


def beginning(text: str, length: int) -> str:
    """At most `length` characters of a text that may itself be cut: neither it nor what is left of
    it ends in the beginning of a secret."""
    for form in _forms:
        cut = range(min(len(form) - 1, len(text)), LEAST - 1, -1)
        half = next((count for count in cut if text.endswith(form[:count])), 0)
        text = text[: len(text) - half] + MASK * bool(half)
    return masked(text)[:length]


def read_key(name: str, environment: Mapping[str, str] = os.environ) -> str:
    """The key in a variable, "" where there is none. Raises ConfigError, which does not show it,
    where no HTTP header takes it: the client's own error would."""
    key = keep(environment.get(name, ""))
    check_sendable(key, name)
    return key


def check_sendable(key: str, name: str) -> None:
    """Raises ConfigError for a key of variable or file `name` that no HTTP header takes."""
    if not _SENDABLE.fullmatch(key):
        strange = "a line end" if key.strip("\r\n") != key else "a space"
        if not key.isascii() or not key.replace("\n", "").replace("\r", "").isprintable():
            strange = "a character that is no letter, digit or sign of ASCII"
        raise ConfigError(
            f"{name} holds {strange}, which no HTTP header takes; expected the key alone: set it "
            "again, without what surrounds it"
        )


for _name, _value in os.environ.items():
    if _NAMES.fullmatch(_name):
        keep(_value)
