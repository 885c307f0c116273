"""MMAU's rule of what a right answer is, and the files of its questions."""

from __future__ import annotations

import json
import math
import statistics

import pytest

from adrpo_scale.core.chat_endpoint import Answer
from adrpo_scale.core.errors import PromptError
from adrpo_scale.data.clips import read_clip
from adrpo_scale.data.prepare.mmau import MmauOptions, prepare_mmau
from adrpo_scale.evaluation.mmau import evaluate, predictions
from adrpo_scale.evaluation.mmau.base import (
    PAPER,
    PublishedRow,
    load_benchmark,
)
from adrpo_scale.evaluation.mmau.judging import benchmark_match, judge, submitted, tallies
from adrpo_scale.evaluation.mmau.tables import NO_PAPER, main_table, page, question_error
from adrpo_scale.evaluation.samples import evenly
from tests.support.mmau import ANIMALS, CONFIG, make_data, question, rewrite
from tests.support.tiny_audio import save_clip

# ---- judgements ----------------------------------------------------------------------------------


# (prediction, answer, choices): strict, strict without a tag too, the benchmark's, parsed
RULES = [
    ("<answer>Dog</answer>", "Dog", ANIMALS, (1, 1, 1, 1)),
    ("<think>A cat?\nNo, rain.</think>\n<answer>\ndog.\n</answer>", "Dog", ANIMALS, (1, 1, 1, 1)),
    ("Dog", "Dog", ANIMALS, (0, 1, 1, 1)),  # no tag
    ("<answer>B</answer>", "Dog", ANIMALS, (1, 1, 0, 1)),  # a letter alone
    ("(B)", "Dog", ANIMALS, (0, 1, 0, 1)),
    ("<answer>(B) Dog</answer>", "Dog", ANIMALS, (1, 1, 1, 1)),
    ("<answer>Rain</answer>", "Dog", ANIMALS, (0, 0, 0, 1)),
    ("<answer>Rain</answer> then <answer>Dog</answer>", "Dog", ANIMALS, (1, 1, 1, 1)),
    # An option inside another: its words stand there, and one that only the other has.
    ("<answer>Big dog</answer>", "Dog", ANIMALS, (0, 0, 0, 1)),
    ("<answer>Dog</answer>", "Big dog", ANIMALS, (0, 0, 0, 1)),
    # The wrong option has the right one's words and no others: right by the benchmark's rule.
    ("<answer>dog dog</answer>", "Dog", ("Dog", "Dog dog"), (0, 0, 1, 1)),
    ("<answer>piano, violin</answer>", "violin, piano", ("violin, piano", "piano, violin"),
     (0, 0, 1, 1)),
    # In a sentence: the benchmark's rule takes it, unless another option has a word of it.
    ("The answer is Dog.", "Dog", ANIMALS, (0, 0, 1, 0)),
    ("<answer>The answer is dog</answer>", "Dog", ("Dog", "The cat"), (0, 0, 0, 0)),
    # Both options: a word of the wrong one.
    ("<answer>Dog or Cat</answer>", "Dog", ANIMALS, (0, 0, 0, 0)),
    # Options that stand there twice, right and wrong.
    ("<answer>D</answer>", "six", ("one", "six", "two", "six"), (1, 1, 0, 1)),
    ("<answer>six</answer>", "six", ("one", "six", "two", "six"), (1, 1, 1, 1)),
    ("<answer>A</answer>", "six", ("one", "six", "one"), (0, 0, 0, 1)),
    # Options that are letters.
    ("<answer>D</answer>", "D", ("G", "A#", "D", "E"), (1, 1, 1, 1)),
    ("<answer>A#</answer>", "A#", ("A", "A#"), (1, 1, 1, 1)),
    ("<answer>A</answer>", "A#", ("A", "A#"), (0, 0, 1, 1)),  # the benchmark drops the "#"
    ("", "Dog", ANIMALS, (0, 0, 0, 0)),
    ("<answer> </answer>", "Dog", ANIMALS, (0, 0, 0, 0)),
    ("...", "Dog", ANIMALS, (0, 0, 0, 0)),
    ("<answer>Dog", "Dog", ANIMALS, (0, 0, 1, 0)),  # cut off; "answer" is no option's word
]  # fmt: skip


