"""Given answers as tokens: the one that ends them, their lengths, and what no model generates."""

from __future__ import annotations

import logging

import pytest

from adrpo_scale.core.errors import PromptError
from adrpo_scale.data.prompts import load_prompts
from adrpo_scale.domains.chat import ChatConfig
from adrpo_scale.domains.given_answers import end_of
from adrpo_scale.run.build import build_domain
from adrpo_scale.run.given_pairs import take_pairs
from tests.support.given_pairs import PAIRS, rows_of, save_rows, text_pairs
from tests.support.tiny_text import WORDS, tiny_tokenizer

LONG = "w1 w2 w3 w4 w5 w6 w7 w8 w9 w10 w11 w12"  # 13 tokens with the end; 12 are allowed
DROP = 'domain.chat.long_prompts="drop"'


def test_an_answer_ends_as_the_template_ends_a_turn():
    tokenizer = tiny_tokenizer()
    end, other = WORDS.index("<|im_end|>"), WORDS.index("</answer>")
    tokenizer.eos_token = "</answer>"
    assert end_of(tokenizer, [other, end], ChatConfig()) == end
    assert end_of(tokenizer, [end, other], ChatConfig(template="plain")) == other
    tokenizer.chat_template = "{{ messages[-1]['content'] }}"  # writes no end
    assert end_of(tokenizer, [end, other], ChatConfig()) == other
    tokenizer.chat_template = "{{ 1 / 0 }}"
    assert end_of(tokenizer, [end], ChatConfig()) == end


def taken(folder, pairs, *settings):
    """The prompts that a run would train on."""
    config = text_pairs(folder, *settings)
    path = save_rows(folder / "prompts.jsonl", rows_of(pairs))
    return take_pairs(config, build_domain(config), load_prompts(path))


def test_an_answer_that_is_too_long_is_named_and_never_cut(tmp_path):
    with pytest.raises(PromptError) as raised:
        taken(tmp_path, [PAIRS[0], ("w1", "w2", LONG)])
    text = str(raised.value)
    assert "`rejected` has 13 tokens with the one that ends it" in text
    assert "domain.rollout.max_new_tokens is 12" in text and "line 2" in text
    fitting = LONG.rpartition(" ")[0]
    assert len(taken(tmp_path, [("w1", "w2", fitting)])) == 1


def test_pairs_with_long_answers_may_be_left_out(tmp_path, caplog):
    with caplog.at_level(logging.WARNING):
        kept = taken(tmp_path, [("w1", LONG, "w2"), *PAIRS], DROP)
    assert [prompt.id for prompt in kept] == [1, 2, 3, 4, 5]
    assert "1 of 6 pairs have an answer of more than 12 tokens" in caplog.text
    with pytest.raises(PromptError, match="every one of the 1 pairs"):
        taken(tmp_path, [("w1", LONG, "w2")], DROP)


def test_an_answer_of_what_the_model_never_generates_is_refused(tmp_path):
    config = text_pairs(tmp_path)
    domain = build_domain(config)
    domain.model.special = (9,)
    path = save_rows(tmp_path / "prompts.jsonl", rows_of([("w1", "w2 </answer>", "w3")]))
    with pytest.raises(PromptError, match=r"line 1.*its `chosen` has \['</answer>'\]"):
        take_pairs(config, domain, load_prompts(path))
