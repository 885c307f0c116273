"""Completions of two rows to the same questions, side by side, in Markdown and LaTeX.

Two rows of an evaluation of text are paired by prompt, sampling seed and sample; two runs by
iteration, prompt and sample of `samples/completions-NNNNNN.parquet`. Shown are the first questions
to which the answers differ; nobody chooses them.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Any

from adrpo_scale.core import markdown
from adrpo_scale.core.printable import printable
from adrpo_scale.evaluation.report.comparison import by_seed, labels
from adrpo_scale.evaluation.report.evaluated import ROW, Evaluated
from adrpo_scale.evaluation.report.figures.base import LeftOut
from adrpo_scale.evaluation.report.latex import escaped
from adrpo_scale.evaluation.report.paired_completions import paired_completions

NAME = "completions"
QUESTIONS, LONGEST = 3, 1200  # questions; characters of a text
_RECORD = re.compile(r"completions-(\d+)\.parquet")

Key = tuple[Any, ...]


@dataclass(frozen=True)
class Answer:
    """scores: name → number or None."""

    label: str
    text: str
    scores: Mapping[str, float | None]


@dataclass(frozen=True)
class Pair:
    """Two answers to a question. of: which sample it is."""

    question: str
    of: str
    answers: tuple[Answer, Answer]


def paired(runs: Sequence[Evaluated]) -> list[Pair] | LeftOut:
    """The first pairs of the first two rows that have any."""
    groups = by_seed([run for run in runs if run.rows])
    rows = [(label, group[0]) for label, group in zip(labels(groups), groups, strict=True)]
    for (one, first), (other, second) in combinations(rows, 2):
        if (ROW in first.settings) != (ROW in second.settings):
            continue
        given = _of_rows(first, second) if ROW in first.settings else _of_runs(first, second)
        found = [
            Pair(key[0], of, (Answer(one, *a), Answer(other, *b)))
            for key, (of, a, b) in given.items()
            if a[0] != b[0]
        ]
        if found:
            distinct = {pair.question: pair for pair in reversed(found)}
            return [pair for pair in found if distinct[pair.question] is pair][:QUESTIONS]
    return LeftOut(
        NAME,
        "no two rows have completions of the same prompt and noise that differ (evaluations of "
        "text; logging.completions_every)",
    )


_Text = tuple[str, Mapping[str, float | None]]


def _of_rows(one: Evaluated, other: Evaluated) -> dict[Key, tuple[str, _Text, _Text]]:
    return {
        (pair.asked.prompt, pair.asked.set, pair.asked.id, pair.noise): (
            f"sampling seed {pair.noise.seed}, sample {pair.noise.number}",
            (pair.one.text or "", pair.one.scores),
            (pair.other.text or "", pair.other.scores),
        )
        for pair in paired_completions(one.folder, other.folder)
    }


def _of_runs(one: Evaluated, other: Evaluated) -> dict[Key, tuple[str, _Text, _Text]]:
    """Of the last iteration that both have recorded; samples of one number began from the same
    draws where the seeds are the same."""
    if one.seed_text != other.seed_text:
        return {}
    records = [_records(run.folder) for run in (one, other)]
    for iteration in sorted({*records[0]} & {*records[1]}, reverse=True):
        first, second = (_record_texts(of[iteration]) for of in records)
        common = {key: (first[key], second[key]) for key in first if key in second}
        if common:
            at = f"training seed {one.seed}, iteration {iteration}"
            return {key: (f"{at}, sample {key[1]}", *pair) for key, pair in common.items()}
    return {}


def _records(folder: Path) -> dict[int, Path]:
    found = {path: _RECORD.fullmatch(path.name) for path in (folder / "samples").glob("*.parquet")}
    return {int(match[1]): path for path, match in found.items() if match}


def _record_texts(path: Path) -> dict[Key, _Text]:
    import pyarrow
    from pyarrow import parquet

    try:
        rows = parquet.read_table(path).to_pylist()
    except (OSError, pyarrow.ArrowException):
        return {}
    found: dict[Key, _Text] = {}
    for row in rows:
        prompt, text = row.get("prompt"), row.get("completion")
        if isinstance(prompt, str) and isinstance(text, str):
            given = {k.removeprefix("reward_"): v for k, v in row.items() if k[:7] == "reward_"}
            found[prompt, str(row.get("sample"))] = (text, given)
    return found


# --- texts ----------------------------------------------------------------------------------------


def _short(text: str) -> str:
    if len(text) <= LONGEST:
        return printable(text.strip())
    return f"{printable(text[:LONGEST].strip())} … ({len(text)} characters)"


def _scores(answer: Answer) -> str:
    known = [f"{name} {v:.4g}" for name, v in answer.scores.items() if v is not None]
    return f" ({', '.join(known)})" if known else ""


def completions_md(pairs: Sequence[Pair]) -> str:
    """A heading a question, its text, and each answer as a block of text."""
    parts = []
    for number, pair in enumerate(pairs, 1):
        parts.append(f"## Question {number}: {markdown.inline(pair.of)}\n\n{_block(pair.question)}")
        for answer in pair.answers:
            head = markdown.inline(f"{answer.label}{_scores(answer)}")
            parts.append(f"**{head}**\n\n{_block(answer.text)}")
    return "\n\n".join(parts) + "\n"


def _block(text: str) -> str:
    """A text between more backticks than it has in a row."""
    text = _short(text)
    longest = max(map(len, re.findall("`+", text)), default=0)
    fence = "`" * max(3, longest + 1)
    return f"{fence}text\n{text}\n{fence}"


def completions_tex(pairs: Sequence[Pair]) -> str:
    """The question above two columns, one an answer."""
    parts = []
    for pair in pairs:
        columns = [
            "\n".join(
                [
                    r"\begin{minipage}[t]{.48\linewidth}\raggedright",
                    rf"\textbf{{{escaped(answer.label + _scores(answer))}}}\par",
                    _paragraphs(answer.text),
                    r"\end{minipage}",
                ]
            )
            for answer in pair.answers
        ]
        head = rf"\noindent\textit{{{escaped(pair.of)}}}\par"
        both = f"\\noindent\n{columns[0]}\\hfill\n{columns[1]}\\par\\medskip"
        parts.append("\n".join([head, _paragraphs(pair.question), r"\smallskip", both]))
    return "\n\n".join(parts) + "\n"


def _paragraphs(text: str) -> str:
    lines = [escaped(line) for line in _short(text).splitlines() if line.strip()]
    return "\n".join(rf"{line}\par" for line in lines)
