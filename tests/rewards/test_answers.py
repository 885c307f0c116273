"""Reference answers as people's files have them: which are refused, and what is paid for."""

from __future__ import annotations

import pytest
import torch

from adrpo_scale.core.errors import RewardError
from adrpo_scale.core.naming import all_places, ranges
from adrpo_scale.core.types import Completion, Prompt
from adrpo_scale.rewards.answers import number_in, reference_answer
from adrpo_scale.rewards.audio import Choice, ChoiceConfig
from adrpo_scale.rewards.text import ExactAnswer, ExactAnswerConfig, MathVerify, MathVerifyConfig
from adrpo_scale.run.build import build_trainer
from tests.support.tiny_text import text_config

CPU = torch.device("cpu")
EXACT = ExactAnswer(ExactAnswerConfig(), CPU)
MATH = MathVerify(MathVerifyConfig(), CPU)
NULL = [None, None, None, None]
EMPTY = ["", " ", "\n", ""]
LISTS = [["4 6"], ["1 6 7"], [], ["3 3"]]
DICTS = [{"target": ["4 6"]}, {"target": ["1 6 7"]}, {}, {"target": ["3 3"]}]
NOT_FINITE = [float("nan"), float("inf"), float("-inf"), float("nan")]
FIGURES = ["see the figure"] * 4


def prompts(answers):
    return [Prompt(n, f"add 1 {n}", {"answer": answer}) for n, answer in enumerate(answers)]


def paid(reward, answer, *texts):
    prompt = Prompt(0, "?", {"answer": answer})
    return reward([Completion(text) for text in texts], [prompt] * len(texts)).tolist()


@pytest.mark.parametrize("reward", [EXACT, MATH, Choice(ChoiceConfig(), CPU)])
@pytest.mark.parametrize(
    ("answers", "what"),
    [
        (NULL, "has answer = null, where a text or a number is expected"),
        (EMPTY, "has answer = '', empty, where a text"),
        (LISTS, r"has answer = \['4 6'\], a list, where .*one text or number.*answer_key"),
        (DICTS, ", a dictionary, where .*one text or number.*rewards.answer_key"),
        (NOT_FINITE, "has answer = nan, not finite, where"),
    ],
)
def test_rows_that_nothing_can_match_are_refused_all_at_once(reward, answers, what):
    with pytest.raises(RewardError, match=what) as error:
        reward.check(prompts(answers))
    assert "prompt 0 'add 1 0'" in str(error.value)
    assert "; the same holds for prompts 1-3: " in str(error.value)


def test_each_kind_of_fault_is_a_line_and_sound_rows_are_not_named():
    with pytest.raises(RewardError) as error:
        EXACT.check(prompts(["4", None, ["4"], 4, None, ".", "None", True, None]))
    lines = str(error.value).splitlines()
    assert [line.split(" has ")[0] for line in lines] == [
        "reward exact_answer: prompt 1 'add 1 1'",
        "reward exact_answer: prompt 2 'add 1 2'",
        "reward exact_answer: prompt 5 'add 1 5'",
    ]
    assert "; the same holds for prompts 4, 8: give the row its answer" in lines[0]


def test_only_a_reward_that_expects_a_number_refuses_answers_without_one():
    with pytest.raises(RewardError, match=r"'see the figure', in which math-verify .*prompts 1-3"):
        MATH.check(prompts(FIGURES))
    EXACT.check(prompts(FIGURES))
    assert paid(EXACT, FIGURES[0], "<answer>See the figure.</answer>") == [1]
    MATH.check(prompts([46.0, "46", r"\pi", "x+1", "a", r"$\frac{1}{2}$", "(3, 4)"]))


def test_nothing_is_paid_for_none_or_for_an_empty_tag():
    with pytest.raises(RewardError):
        paid(EXACT, None, "<answer>None</answer>")
    assert paid(EXACT, "4", "<answer></answer>", "<answer>None</answer>", "") == [0, 0, 0]
    assert paid(EXACT, ".", "<answer></answer>", "<answer>.</answer>") == [0, 0]


