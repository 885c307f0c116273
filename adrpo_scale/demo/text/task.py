"""The arithmetic task: two-digit addition, sorting and reversing; every word is one token.

A prompt is plain words, e.g. "what is 4 7 + 3 8 ?"; numbers are written digit by digit. The answer
stands inside the last `<answer> ... </answer>` of a completion, optionally after worked steps
inside `<think> ... </think>`:

    <answer> 8 5 </answer>
    <think> 7 + 8 = 1 5 ; 4 + 3 + 1 = 8 </think> <answer> 8 5 </answer>
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

TASKS = ("add", "sort", "reverse")
SHARES = (0.6, 0.2, 0.2)  # of the tasks, in this order
THINK, END_THINK, ANSWER, END_ANSWER = TAGS = ("<think>", "</think>", "<answer>", "</answer>")
GUESS = 15  # largest error of a sum guessed without reasoning
DIGITS = 4  # length of a list to sort or to reverse

_TEMPLATES = {
    "add": ("what is {} + {} ?", "add {} and {} .", "compute the sum of {} and {} ."),
    "sort": (
        "sort the digits {} .",
        "write {} in ascending order .",
        "put the digits {} in order from small to large .",
    ),
    "reverse": (
        "reverse the digits {} .",
        "write {} backwards .",
        "say the list {} from last to first .",
    ),
}
_ANSWER = re.compile(re.escape(ANSWER) + r"(.*?)" + re.escape(END_ANSWER), re.DOTALL)


@dataclass(frozen=True)
class TextPrompt:
    """A problem: its text, its numbers (("4 7", "3 8") or ("3 1 4 1",)), and the right answer."""

    text: str
    task: str
    numbers: tuple[str, ...]
    answer: str


def spell(number: int) -> str:
    """The digits of a number as words: 85 → "8 5"."""
    return " ".join(str(number))


def solve(task: str, numbers: Sequence[str]) -> str:
    """The answer to a problem, e.g. solve("add", ("4 7", "3 8")) == "8 5"."""
    if task == "add":
        return spell(sum(int(number.replace(" ", "")) for number in numbers))
    digits = numbers[0].split()
    return " ".join(sorted(digits) if task == "sort" else digits[::-1])


def reason(task: str, numbers: Sequence[str]) -> str:
    """Worked steps, each easier than the answer: column addition, or insertion of digits."""
    if task == "add":
        (tens, ones), (tens2, ones2) = (map(int, number.split()) for number in numbers)
        low = ones + ones2
        carry = low // 10
        high = tens + tens2 + carry
        first = f"{ones} + {ones2} = {carry} {low % 10}"
        return f"{first} ; {tens} + {tens2} + {carry} = {spell(high)}"
    digits = numbers[0].split()
    heads = [solve(task, [" ".join(digits[: n + 1])]) for n in range(len(digits))]
    return " ; ".join(heads)


def completion_of(prompt: TextPrompt, *, with_reasoning: bool) -> str:
    """The reference completion, without the end-of-text token."""
    answer = f"{ANSWER} {prompt.answer} {END_ANSWER}"
    if not with_reasoning:
        return answer
    return f"{THINK} {reason(prompt.task, prompt.numbers)} {END_THINK} {answer}"


def draw_demonstration(
    prompt: TextPrompt, rng: np.random.Generator, *, with_reasoning: bool
) -> str:
    """A demonstration for the base policy: `completion_of`, but sums without reasoning are guessed.

    A guess is within `GUESS` of the sum. Right sums would be learnt abruptly, at a step that
    depends on rounding, and would leave nothing to learn for reinforcement learning.
    """
    if with_reasoning or prompt.task != "add":
        return completion_of(prompt, with_reasoning=with_reasoning)
    guess = int(prompt.answer.replace(" ", "")) + int(rng.integers(-GUESS, GUESS + 1))
    return f"{ANSWER} {spell(guess)} {END_ANSWER}"


def extract_answer(completion: str) -> str | None:
    """The text of the last `<answer> ... </answer>`, whitespace collapsed; None without one."""
    found = _ANSWER.findall(completion)
    return " ".join(found[-1].split()) if found else None


def is_correct(completion: str, answer: str) -> bool:
    """True where the last answer of a completion is `answer`, up to whitespace."""
    return extract_answer(completion) == " ".join(answer.split())


def draw_prompt(rng: np.random.Generator, task: str | None = None) -> TextPrompt:
    """One problem of `task`, or of a task drawn in the proportions of `SHARES`."""
    task = task or TASKS[rng.choice(len(TASKS), p=SHARES)]
    if task == "add":
        numbers = tuple(spell(int(number)) for number in rng.integers(10, 100, size=2))
    else:
        numbers = (" ".join(str(digit) for digit in rng.integers(0, 10, size=DIGITS)),)
    template = _TEMPLATES[task][rng.integers(len(_TEMPLATES[task]))]
    return TextPrompt(template.format(*numbers), task, numbers, solve(task, numbers))


def problem_of(prompt: TextPrompt) -> tuple[str, tuple[str, ...]]:
    """The problem of a prompt, without its wording; splits share no problem."""
    return prompt.task, prompt.numbers


def split_prompts(
    seed: int = 0, *, train: int = 400, held_out: int = 100
) -> tuple[list[TextPrompt], list[TextPrompt]]:
    """(train, held out), both in the proportions of `SHARES` up to one prompt, in random order.

    The two share no problem, in any wording.
    """
    rng = np.random.default_rng(seed)
    sides: tuple[list[TextPrompt], list[TextPrompt]] = ([], [])
    seen: set[tuple[str, tuple[str, ...]]] = set()
    for side, size in zip(sides, (train, held_out), strict=True):
        for task, share in zip(TASKS, SHARES, strict=True):
            wanted = len(side) + round(share * size)
            while len(side) < wanted:
                prompt = draw_prompt(rng, task)
                if problem_of(prompt) not in seen:
                    seen.add(problem_of(prompt))
                    side.append(prompt)
        side.sort(key=lambda _: rng.random())
    return sides


def to_row(prompt: TextPrompt) -> dict[str, str]:
    """The line of a prompt file."""
    return {"prompt": prompt.text, "answer": prompt.answer, "task": prompt.task}


def words() -> list[str]:
    """Every word of prompts and completions, sorted."""
    templates = " ".join(t for group in _TEMPLATES.values() for t in group).replace("{}", " ")
    return sorted({*templates.split(), *map(str, range(10)), *TAGS, "+", "=", ";"})
