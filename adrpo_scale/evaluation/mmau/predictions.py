"""The files of an evaluation, from which it also resumes after a kill.

    evaluation.json      identity: model, questions and settings; a folder holds one evaluation
    answers.jsonl        {id, prediction, cut}, in order of arrival; cut: the prediction reached the
                         limit of its length (absent: false). Each rank first appends to
                         answers-NNN.jsonl; rank 0 merges these files at every start and end
    questions.jsonl      a line a question: row, prediction, and its judgement
    predictions.json     the benchmark's submission format: its own rows and our predictions
    eval.jsonl           rows in the format of training's eval.jsonl
    table.md             sound, music, speech, total; difficulties; sub-categories

The last four are always rewritten from the first two, so all files agree.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

from adrpo_scale.core.chat_endpoint import Answer
from adrpo_scale.core.errors import RunFolderError
from adrpo_scale.core.files import own, replace_file, replace_json, write_all
from adrpo_scale.core.json_files import json_line, parse_object, read_lines, read_regular
from adrpo_scale.evaluation.mmau.base import Question
from adrpo_scale.evaluation.mmau.judging import Judgement, Tally, submitted
from adrpo_scale.evaluation.report.evaluated import IDENTITY

ANSWERS = "answers.jsonl"
_OF_RANKS = "answers-[0-9]*.jsonl"


def begin(folder: Path, identity: Mapping[str, Any]) -> dict[str, Answer]:
    """The answers of earlier starts, by question id; on rank 0 alone. The folder must exist. Raises
    RunFolderError if they are those of another model, other questions or other settings."""
    path = folder / IDENTITY
    try:
        known = parse_object(read_regular(path)) if os.path.lexists(path) else None
    except (OSError, ValueError) as error:
        raise RunFolderError(f"{folder} cannot be used ({error}); choose another --to") from error
    if known is not None and known != identity:
        keys = [key for key in {**known, **identity} if known.get(key) != identity.get(key)]
        differ = ", ".join(f"{key}: {known.get(key)!r} → {identity.get(key)!r}" for key in keys)
        raise RunFolderError(
            f"{folder} holds another evaluation ({differ}); choose another --to, or delete that one"
        )
    if known is None:
        replace_json(path, identity)
    return merge(folder)


def append(folder: Path, rank: int, answers: Mapping[str, Answer]) -> None:
    """Appends this rank's answers, by question id, to its file, and syncs it."""
    path = folder / f"answers-{rank:03d}.jsonl"
    descriptor = own(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    try:
        write_all(descriptor, b"".join(map(json_line, _rows(answers))))
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _rows(answers: Mapping[str, Answer]) -> list[dict[str, Any]]:
    return [
        {"id": id, "prediction": answer.text, "cut": answer.is_cut}
        for id, answer in answers.items()
    ]


def merge(folder: Path, fresh: Mapping[str, Answer] = MappingProxyType({})) -> dict[str, Answer]:
    """Merges the ranks' files into answers.jsonl; returns the first answer to each question, by id.

    On rank 0 alone, while no rank appends. fresh: this start's answers of all ranks, because a
    shared filesystem may not show the files of other nodes yet.
    """
    parts = sorted(folder.glob(_OF_RANKS))
    found = dict(fresh)
    for path in [folder / ANSWERS, *parts]:
        for line in read_lines(path):
            answer = _answer(line)
            if answer is not None:
                found.setdefault(line["id"], answer)
    if parts or fresh:
        write_lines(folder / ANSWERS, _rows(found))
        for path in parts:
            path.unlink()
    return found


def _answer(line: Mapping[str, Any]) -> Answer | None:
    """The answer of a line; None where it is none, so that the question is asked again."""
    text, cut = line.get("prediction"), line.get("cut", False)
    if isinstance(line.get("id"), str) and isinstance(text, str) and isinstance(cut, bool):
        return Answer(text, cut)
    return None


def write_lines(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    replace_file(path, b"".join(map(json_line, rows)))


def question_row(question: Question, answer: Answer | None, judgement: Judgement) -> dict[str, Any]:
    """A line of questions.jsonl."""
    judged = {
        "strict": judgement.strict,
        "strict_untagged": judgement.strict_untagged,
        "benchmark": judgement.benchmark,
        "tagged": judgement.tagged,
        "named": judgement.named,
        "cut": judgement.is_cut,
    }
    text = None if answer is None else answer.text
    handed_in = None if text is None else submitted(text)
    return question.row | {"prediction": text, "submitted": handed_in} | judged


def submission(
    questions: Sequence[Question], answers: Mapping[str, Answer]
) -> list[dict[str, Any]]:
    """The benchmark's own rows with our predictions; unanswered questions are left out. Each row
    has two keys for the prediction: MMAU's README names `model_prediction`, its evaluation.py reads
    `model_output`."""
    rows = []
    for question in questions:
        if question.id in answers:
            text = submitted(answers[question.id].text)
            rows.append({**question.original, "model_prediction": text, "model_output": text})
    return rows


def eval_rows(tallies: Sequence[Tally], identity: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Rows of eval.jsonl; their split is "mmau:" and the subset. identity: run, algorithm, seed,
    iteration."""
    return [
        {
            **identity,
            "split": f"mmau:{tally.subset}",
            "metric": metric,
            "value": value if n else None,
            "n": n,
        }
        for tally in tallies
        for metric, (value, n) in tally.metrics.items()
    ]
