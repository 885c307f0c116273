"""The reward of multiple-choice questions: which writings name which option."""

from __future__ import annotations

import pytest
import torch

from adrpo_scale.core.errors import RewardError
from adrpo_scale.core.types import Completion, Prompt
from adrpo_scale.rewards.audio import Choice, ChoiceConfig, chosen, option_text
from adrpo_scale.rewards.text import Format, FormatConfig
from adrpo_scale.run.build import build_trainer
from adrpo_scale.run.registry import REWARDS
from tests.support.tiny_text import text_config

CPU = torch.device("cpu")
SOUNDS = ["Cat meowing", "Dog barking", "A woman", "Rain"]
DOG = Prompt(3, "What is heard?", {"answer": "Dog barking", "choices": SOUNDS})


def values(*texts, prompt=DOG, **settings):
    made = Choice(ChoiceConfig(**settings), CPU)
    return made([Completion(text) for text in texts], [prompt] * len(texts)).tolist()


@pytest.mark.parametrize(
    "inside",
    [
        "Dog barking",
        "dog BARKING",
        "\n  dog\n  barking\n",
        "Dog barking.",
        "dog barking!",
        "'Dog barking'",
        "**Dog barking**.",
        "B",
        "b",
        "(B)",
        "(b).",
        "[B]",
        "B.",
        "b)",
        "B:",
        "**B**",
        "B. dog barking",
        "b) Dog barking.",
        "(B) dog barking",
        "B: dog\nbarking",
    ],
)
def test_what_names_the_right_option(inside):
    assert values(f"<think>\n?\n</think>\n<answer>{inside}</answer>") == [1]


@pytest.mark.parametrize(
    "inside",
    [
        "",
        " \n",
        ".",
        "Rain",
        "dog",
        "dog barking loudly",
        "Dog barking or Rain",
        "The answer is dog barking",
        "A",
        "E",
        "BB",
        "B D",
        "A. dog barking",  # contradicts itself
        "B. Rain",
        "B dog barking",  # no mark: would make "A woman" a letter and a text
        "2",
    ],
)
def test_what_does_not(inside):
    assert values(f"<answer>{inside}</answer>") == [0]


def test_the_last_answer_counts_and_no_tag_is_wrong():
    texts = ["Dog barking", "B", "<answer>B", "<answer>B</answer> <answer>A</answer>"]
    assert values(*texts, "<answer>A</answer> no: <ANSWER>\nB\n</ANSWER>") == [0, 0, 0, 0, 1]


def test_an_option_that_begins_as_a_letter_does_is_a_text():
    assert chosen("A woman", SOUNDS) == "a woman"
    assert chosen("woman", SOUNDS) is None
    assert chosen("C. a woman", SOUNDS) == "a woman"


def test_where_options_are_letters_a_letter_is_a_text_alone():
    notes = ["G", "A#", "D", "E"]
    assert chosen("D", notes) == "d" and chosen("d.", notes) == "d"
    assert chosen("A", notes) is None  # not the first option
    assert chosen("A#", notes) == "a#" and chosen("B", notes) is None
    assert chosen("B", ["B", "A"]) == "b"


def test_options_of_one_text_are_one_option():
    prompt = Prompt(0, "?", {"answer": "one", "choices": ["one", "six", "One."]})
    texts = [f"<answer>{inside}</answer>" for inside in ("one", "A", "C", "C. one", "B")]
    assert values(*texts, prompt=prompt) == [1, 1, 1, 1, 0]


def test_an_option_inside_another_is_not_it():
    choices = ["piano", "piano and violin"]
    assert chosen("piano", choices) == "piano"
    assert chosen("piano and violin", choices) == "piano and violin"
    assert chosen("violin", choices) is None


def test_marks_inside_an_option_count():
    assert option_text("3/4.") == "3/4" and option_text("-5") == "-5" and option_text("C#") == "c#"
    assert chosen("C", ["C#", "Cm"]) is None


def test_other_columns_can_hold_answer_and_options():
    prompt = Prompt(0, "?", {"gold": "x y", "options": ("x y", "z w")})
    keys = {"answer_key": "gold", "choices_key": "options"}
    assert values("<answer>A</answer>", "<answer>z w</answer>", prompt=prompt, **keys) == [1, 0]


@pytest.mark.parametrize(
    ("metadata", "expected"),
    [
        ({"choices": SOUNDS}, r"prompt 3 '\?' has no 'answer' .*rewards.answer_key"),
        ({"answer": "Rain"}, r"has choices = None, a list of texts is expected.*choices_key"),
        ({"answer": "Rain", "choices": "Rain"}, r"has choices = 'Rain'"),
        ({"answer": "1", "choices": SOUNDS}, r"right answer '1' is none of its options"),
        ({"answer": "B", "choices": SOUNDS}, r"not its letter or number"),
        ({"answer": ".", "choices": ["", "x"]}, r"right answer '.' is none"),
    ],
)
def test_prompts_without_answer_or_options_are_found_first(metadata, expected):
    made = Choice(ChoiceConfig(), CPU)
    with pytest.raises(RewardError, match=expected):
        made.check([DOG, Prompt(3, "?", metadata)])
    made.check([DOG])


def test_a_run_whose_prompts_have_no_options_does_not_begin(tmp_path):
    config = text_config(tmp_path / "model", ['rewards=[{kind="choice"}]'])
    with pytest.raises(RewardError, match=r"has choices = None") as error:
        build_trainer(config, tmp_path / "run")
    assert error.value.agreed


def test_form_and_choice_are_two_rewards_with_names_of_their_own():
    assert REWARDS["choice"] is Choice
    form = Format(FormatConfig(), CPU)
    texts = [
        "<think>x</think><answer>B</answer>",
        "<answer>B</answer>",
        "<think></think><answer>A</answer>",
    ]
    assert values(*texts) == [1, 1, 0]
    assert form([Completion(text) for text in texts], [DOG] * 3).tolist() == [1, 0, 1]
    assert {form.label, Choice(ChoiceConfig(), CPU).label} == {"format", "choice"}
