"""Hashes of sets of prompts, and the prompts that two sets share after normalising."""

from __future__ import annotations

from dataclasses import replace

import pytest

from adrpo_scale.core.types import Prompt
from adrpo_scale.data.prompt_sets import key_of, normalised, overlap, set_hash

RING = Prompt(0, "A red ring, on grass.")
ASKED = {"question": "Which animal?", "choices": ["Cat", "Dog"], "audio": "a.wav"}


@pytest.mark.parametrize(
    "other",
    [
        "a red ring on grass",
        "A  RED ring – on\ngrass!",
        "Ａ red ring, on grass.",
        "a red_ring on grass",
    ],
)
def test_case_punctuation_spaces_and_forms_of_characters_are_no_difference(other):
    assert normalised(Prompt(7, other)) == normalised(RING) == "a red ring on grass"


@pytest.mark.parametrize(
    "other", ["a red ring on glass", "a red ring", "赤い輪", "a réd ring on grass"]
)
def test_other_words_are_a_difference(other):
    assert normalised(Prompt(7, other)) != normalised(RING)


def test_the_shared_prompts_are_counted_and_shown():
    tested = [Prompt(0, "a RED ring on grass"), Prompt(1, "a blue square"), Prompt(2, "two dogs")]
    found = overlap([RING, Prompt(1, "Two dogs?")], tested)
    assert found.as_json() == {"trained": 2, "tested": 3, "shared": 2}
    assert str(found) == (
        "2 of 3 are among the 2 trained on, but for case and punctuation: 'a RED ring on grass', "
        "'two dogs'"
    )
    assert str(overlap([RING], tested[1:])) == "none of the 2 is among the 1 trained on"


def test_a_question_is_its_words_and_options_and_not_the_words_around_it():
    one = Prompt(0, "Listen. Which animal? Cat or dog?", ASKED)
    two = Prompt(1, "Think first: which animal?", ASKED | {"choices": ("dog", "cat")})
    other = replace(two, metadata=ASKED | {"choices": ["dog", "rain"]})
    assert overlap([one], [two, other]).shared == 1


def test_a_conversation_is_its_messages():
    said = [{"role": "user", "content": "Hi!"}, {"role": "assistant", "content": "Hello."}]
    assert normalised(Prompt(0, "shown otherwise", messages=said)) == "hi hello"


def test_keys_tell_prompts_apart_that_share_a_text_and_the_order_of_a_set_is_no_difference():
    clips = [Prompt(0, "What?", {"audio": name}) for name in ("a.wav", "b.wav")]
    keys = [key_of(prompt) for prompt in (*clips, RING)]
    assert len(set(keys)) == 3 and all(len(key) == 12 for key in keys)
    assert key_of(replace(RING, id=9, metadata={"category": "colour"})) == keys[2]
    assert set_hash(keys) == set_hash(keys[::-1]) != set_hash(keys[:2])
    assert key_of(Prompt(0, "half a pair \ud800"))
