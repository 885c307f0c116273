"""A question of MMAU, the settings of its evaluation, and what answers questions.

`prepare mmau` wrote OUT/mmau.jsonl, one question a line, and OUT/report.json with the revision of
the benchmark: revision v05.15.25 changed a quarter of the questions, so it stands in every table.
Questions are worded as those of training are (`avqa`).
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol

from adrpo_scale.core.errors import PromptError
from adrpo_scale.core.settings import REQUIRED, Section, setting
from adrpo_scale.core.tensor_files import file_sha256
from adrpo_scale.core.types import Prompt
from adrpo_scale.data.prompts import load_prompts

TASKS = ("sound", "music", "speech")
QUESTIONS, RECORD = "mmau.jsonl", "report.json"
ORIGINAL = "original"  # key of a row: the benchmark's own row, which the submission repeats
_FORMATS = {"answer": "avqa", "think": "avqa_think"}
_PREPARE = "write it with `adrpo-scale prepare mmau`"


@dataclass(frozen=True)
class Question:
    """answer: the right option's text. prompt: the words, and in its metadata the row of the file
    and the clip (`audio`, `audio_folder`). original: the benchmark's own row."""

    id: str
    choices: tuple[str, ...]
    answer: str
    task: str
    sub_category: str
    difficulty: str
    prompt: Prompt
    original: Mapping[str, Any] = field(default_factory=dict)

    @property
    def row(self) -> dict[str, Any]:
        """The line of the file, without the benchmark's."""
        left_out = ("audio_folder", ORIGINAL)
        return {k: v for k, v in self.prompt.metadata.items() if k not in left_out}

    @property
    def clip(self) -> tuple[str, Path]:
        """(reference, folder), as `audio_clips` takes them."""
        return self.prompt.metadata["audio"], Path(self.prompt.metadata["audio_folder"])


@dataclass(frozen=True)
class Answer:
    """text: the model's words, perhaps none. is_cut: it reached the limit of its length."""

    text: str
    is_cut: bool = False


class Model(Protocol):
    """Whatever answers questions."""

    def answers(self, questions: Sequence[Question]) -> Sequence[Answer | None]:
        """The answer to each question, in order; None where no answer could be had: it is asked
        again another time. Not collective: ranks call it as often as their questions need."""


PAPER = "paper, table 2"


class PublishedRow(Section):
    """What somebody has published, in percent."""

    source: str = setting(PAPER, "where")

    sound: float = setting(REQUIRED, "sound", ge=0, le=100)
    music: float = setting(REQUIRED, "music", ge=0, le=100)
    speech: float = setting(REQUIRED, "speech", ge=0, le=100)
    total: float = setting(REQUIRED, "all of them", ge=0, le=100)


class EndpointConfig(Section):
    """How an OpenAI-compatible endpoint is asked."""

    at_once: int = setting(4, "requests under way at once, per process", ge=1)
    timeout_seconds: float = setting(120.0, "how long to wait for an answer", gt=0)
    attempts: int = setting(6, "tries of one question, the first included", ge=1)
    first_wait_seconds: float = setting(2.0, "before the second try; doubles with each", ge=0)
    longest_wait_seconds: float = setting(120.0, "of these, and of what Retry-After asks", ge=0)
    extra: dict[str, Any] = setting({}, "further fields of a request, e.g. reasoning_effort")
    without: list[Literal["max_tokens", "temperature"]] = setting(
        [], "fields that the model refuses, left out; its own go into extra"
    )


class MmauConfig(Section):
    """Settings of `adrpo-scale evaluate`."""

    benchmark: Literal["mmau"] = setting("mmau", "which benchmark")
    data: str = setting(REQUIRED, "folder that `prepare mmau` wrote", min_length=1)
    variant: Literal["answer", "think"] = setting(
        "think", "answer: in <answer> alone; think: reason in <think> first"
    )
    max_new_tokens: int = setting(512, "an answer's length, reasoning included", ge=1)
    batch: int = setting(16, "questions generated at once on one rank; of --model", ge=1)
    temperature: float = setting(0.0, "of an endpoint; --model is always greedy", ge=0)
    domain: dict[str, Any] = setting({}, "settings of [domain] for --model, over the run's own")
    engine: dict[str, Any] = setting({}, "settings of [engine] for --model, over the run's own")
    endpoint: EndpointConfig = setting(EndpointConfig(), "how --endpoint is asked")
    published: dict[str, PublishedRow] = setting(
        {}, "figures of others, shown below ours, by model"
    )


@dataclass(frozen=True)
class Benchmark:
    """The questions, and which ones they are: revision, and SHA-256 of the file."""

    questions: tuple[Question, ...]
    revision: str
    sha256: str


def load_benchmark(folder: Path, variant: Literal["answer", "think"]) -> Benchmark:
    """What `prepare mmau` wrote. PromptError where it is not there, has a question twice, or rows
    that are none of MMAU's."""
    path = folder / QUESTIONS
    try:
        record = json.loads((folder / RECORD).read_text())
    except (OSError, ValueError) as error:
        raise PromptError(f"{folder / RECORD} cannot be read ({error}): {_PREPARE}") from error
    prompts = load_prompts(path, _FORMATS[variant])
    questions = tuple(_question(prompt, path) for prompt in prompts)
    if len({question.id for question in questions}) < len(questions):
        raise PromptError(f"{path} has questions of one id: {_PREPARE} again")
    return Benchmark(questions, _revision(record), file_sha256(path))


def _revision(record: Mapping[str, Any]) -> str:
    return str(record.get("revision") or "unknown")


def _question(prompt: Prompt, path: Path) -> Question:
    row = prompt.metadata
    if row.get("id") is None or row.get("task") not in TASKS:
        raise PromptError(
            f"{path}: question {prompt.id} has id {row.get('id')!r} and task {row.get('task')!r}, "
            f"an id and one of {', '.join(TASKS)} are expected: {_PREPARE} again"
        )
    if not isinstance(row.get(ORIGINAL), Mapping):
        raise PromptError(
            f"{path}: question {prompt.id} has {ORIGINAL} {row.get(ORIGINAL)!r}, the benchmark's "
            f"own row is expected, which predictions.json repeats: {_PREPARE} again"
        )
    return Question(
        id=str(row["id"]),
        choices=tuple(row["choices"]),
        answer=row["answer"],
        task=row["task"],
        sub_category=str(row.get("sub_category") or "none"),
        difficulty=str(row.get("difficulty") or "none"),
        prompt=prompt,
        original=row[ORIGINAL],
    )


def evenly(questions: Sequence[Question], limit: int | None) -> list[Question]:
    """`limit` of the questions, spread over the file, whose tasks stand in blocks; all by None."""
    count = len(questions) if limit is None else min(limit, len(questions))
    return [questions[k * len(questions) // count] for k in range(count)]
