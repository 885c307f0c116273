"""Conversations with calls of tools, in the chat templates that disagree about them."""

from __future__ import annotations

import json
import logging

import pytest

from adrpo_scale.core.errors import PromptError
from adrpo_scale.core.types import Prompt
from adrpo_scale.data.prompts import load_prompts
from adrpo_scale.domains.chat import ChatConfig, encode_all, token_ids
from adrpo_scale.run.build import build_domain
from tests.support.tiny_text import text_config, tiny_tokenizer

CALL = {"type": "function", "function": {"name": "w5", "arguments": {"x": 1}}}
TURNS = (
    {"role": "user", "content": "2"},
    {"role": "assistant", "content": "", "tool_calls": [CALL]},
    {"role": "tool", "content": "3"},
    {"role": "user", "content": "4"},
)
LOOP = (
    "{% for m in messages %}{% for c in m.tool_calls or [] %}{{ c.function.name }} [CALL] "
    "{% endfor %}{{ m.content or '' }} {% endfor %}"
)
TEMPLATES = {
    "an object": LOOP.replace("[CALL]", "{{ c.function.arguments.items() | list }}"),
    "JSON": LOOP.replace("[CALL]", "{{ c.function.arguments + '' }}"),
}


@pytest.mark.parametrize("template", TEMPLATES)
def test_calls_of_tools_are_written_as_the_template_takes_them(template: str) -> None:
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = TEMPLATES[template]
    prompt = Prompt(0, "shown", messages=TURNS)
    ids = token_ids(tokenizer, prompt, ChatConfig())
    assert "w5" in tokenizer.decode(ids)


def test_a_template_that_leaves_calls_out_is_named() -> None:
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = "{% for m in messages %}{{ m.content or '' }} {% endfor %}"
    with pytest.raises(PromptError, match="it leaves out the calls of w5"):
        token_ids(tokenizer, Prompt(0, "shown", messages=TURNS), ChatConfig())


def test_all_prompts_that_are_too_long_are_named_at_once() -> None:
    tokenizer = tiny_tokenizer()
    prompts = [Prompt(n, "1 2 3 4 5 6 7 8 9"[: 2 * n + 1]) for n in range(9)]
    config = ChatConfig(template="plain", max_prompt_tokens=3)
    with pytest.raises(PromptError, match=r"prompt 3 .*\n6 of 9 prompts are refused"):
        encode_all(tokenizer, prompts, config)


def test_an_empty_system_message_is_left_out_and_said_once(tmp_path, caplog) -> None:
    asked = {"role": "user", "content": "w1 w2"}
    rows = [
        [{"role": "system", "content": " "}, asked],
        [asked],
        [{**asked, "role": "system"}, asked],
    ]
    file = tmp_path / "rows.jsonl"
    file.write_text("\n".join(json.dumps({"messages": row}) for row in rows))
    prompts, domain = load_prompts(file), build_domain(text_config(tmp_path / "m"))
    with caplog.at_level(logging.INFO):
        found = domain.usable(prompts)
    assert [len(prompt.messages) for prompt in found] == [1, 1, 2] and found[0].text == "w1 w2"
    assert f"1 of 3 prompts have an empty system message, which is left out ({file}, line 1)" in (
        caplog.text
    )
    assert domain.as_before(prompts) == found
    domain.keep_rules({})  # of a run that began with it
    assert domain.usable(prompts) == domain.as_before(prompts) == prompts