@pytest.mark.parametrize(("prediction", "answer", "choices", "expected"), RULES)
def test_the_rules(prediction, answer, choices, expected):
    found = judge(question(answer, choices), Answer(prediction))
    assert (
        found.strict,
        found.strict_untagged,
        found.benchmark,
        not found.is_unparsed,
    ) == tuple(map(bool, expected))


def test_the_benchmarks_rule_counts_words_without_case_and_needs_all_of_them():
    assert benchmark_match("A LOUD dog!", "loud dog", ["loud dog", "cat"])
    assert not benchmark_match("dog", "loud dog", ["loud dog", "cat"])
    assert benchmark_match("1.63 seconds", "1.63 seconds", ["1.63 seconds", "2.74 seconds"])
    assert not benchmark_match("", "", ["", "x"])  # no word is never right
    assert benchmark_match("dog", "dog", ["dog", "Dog"])  # a choice of the same words is not wrong


def test_reasoning_is_not_handed_in():
    assert submitted("<think>Cat?</think><answer>\nDog\n</answer>") == "Dog"
    assert submitted(" no tag ") == "no tag"


def test_tallies_by_task_difficulty_and_sub_category():
    asked = [question(task=task, id=str(n)) for n, task in enumerate(["sound"] * 3 + ["music"] * 2)]
    texts = ["<answer>Dog</answer>", "Dog", None, "<answer>what?</answer>", "<answer>Cat</answer>"]
    answers = [None if text is None else Answer(text, text == "Dog") for text in texts]
    found = {t.subset: t.metrics for t in tallies(asked, list(map(judge, asked, answers)))}
    assert list(found) == ["sound", "music", "speech", "total", "difficulty:easy",
                           "sub_category:kind"]  # fmt: skip
    assert found["sound"]["strict"] == (1 / 3, 3)
    assert found["sound"]["strict_untagged"] == (2 / 3, 3)
    assert found["sound"]["benchmark"] == (1.0, 2)  # without a prediction: left out, as it does
    assert found["sound"]["cut_off"] == (1, 3) and found["music"]["cut_off"] == (0, 2)
    assert found["sound"]["unanswered"] == (1, 3) and found["sound"]["untagged"] == (1, 3)
    assert found["music"]["unparsed"] == (1, 2) and found["music"]["strict"] == (0.0, 2)
    assert math.isnan(found["speech"]["strict"][0]) and found["speech"]["strict"][1] == 0
    assert found["total"] == found["difficulty:easy"] == found["sub_category:kind"]
    assert found["total"]["strict"] == (1 / 5, 5) and found["total"]["benchmark"] == (2 / 4, 4)


def test_the_table_has_published_lines_where_the_config_has_them():
    asked = [question()]
    found = tallies(asked, [judge(asked[0], Answer("<answer>B</answer>", is_cut=True))])
    plain = main_table("mine", found, {})
    assert "| strict: the option inside `<answer>` | 100.00 | – | – | 100.00 |" in plain
    assert "| unparsed: names no option | 0 of 1 | 0 of 0 | 0 of 0 | 0 of 1 |" in plain
    assert (
        "| cut off: reached the limit of its length | 1 of 1 | 0 of 0 | 0 of 0 | 1 of 1 |" in plain
    )
    assert "paper" not in plain and "not shown" in NO_PAPER
    row = PublishedRow(sound=1.0, music=2.0, speech=3.0, total=2.5)  # not the paper's
    others = row.model_copy(update={"source": "a board"})
    both = main_table("mine", found, {"theirs": row, "another": others})
    ours, theirs = both.split("\n\n")  # tables of their own
    assert ours == plain and theirs.startswith("| published by others, not comparable | sound |")
    lines = theirs.splitlines()
    assert lines[-2] == "| paper, table 2: theirs | 1.00 | 2.00 | 3.00 | 2.50 |"
    assert lines[-1] == "| a board: another | 1.00 | 2.00 | 3.00 | 2.50 |"
    assert NO_PAPER not in page("", [], "mine", found, {"theirs": row})
    assert NO_PAPER in page("", [], "mine", found, {"another": others})


