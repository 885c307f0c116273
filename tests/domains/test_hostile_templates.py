"""A model's chat template is somebody else's program: it may count for ever, or raise anything."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest

from adrpo_scale.core.errors import ConfigError, PromptError
from adrpo_scale.core.types import Prompt
from adrpo_scale.domains.chat import ChatConfig, encode_all, load_tokenizer
from adrpo_scale.hub import templates
from tests.support.tiny_text import tiny_tokenizer

PROMPTS = [Prompt(n, f"w{n}") for n in range(3)]
LOOP = "{% for a in range(9999) %}{% for b in range(9999) %}{% for c in range(9999) %}"
ENDS = "{% endfor %}{% endfor %}{% endfor %}"
ENDLESS = {
    "counts": LOOP + ENDS,
    "writes": LOOP + "x" + ENDS,
    "calls itself": "{% macro f(n) %}{% if n %}{{ f(n - 1) ~ f(n - 1) }}{% endif %}{% endmacro %}"
    "{{ f(60) }}",
    "grows": "{% set ns = namespace(t='x') %}" + LOOP + "{% set ns.t = 'y' ~ ns.t[:9] %}" + ENDS,
}
RAISES = {
    "divides by zero": "{{ 1 // 0 }}",
    "counts too far": "{% for a in range(10 ** 12) %}x{% endfor %}",
    "has no such key": "{{ messages[0].nothing.more }}",
    "takes no such item": "{{ messages[7]['content'] }}",
    "leaves the sandbox": "{{ ''.__class__.__mro__[1].__subclasses__() }}",
    "calls itself without an end": "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
    "says so": "{{ raise_exception('no user here') }}",
    "is no template": "{% for %}",
    "is a long word": "{% " + "x" * 20_000 + " %}",
    "is nested too deeply": "{% if 1 %}" * 3000 + "{% endif %}" * 3000,
    "has too many brackets": "{{ " + "(" * 5000 + "1" + ")" * 5000 + " }}",
    "formats what is not there": "{{ '%d' % 'x' }}",
    "reads a file": "{% include '/etc/passwd' %}",
    "makes an odd text": "{{ '%c' % 1114112 }}",
    "makes half a character": "{{ 'w1 %c' % 55357 }}",
}


def encoded(template: str) -> dict[int, list[int]]:
    tokenizer = tiny_tokenizer(template)
    return encode_all(tokenizer, PROMPTS, ChatConfig())


@pytest.mark.parametrize("template", ENDLESS.values(), ids=[*ENDLESS])
def test_a_template_without_an_end_is_one_error(template: str, monkeypatch) -> None:
    """Of the template, not one a prompt: ten thousand prompts would take days."""
    monkeypatch.setattr(templates, "SECONDS", 0.2)
    before = signal.getsignal(signal.SIGVTALRM)
    with pytest.raises(ConfigError, match=r"more than 0.2 s of the processor"):
        encoded(template)
    assert signal.getsignal(signal.SIGVTALRM) is before
    assert signal.getitimer(signal.ITIMER_VIRTUAL) == (0.0, 0.0)


def test_a_template_without_measure_is_one_error(monkeypatch) -> None:
    monkeypatch.setattr(templates, "LONGEST", 5000)
    with pytest.raises(ConfigError, match="more than 5,000 characters of one prompt"):
        encoded("{{ 'w1 ' * 2000 }}")
    assert len(encoded("{{ 'w1 ' * 1000 }}")[0]) == 1000


@pytest.mark.parametrize("template", RAISES.values(), ids=[*RAISES])
def test_whatever_a_template_raises_names_the_prompts(template: str) -> None:
    with pytest.raises(PromptError, match="the chat template refuses its messages") as error:
        encoded(template)
    assert "3 of 3 prompts are refused" in str(error.value) and len(str(error.value)) < 3000


@pytest.mark.parametrize("content", [b"\xff\xfe", b"x" * (1 << 21)])
def test_a_template_file_that_is_none(content: bytes, tmp_path: Path) -> None:
    tiny_tokenizer().save_pretrained(tmp_path)
    (tmp_path / "t.jinja").write_bytes(content)
    with pytest.raises(ConfigError, match=r"template_file = .* cannot be read"):
        load_tokenizer(tmp_path, ChatConfig(template_file=str(tmp_path / "t.jinja")))
