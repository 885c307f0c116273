"""MMAU's questions, the models that answer them, and the settings of the evaluation.

`prepare mmau` writes OUT/mmau.jsonl, one question a line, and OUT/report.json with the revision of
the benchmark. Revision v05.15.25 changed a quarter of the questions, so every table states the
revision. Questions are worded like those of training (`avqa`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol

from pydantic import ValidationError

from adrpo_scale.core.bounds import COUNT, NUMBER, TOKENS
from adrpo_scale.core.chat_endpoint import Answer, Omissible
from adrpo_scale.core.errors import ConfigError, PromptError
from adrpo_scale.core.json_files import parse_object, read_regular
from adrpo_scale.core.posting import RequestsConfig
from adrpo_scale.core.settings import REQUIRED, Section, setting
from adrpo_scale.core.tensor_files import file_sha256
from adrpo_scale.core.types import Prompt
from adrpo_scale.data.foreign_rows import stays_in
from adrpo_scale.data.prompts import load_prompts
from adrpo_scale.evaluation.report.evaluated import TASKS

QUESTIONS, RECORD = "mmau.jsonl", "report.json"
ORIGINAL = "original"  # key of a row: the benchmark's own row, for the submission
_FORMATS = {"answer": "avqa", "think": "avqa_think"}
_PREPARE = "write it with `adrpo-scale prepare mmau`"


@dataclass(frozen=True)
class Question:
    """A question. answer: the text of the right option. prompt: its text; its metadata hold the
    row of the file, and the clip (`audio`, `audio_folder`). original: the benchmark's own row."""

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
        """The row of the file, without the benchmark's own row."""
        left_out = ("audio_folder", ORIGINAL)
        return {k: v for k, v in self.prompt.metadata.items() if k not in left_out}

    @property
    def clip(self) -> tuple[str, Path]:
        """(reference, folder), as `audio_clips` takes them."""
        return self.prompt.metadata["audio"], Path(self.prompt.metadata["audio_folder"])


class Model(Protocol):
    """A model that answers questions."""

    def answers(self, questions: Sequence[Question]) -> Sequence[Answer | None]:
        """The answer to each question, in order; None where none was obtained: the next start asks
        again. Not collective: each rank calls it as often as its questions need."""


PAPER = "paper, table 2"


class PublishedRow(Section):
    """Published accuracies, in percent."""

    source: str = setting(PAPER, "where they were published")

    sound: float = setting(REQUIRED, "accuracy on sound", ge=0, le=100)
    music: float = setting(REQUIRED, "accuracy on music", ge=0, le=100)
    speech: float = setting(REQUIRED, "accuracy on speech", ge=0, le=100)
    total: float = setting(REQUIRED, "accuracy on all questions", ge=0, le=100)


class EndpointConfig(RequestsConfig):
    """Settings of requests to an OpenAI-compatible endpoint."""

    extra: dict[str, Any] = setting({}, "further fields of a request, e.g. reasoning_effort")
    without: list[Omissible] = setting(
        [], "fields to leave out because the model refuses them; see extra for others"
    )


class MmauConfig(Section):
    """Settings of `adrpo-scale evaluate`."""

    benchmark: Literal["mmau"] = setting("mmau", "which benchmark")
    data: str = setting(REQUIRED, "folder that `prepare mmau` wrote", min_length=1)
    variant: Literal["answer", "think"] = setting(
        "think", "answer: only <answer>; think: reason in <think> first"
    )
    max_new_tokens: int = setting(
        512, "longest answer in tokens, reasoning included", ge=1, le=TOKENS
    )
    batch: int = setting(16, "with --model: questions that a rank answers at once", ge=1, le=COUNT)
    temperature: float = setting(
        0.0, "with --endpoint: sampling temperature; --model is always greedy", ge=0, le=NUMBER
    )
    domain: dict[str, Any] = setting(
        {}, "with --model: settings of [domain] that override the run's own"
    )
    engine: dict[str, Any] = setting(
        {}, "with --model: settings of [engine] that override the run's own"
    )
    endpoint: EndpointConfig = setting(EndpointConfig(), "requests to the --endpoint")
    published: dict[str, PublishedRow] = setting(
        {}, "published accuracies by model, shown below ours"
    )


def parse_settings(document: Mapping[str, Any]) -> MmauConfig:
    """The settings in plain data. Raises ConfigError with a line for each fault."""
    try:
        return MmauConfig.model_validate(document)
    except ValidationError as error:
        known = ", ".join(MmauConfig.model_fields)
        faults = [f"{'.'.join(map(str, fault['loc']))}: {fault['msg']}" for fault in error.errors()]
        raise ConfigError("\n".join([*faults, f"settings of evaluate: {known}"])) from error


@dataclass(frozen=True)
class Benchmark:
    """The questions. revision: the benchmark's. sha256: hash of the file of questions. folders:
    those that `prepare mmau` was given, in which every clip lies."""

    questions: tuple[Question, ...]
    revision: str
    sha256: str
    folders: tuple[Path, ...]


def load_benchmark(folder: Path, variant: Literal["answer", "think"]) -> Benchmark:
    """Reads the folder of `prepare mmau`. Raises PromptError where a file is missing, an id occurs
    twice, or a row is not one of MMAU's."""
    path = folder / QUESTIONS
    try:
        record = parse_object(read_regular(folder / RECORD))
    except (OSError, ValueError) as error:
        raise PromptError(f"{folder / RECORD} cannot be read ({error}): {_PREPARE}") from error
    prompts = load_prompts(path, _FORMATS[variant])
    questions = tuple(_question(prompt, path) for prompt in prompts)
    if len({question.id for question in questions}) < len(questions):
        raise PromptError(f"{path} has several questions with one id: {_PREPARE} again")
    clips = record.get("audio")
    folders = (folder, Path(clips)) if isinstance(clips, str) else (folder,)
    return Benchmark(questions, _revision(record), file_sha256(path), folders)


def check_sent(benchmark: Benchmark) -> None:
    """Raises PromptError where a clip lies outside the benchmark's folders: a row that names any
    other file of this machine would have it sent to the endpoint."""
    for question in benchmark.questions:
        audio = question.clip[0]
        if not any(stays_in(audio, folder) for folder in benchmark.folders):
            raise PromptError(
                f"question {question.id} asks about {audio!r}, which would be sent and is outside "
                f"{' and '.join(map(str, benchmark.folders))}: {_PREPARE} again, with --audio; "
                "answers that are there stay"
            )


def _revision(record: Mapping[str, Any]) -> str:
    return str(record.get("revision") or "unknown")


def _question(prompt: Prompt, path: Path) -> Question:
    row = prompt.metadata
    if row.get("id") is None or row.get("task") not in TASKS:
        raise PromptError(
            f"{path}: question {prompt.id} has id {row.get('id')!r} and task {row.get('task')!r}; "
            f"expected an id and one of {', '.join(TASKS)}: {_PREPARE} again"
        )
    if not isinstance(row.get(ORIGINAL), Mapping):
        raise PromptError(
            f"{path}: question {prompt.id} has {ORIGINAL} {row.get(ORIGINAL)!r}; expected the "
            f"benchmark's own row, which predictions.json needs: {_PREPARE} again"
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