def test_the_error_of_an_accuracy_is_the_standard_error_of_its_questions():
    right = [1.0] * 760 + [0.0] * 240
    expected = statistics.stdev(right) / 1000**0.5  # scipy.stats.sem: 0.013512
    assert question_error(0.76, 1000) == f"± {100 * expected:.2f}" == "± 1.35"
    assert question_error(1.0, 1) == question_error(float("nan"), 0) == "–"


# ---- data ----------------------------------------------------------------------------------------


def test_questions_are_worded_as_in_training_and_know_their_revision(tmp_path):
    data = make_data(tmp_path)
    found = load_benchmark(data, "think")
    assert len(found.questions) == 12 and found.revision == "v05.15.25" and len(found.sha256) == 64
    first = found.questions[0]
    assert first.prompt.text.startswith("Question 00: which animal?")
    assert "['Cat', 'Dog']" in first.prompt.text and "<think>" in first.prompt.text
    assert "<think>" not in load_benchmark(data, "answer").questions[0].prompt.text
    assert first.clip == ("clip.wav", data) and "audio_folder" not in first.row
    spread = evenly(found.questions, 3)
    assert [one.task for one in spread] == ["sound", "music", "speech"]
    assert evenly(found.questions, 99) == evenly(found.questions, None) == list(found.questions)


def test_the_shipped_config_has_no_figure_of_the_papers():
    config = evaluate.load_settings(CONFIG, [], None)
    assert config.variant == "think" and PAPER not in {
        row.source for row in config.published.values()
    }


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"task": "video"}, "task 'video'"),
        ({"id": "id-00"}, "one id"),
        ({"id": None}, "id None"),
        (
            {"original": None},
            "original None; expected the benchmark's own row, .*prepare mmau` again",
        ),
    ],
)
def test_what_is_no_benchmark_is_refused(tmp_path, change, expected):
    data = make_data(tmp_path)
    rewrite(data, 1, **change)
    with pytest.raises(PromptError, match=expected):
        load_benchmark(data, "answer")


def test_a_folder_that_was_not_prepared_is_refused(tmp_path):
    with pytest.raises(PromptError, match="prepare mmau"):
        load_benchmark(tmp_path, "answer")


def test_what_prepare_writes_is_read(tmp_path):
    """With the benchmark's own names of files and keys."""
    theirs = {
        "id": "3fe6",
        "audio_id": "./test-mini-audios/3fe6.wav",
        "question": " Who speaks in the video? ",
        "choices": ["Man ", "Woman"],
        "answer": "Man ",
        "dataset": "AudioSet",
        "task": "speech",
        "split": "test-mini",
        "category": "Reasoning",
        "sub-category": "Acoustic Source Inference",
        "difficulty": "medium",
    }
    (tmp_path / "audio").mkdir()
    save_clip(tmp_path / "audio" / "3fe6.wav", 0.3, 0)
    (tmp_path / "mini.json").write_text(json.dumps([theirs]))
    options = MmauOptions(tmp_path / "mini.json", tmp_path / "audio", tmp_path / "out", "v05.15.25")
    prepare_mmau(options)
    found = load_benchmark(tmp_path / "out", "answer")
    (one,) = found.questions
    assert found.revision == "v05.15.25" and one.sub_category == theirs["sub-category"]
    (row,) = predictions.submission([one], {"3fe6": Answer("<answer>Man</answer>")})
    assert list(row.items()) == [
        *theirs.items(),
        ("model_prediction", "Man"),
        ("model_output", "Man"),
    ]
    assert judge(one, Answer("<answer>man</answer>")).strict and "original" not in one.row
    assert len(read_clip(*one.clip)) == 4800
