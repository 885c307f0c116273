"""What an evaluation leaves behind, and how it goes on after a kill.

    evaluation.json      which model was asked which questions how: a folder holds one evaluation
    answers.jsonl        {id, prediction}, as they came; each rank appends to answers-NNN.jsonl
                         first, and rank 0 merges these files at every start and end
    questions.jsonl      a line a question: row, prediction, and its scores
    predictions.json     the benchmark's submission format
    eval.jsonl           rows as training writes them
    table.md             sound, music, speech, total; difficulties; sub-categories

The last four are made anew from the first two, so they never disagree.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

from adrpo_scale.errors import RunFolderError
from adrpo_scale.files import replace_file, replace_json, write_all
from adrpo_scale.mmau.base import Question
from adrpo_scale.mmau.scoring import Score, Tally, submitted

IDENTITY, ANSWERS = "evaluation.json", "answers.jsonl"
_OF_RANKS = "answers-[0-9]*.jsonl"


def begin(folder: Path, identity: Mapping[str, Any]) -> dict[str, str]:
    """The answers that are there already, by question id; on rank 0 alone. RunFolderError if they
    are of another model, other questions or other settings."""
    path = folder / IDENTITY
    try:
        folder.mkdir(parents=True, exist_ok=True)
        known = json.loads(path.read_text()) if path.is_file() else None
    except (OSError, ValueError) as error:
        raise RunFolderError(f"{folder} cannot be used ({error}); name another one --to") from error
    if known is not None and known != identity:
        keys = [key for key in {**known, **identity} if known.get(key) != identity.get(key)]
        differ = ", ".join(f"{key}: {known.get(key)!r} → {identity.get(key)!r}" for key in keys)
        raise RunFolderError(
            f"{folder} holds another evaluation ({differ}); name another folder --to, or delete it"
        )
    if known is None:
        replace_json(path, identity)
    return merge(folder)


def append(folder: Path, rank: int, answers: Mapping[str, str]) -> None:
    """Puts answers of this rank, by question id, on the disk."""
    lines = [
        json.dumps({"id": id, "prediction": answer}, ensure_ascii=False) + "\n"
        for id, answer in answers.items()
    ]
    path = folder / f"answers-{rank:03d}.jsonl"
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    try:
        write_all(descriptor, "".join(lines).encode())
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def merge(folder: Path, fresh: Mapping[str, str] = MappingProxyType({})) -> dict[str, str]:
    """Every answer by question id, the first of each; the ranks' files become part of
    answers.jsonl. On rank 0 alone, while nobody appends. fresh: this start's answers of all ranks:
    a shared filesystem may not show the files of other nodes yet."""
    parts = sorted(folder.glob(_OF_RANKS))
    found = dict(fresh)
    for path in [folder / ANSWERS, *parts]:
        for line in _whole_lines(path):
            found.setdefault(line["id"], line["prediction"])
    if parts or fresh:
        rows = [{"id": id, "prediction": text} for id, text in found.items()]
        write_lines(folder / ANSWERS, rows)
        for path in parts:
            path.unlink()
    return found


def _whole_lines(path: Path) -> list[dict[str, str]]:
    """Without a line that a process died in the middle of."""
    if not path.is_file():
        return []
    # Not splitlines(): a prediction may hold other line separators of Unicode.
    lines = path.read_bytes().split(b"\n")[:-1]
    return [json.loads(line) for line in lines]


def write_lines(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    text = "".join(json.dumps(row, ensure_ascii=False, allow_nan=False) + "\n" for row in rows)
    replace_file(path, text.encode())


def question_row(question: Question, prediction: str | None, score: Score) -> dict[str, Any]:
    """A line of questions.jsonl."""
    scores = {
        "strict": score.strict,
        "strict_untagged": score.strict_untagged,
        "benchmark": score.benchmark,
        "tagged": score.tagged,
        "named": score.named,
    }
    handed_in = None if prediction is None else submitted(prediction)
    return question.row | {"prediction": prediction, "submitted": handed_in} | scores


def submission(
    questions: Sequence[Question], predictions: Mapping[str, str]
) -> list[dict[str, Any]]:
    """The rows with the prediction under both names that the benchmark has for it: its README says
    `model_prediction`, its evaluation.py reads `model_output`. Questions without one are left out.
    `audio_id` and `sub-category` are named as the benchmark names them."""
    rows = []
    for question in questions:
        if question.id in predictions:
            text = submitted(predictions[question.id])
            row = {k: v for k, v in question.row.items() if k not in ("audio", "sub_category")}
            row |= {"audio_id": Path(question.clip[0]).name, "sub-category": question.sub_category}
            rows.append(row | {"model_prediction": text, "model_output": text})
    return rows


def eval_rows(tallies: Sequence[Tally], identity: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Rows of eval.jsonl: split is `mmau:` and the subset. identity: run, algorithm, seed,
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
