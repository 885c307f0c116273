"""Judgements of predictions, as pure functions.

Three ways of being right, side by side, because published numbers differ in which they use:

* `strict`: the last `<answer>` names the right option, as the reward `choice` has it; a prediction
  without the tag is wrong.
* `strict_untagged`: the same, but of the whole prediction where there is no tag: for models that
  were not trained to write one.
* `benchmark`: MMAU's own scorer, by its rules, on what is submitted (inside the tag, or everything
  where there is none): all words of the right option are there, and no word that stands only in
  other options. By this rule a wrong option that holds the right one's words and only shared ones
  is right, and "The answer is X." is wrong where another option has a word of the sentence.

A question without a prediction (None) counts as wrong in the first two. The benchmark's scorer
leaves it out of its denominator, and so does `benchmark`, whose `n` says so.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from adrpo_scale.evaluation.mmau.base import TASKS, Answer, Question
from adrpo_scale.rewards.audio import chosen, option_text
from adrpo_scale.rewards.text import extract_answer

TOTAL = "total"
MEASURES = ("strict", "strict_untagged", "benchmark")
_WORD = re.compile(r"\b\w+\b")


@dataclass(frozen=True)
class Judgement:
    """Of one question. named: the option that the prediction names, tag or not.
    benchmark: None where there is no prediction. is_cut: the prediction reached the limit of its
    length."""

    strict: bool
    strict_untagged: bool
    benchmark: bool | None
    tagged: bool
    named: str | None
    is_cut: bool = False

    @property
    def is_unparsed(self) -> bool:
        """There is a prediction, and no option can be made out of it."""
        return self.benchmark is not None and self.named is None

    @property
    def is_untagged(self) -> bool:
        return self.benchmark is not None and not self.tagged


@dataclass(frozen=True)
class Tally:
    """metric → (value, how many questions it is of), of one subset; accuracies are in [0, 1], the
    others are counts."""

    subset: str
    metrics: dict[str, tuple[float, int]]


def submitted(prediction: str) -> str:
    """What is handed in to the benchmark: inside the last `<answer>`, everything without one.
    Reasoning names wrong options too, which its scorer would count against the answer."""
    answer = extract_answer(prediction)
    return (prediction if answer is None else answer).strip()


def words(text: str) -> set[str]:
    return set(_WORD.findall(text.lower()))


def benchmark_match(prediction: str, answer: str, choices: Iterable[str]) -> bool:
    """MMAU's rule (evaluation.py of github.com/Sakshi113/MMAU), on words without case: every word
    of the answer stands there, and none that other options have and the answer has not."""
    found, right = words(prediction), words(answer)
    wrong = {word for choice in choices for word in words(choice)} - right
    return bool(found) and right <= found and not found & wrong


def judge(question: Question, prediction: Answer | None) -> Judgement:
    if prediction is None:
        return Judgement(False, False, None, False, None)
    tagged = extract_answer(prediction.text) is not None
    text = submitted(prediction.text)
    named = chosen(text, question.choices)
    is_right = named is not None and named == option_text(question.answer)
    benchmark = benchmark_match(text, question.answer, question.choices)
    return Judgement(tagged and is_right, is_right, benchmark, tagged, named, prediction.is_cut)


def tally(subset: str, judgements: Sequence[Judgement]) -> Tally:
    """Means and counts of one subset."""
    n = len(judgements)
    answered = [one.benchmark for one in judgements if one.benchmark is not None]
    return Tally(
        subset,
        {
            "strict": _mean([one.strict for one in judgements]),
            "strict_untagged": _mean([one.strict_untagged for one in judgements]),
            "benchmark": _mean(answered),
            "unparsed": (sum(one.is_unparsed for one in judgements), n),
            "untagged": (sum(one.is_untagged for one in judgements), n),
            "cut_off": (sum(one.is_cut for one in judgements), n),
            "unanswered": (n - len(answered), n),
        },
    )


def _mean(right: Sequence[bool]) -> tuple[float, int]:
    return (sum(right) / len(right) if right else float("nan"), len(right))


def tallies(questions: Sequence[Question], judgements: Sequence[Judgement]) -> list[Tally]:
    """Sound, music, speech, total, then each difficulty and each sub-category that there is."""
    found: dict[str, list[Judgement]] = {name: [] for name in (*TASKS, TOTAL)}
    found |= {name: [] for name in sorted(f"difficulty:{q.difficulty}" for q in questions)}
    found |= {name: [] for name in sorted(f"sub_category:{q.sub_category}" for q in questions)}
    for q, one in zip(questions, judgements, strict=True):
        for name in (q.task, TOTAL, f"difficulty:{q.difficulty}", f"sub_category:{q.sub_category}"):
            found[name].append(one)
    return [tally(name, subset) for name, subset in found.items()]
