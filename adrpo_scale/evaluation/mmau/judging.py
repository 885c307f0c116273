"""Judgements of predictions; pure functions.

Three measures stand side by side, because published numbers use different ones:

* `strict`: the last `<answer>` names the right option, by the rule of the reward `choice`; a
  prediction without the tag is wrong.
* `strict_untagged`: the same rule, applied to the whole prediction where there is no tag; for
  models that were not trained to write one.
* `benchmark`: the rule of MMAU's own scorer, applied to the submitted text (inside the tag, or the
  whole prediction without one): it holds all words of the right option, and no word that occurs in
  other options alone. By this rule, a wrong option is right if it holds all words of the right one
  and no word of its own; and "The answer is X." is wrong if another option has one of its words.

A question without a prediction (None) counts as wrong in the first two. MMAU's scorer leaves it out
of the denominator; so does `benchmark`, whose `n` is then smaller.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from adrpo_scale.core.chat_endpoint import Answer
from adrpo_scale.evaluation.mmau.base import TASKS, Question
from adrpo_scale.evaluation.report.evaluated import MEASURES as MEASURES
from adrpo_scale.rewards.audio import chosen, option_text
from adrpo_scale.rewards.text import extract_answer

TOTAL = "total"
_WORD = re.compile(r"\b\w+\b")


@dataclass(frozen=True)
class Judgement:
    """The judgement of one question. benchmark: None where there is no prediction. tagged: the
    prediction has an `<answer>`. named: the option that it names, with or without the tag.
    is_cut: it reached the limit of its length."""

    strict: bool
    strict_untagged: bool
    benchmark: bool | None
    tagged: bool
    named: str | None
    is_cut: bool = False

    @property
    def is_unparsed(self) -> bool:
        """True for a prediction that names no option."""
        return self.benchmark is not None and self.named is None

    @property
    def is_untagged(self) -> bool:
        return self.benchmark is not None and not self.tagged


@dataclass(frozen=True)
class Tally:
    """The metrics of one subset: metric → (value, number of questions). Accuracies are in [0, 1],
    other values are counts."""

    subset: str
    metrics: dict[str, tuple[float, int]]


def submitted(prediction: str) -> str:
    """The text for the benchmark: that inside the last `<answer>`, or the whole prediction without
    one. Its scorer would count wrong options in the reasoning against the answer."""
    answer = extract_answer(prediction)
    return (prediction if answer is None else answer).strip()


def words(text: str) -> set[str]:
    return set(_WORD.findall(text.lower()))


def benchmark_match(prediction: str, answer: str, choices: Iterable[str]) -> bool:
    """MMAU's rule (evaluation.py of github.com/Sakshi113/MMAU), on lower-cased words: the
    prediction holds every word of the answer, and none that only other options have."""
    found, right = words(prediction), words(answer)
    wrong = {word for choice in choices for word in words(choice)} - right
    return bool(found) and right <= found and not found & wrong


def judge(question: Question, prediction: Answer | None) -> Judgement:
    """Judges one prediction by all three measures."""
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
    """Tallies of sound, music, speech and total, then of each difficulty and each sub-category."""
    found: dict[str, list[Judgement]] = {name: [] for name in (*TASKS, TOTAL)}
    found |= {name: [] for name in sorted(f"difficulty:{q.difficulty}" for q in questions)}
    found |= {name: [] for name in sorted(f"sub_category:{q.sub_category}" for q in questions)}
    for q, one in zip(questions, judgements, strict=True):
        for name in (q.task, TOTAL, f"difficulty:{q.difficulty}", f"sub_category:{q.sub_category}"):
            found[name].append(one)
    return [tally(name, subset) for name, subset in found.items()]