def test_numbers_are_compared_as_numbers():
    right = [f"<answer>{text}</answer>" for text in ("46", "46.0", " 46.00.\n", "+46", "4.6e1")]
    wrong = [f"<answer>{text}</answer>" for text in ("47", "46.5", "4 6", "046", "-46", "460e-2")]
    for answer in (46.0, 46, "46", "46.0"):
        assert paid(EXACT, answer, *right, *wrong) == [1] * 5 + [0] * 6
        assert paid(MATH, answer, *right[:3], wrong[0]) == [1, 1, 1, 0]
    assert paid(EXACT, 0.5, "<answer>.5</answer>", "<answer>0.50</answer>") == [1, 1]
    assert paid(EXACT, "1,234", "<answer>1234</answer>", "<answer>1,23,4</answer>") == [1, 0]
    assert paid(EXACT, 1e22, "<answer>10000000000000000000000</answer>") == [1]
    assert paid(EXACT, "007", "<answer>007</answer>", "<answer>7</answer>") == [1, 0]
    assert reference_answer(Prompt(0, "", {"answer": True}), "answer") == "True"
    assert number_in("−3") == -3 and number_in("1e999999") is None


def test_a_formula_without_marks_is_read_as_one():
    """What a file's column has is often `x+1`, in which math-verify alone reads nothing."""
    answers = (r"\pi", "x+1", r"\sqrt{2}")
    for answer in answers:
        assert paid(MATH, answer, f"<answer>{answer}</answer>") == [1]
        assert paid(MATH, answer, rf"so it is $\boxed{{{answer}}}$", "<answer>3</answer>") == [1, 0]


def test_a_run_that_began_before_answers_were_checked_resumes(caplog):
    made = ExactAnswer(ExactAnswerConfig(), CPU)
    made.resumes = True
    rows = prompts(["4", None])
    made.check(rows)
    assert "is 0 where nothing can be right: prompt 1 'add 1 1' has answer = null" in caplog.text
    texts = [Completion("<answer>4</answer>"), Completion("<answer>None</answer>")]
    assert made(texts, rows).tolist() == [1, 0]


def test_all_rewards_tell_of_their_rows_before_anything_is_loaded(tmp_path):
    rewards = 'rewards=[{kind="exact_answer", answer_key="a"}, {kind="choice"}]'
    config = text_config(tmp_path / "model", [rewards])
    (tmp_path / "model" / "model.safetensors").unlink()
    with pytest.raises(RewardError) as error:
        build_trainer(config, tmp_path / "run")
    assert error.value.agreed
    lines = str(error.value).splitlines()
    place = f"{config.prompts.train}, line"
    first = f"prompt 0 'w1 w2' ({place} 1) has"
    assert lines[0].startswith(f"reward exact_answer: {first} no 'a' beside its text")
    assert f"the same holds for {place}s 2-6: add it to the prompt file" in lines[0]
    assert lines[1].startswith(f"reward choice: {first} choices = None") and not lines[2:]


def test_places_are_listed_by_file():
    lines = [Prompt(i, "", place=f"a.jsonl, line {i + 2}") for i in (3, 0, 1, 7)]
    rows = [Prompt(9, "", place="d, x/part.parquet row 4"), Prompt(5, ""), Prompt(6, "")]
    entries = [Prompt(i, "", place=f"b.json, entry {i}") for i in (1, 2)]
    said = all_places([*lines, *rows, *entries])
    assert said == (
        "a.jsonl, lines 2-3, 5, 9; d, x/part.parquet row 4; prompts 5-6; b.json, entries 1-2"
    )


def test_numbers_of_prompts_are_listed_as_ranges():
    assert ranges([7, 1, 2, 3, 9, 10]) == "1-3, 7, 9-10"
    assert ranges(range(0, 1000, 2)).endswith("118 and 440 more")
