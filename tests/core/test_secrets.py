"""Keys are read once, and shown by nobody: whatever is printed, logged, cut or raised."""

from __future__ import annotations

import io
import logging
import os
import subprocess
import sys

import pytest

from adrpo_scale.core import secrets
from adrpo_scale.core.console import new_console
from adrpo_scale.core.errors import ConfigError
from adrpo_scale.core.printable import Formatter, one_line, printable
from adrpo_scale.hub.foreign import first_words

KEY = "sk-proj/0123+456&789=abc"
OTHERS = [r"sk-proj\/0123+456&789=abc", "sk-proj/0123+456&amp;789=abc"]  # of JSON, of HTML
QUOTED = "sk-proj%2F0123%2B456%26789%3Dabc"


def forget(monkeypatch):
    for name in ("_bare", "_forms"):
        monkeypatch.setattr(secrets, name, [])


@pytest.fixture
def key(monkeypatch):
    """A key that this process knows."""
    forget(monkeypatch)
    return secrets.read_key("OWN_KEY", {"OWN_KEY": KEY})


@pytest.mark.parametrize(
    "form",
    [
        KEY,
        f"Bearer {KEY}",
        repr(KEY),
        f"{KEY}\n",
        f"/{KEY}/{KEY}",
        QUOTED,
        *OTHERS,
    ],
)
def test_a_key_is_masked_in_every_form_and_wherever_text_leaves(key, form):
    text = f"before {form} after"
    for shown in (secrets.masked(text), printable(text), one_line(text)):
        assert "0123" not in shown and "***" in shown and shown.startswith("before")
    screen = io.StringIO()
    new_console(file=screen, width=20).print(text)
    record = logging.LogRecord("x", logging.INFO, "", 0, "%s", (text,), None)
    try:
        raise ValueError(text)
    except ValueError:
        record.exc_info = sys.exc_info()
    logged = Formatter("%(message)s").format(record)
    assert "0123" not in screen.getvalue() + logged and logged.count("***") >= 2


@pytest.mark.parametrize("length", [0, 1, 10, 24, 25, 300])
@pytest.mark.parametrize("cut", range(0, 60, 4))
def test_half_a_key_is_not_shown_where_a_text_is_cut(key, cut, length):
    text = f"wrong key: {KEY}; use another than {KEY}"[:cut]
    shown = secrets.beginning(text, length)
    assert len(shown) <= length and KEY[: secrets.LEAST] not in shown
    assert KEY not in first_words(ValueError(f"{'x' * (290 - cut)} {KEY}"))


@pytest.mark.parametrize(
    "value", ["sk-secret-value\n", "sk-secret-value\r\n", " sk-secret-value", "sk-secret value",
              "sk-secret-\u2026", "sk-secret\x00value", "sk-secret\tvalue", "\nsk-secret-value"]
)  # fmt: skip
def test_a_key_that_no_header_takes_is_refused_without_being_shown(value, monkeypatch):
    forget(monkeypatch)
    with pytest.raises(ConfigError, match=r"OWN_KEY holds .* no HTTP header takes") as error:
        secrets.read_key("OWN_KEY", {"OWN_KEY": value})
    assert "secret" not in str(error.value)
    assert "secret" not in secrets.masked(f"Invalid header value {value.encode()!r}") or (
        not value.isascii()  # its bytes are another text; the error above comes before them
    )


def test_words_are_no_secrets(monkeypatch):
    forget(monkeypatch)
    for word in ("", "none", "EMPTY", "dummy", " \n"):
        secrets.keep(word)
    assert secrets.masked("none EMPTY dummy") == "none EMPTY dummy"


def test_the_environment_is_known_from_the_start():
    code = "import sys; from adrpo_scale.core import printable as own; "
    code += "print(own.printable(sys.argv[1]))"
    names = ("OPENAI_API_KEY", "HF_TOKEN", "WANDB_API_KEY", "AWS_SECRET_ACCESS_KEY", "X_PASSWORD")
    values = {name: f"value-of-{name.lower()}" for name in names}
    done = subprocess.run(
        [sys.executable, "-c", code, " ".join(values.values())],
        env=os.environ | values,
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.split() == ["***"] * len(names)


def test_keys_in_a_row_and_one_in_another_are_masked(monkeypatch):
    forget(monkeypatch)
    for key in ("/(UpY|}N\\", "abcdefgh", "xx-abcdefgh-yy"):
        secrets.keep(key)
    assert secrets.masked("/(UpY|}N\\" * 3) == "***" * 3
    assert secrets.masked("xx-abcdefgh-yy abcdefgh") == "*** ***"
