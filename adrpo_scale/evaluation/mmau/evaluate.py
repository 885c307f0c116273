"""The command `evaluate`: asks a model or an endpoint MMAU's questions, and judges the answers.

Each rank asks a block of the questions that have no answer yet, and saves each answer; rank 0
merges them. After any stop the same command resumes. A question without an answer counts as wrong,
and the next start asks it again.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from adrpo_scale.checkpoint.locate import every_checkpoint
from adrpo_scale.checkpoint.named import EVALUATED, RAW, weights_of
from adrpo_scale.checkpoint.shelf import CHECKPOINTS, TRAJECTORY
from adrpo_scale.core import dist
from adrpo_scale.core.chat_endpoint import KEY, Answer, base_url
from adrpo_scale.core.console import console
from adrpo_scale.core.errors import AdrpoError, ConfigError, StopRequested, agreed
from adrpo_scale.core.files import replace_file, replace_json
from adrpo_scale.core.folder_lock import RunLock
from adrpo_scale.core.paths import resolve_path
from adrpo_scale.core.secrets import read_key
from adrpo_scale.core.signals import stop_if_heard
from adrpo_scale.data.clip_headers import clip_faults
from adrpo_scale.evaluation.file import load_evaluation
from adrpo_scale.evaluation.fingerprint import fingerprint
from adrpo_scale.evaluation.held import held
from adrpo_scale.evaluation.mmau import local, predictions, tables
from adrpo_scale.evaluation.mmau.base import (
    Benchmark,
    MmauConfig,
    Model,
    Question,
    check_sent,
    load_benchmark,
)
from adrpo_scale.evaluation.mmau.endpoint import Endpoint, check_writes
from adrpo_scale.evaluation.mmau.judging import judge, tallies
from adrpo_scale.evaluation.report.evaluated import QUESTIONS
from adrpo_scale.evaluation.sample import Source, require_whole_source
from adrpo_scale.evaluation.samples import evenly
from adrpo_scale.run.prompt_sets import overlap_text

_LINES = 20  # about so many lines of progress
_NAMED = 10  # unanswered questions that the last line names


@dataclass(frozen=True)
class EvaluateOptions:
    """The command line: exactly one of model and endpoint. weights: a word of `named.WEIGHTS`."""

    config: Path
    model: str | None = None
    endpoint: str | None = None
    data: Path | None = None
    to: Path | None = None
    limit: int | None = None
    dry_run: bool = False
    overrides: Sequence[str] = ()
    weights: str = EVALUATED


@dataclass(frozen=True)
class Subject:
    """The evaluated model. source: None for an endpoint. row: run, algorithm, seed and iteration of
    its rows in eval.jsonl. folder: the default of --to. weights: RAW or EMA, of a run."""

    name: str
    source: Source | None
    row: Mapping[str, Any]
    folder: Path
    weights: str = RAW


def load_settings(path: Path, overrides: Sequence[str], data: Path | None) -> MmauConfig:
    """Reads and checks a TOML file. Raises ConfigError with a line for each fault."""
    config = load_evaluation(path, overrides, data)
    if not isinstance(config, MmauConfig):
        raise ConfigError(f'{path} asks for another benchmark; expected benchmark = "mmau"')
    return config


def evaluate(options: EvaluateOptions, config: MmauConfig | None = None) -> None:
    """Runs the command. config: of the file that `options` names, where that has been read."""
    if (options.model is None) == (options.endpoint is None):
        raise ConfigError("name one of --model FOLDER_OR_RUN and --endpoint MODEL_NAME")
    if options.dry_run and options.endpoint is None:
        raise ConfigError("--dry-run measures the requests to an endpoint: name --endpoint")
    config = config or load_settings(options.config, options.overrides, options.data)
    folder = resolve_path(config.data)
    benchmark = load_benchmark(folder, config.variant)
    if options.endpoint is not None:
        check_sent(benchmark)
    questions = evenly(benchmark.questions, options.limit)
    if options.dry_run:
        _dry_run(Endpoint(str(options.endpoint), config), questions)
        return
    subjects = find_subjects(options, config)
    source = subjects[0].source
    engine = source.config.engine if source is not None else None
    device = engine.torch_device() if engine is not None else "cpu"
    seconds = engine.timeout_seconds if engine is not None else 3600.0
    with dist.process_group(device, seconds):
        for subject in subjects:
            to = options.to or subject.folder
            with held(to) as lock:
                _evaluate(config, benchmark, questions, subject, to, lock)


def find_subjects(options: EvaluateOptions, config: MmauConfig) -> list[Subject]:
    """The evaluated models of the command line, more than one for RUN@*; nothing is loaded yet."""
    if options.model is None:
        return [find_subject(options, config)]
    names = every_checkpoint(options.model)
    if options.to is not None and len(names) > 1:
        raise ConfigError(
            f"--to {options.to} with --model {options.model}: {len(names)} checkpoints need a "
            "folder each; leave --to out, and each lies in the run's folder"
        )
    return [find_subject(replace(options, model=name), config) for name in names]


def find_subject(options: EvaluateOptions, config: MmauConfig) -> Subject:
    """The evaluated model of the command line; nothing is loaded yet."""
    if options.model is None:
        name = str(options.endpoint)
        read_key(KEY)
        return Subject(name, None, _row(name), _folder_of(name))
    source = local.find_local(options.model, config)
    name = options.model.rstrip("/")
    if source.reader is None or source.run is None:
        return Subject(name, source, _row(name), _folder_of(name))
    checkpoint, iteration = source.reader.folder, source.reader.iteration
    is_in_run = checkpoint.parent.name in (CHECKPOINTS, TRAJECTORY)
    run = checkpoint.parent.parent if is_in_run else checkpoint
    row = {
        "run": run.resolve().name,
        "algorithm": source.run.algorithm.name,
        "seed": source.run.seed,
        "iteration": iteration,
    }
    weights = weights_of(source.reader, options.weights)
    ending = "" if weights == RAW else f"-{weights}"
    folder = run / f"mmau-{iteration:06d}{ending}" if is_in_run else _folder_of(f"{name}{ending}")
    shown = f"{row['run']}@{iteration}" + ("" if weights == RAW else f" ({weights})")
    return Subject(shown, source, row, folder, weights)


def _row(name: str) -> dict[str, Any]:
    """The row of a model that was not trained here."""
    return {"run": name, "algorithm": "none", "seed": None, "iteration": 0}


def _folder_of(name: str) -> Path:
    words = re.sub(r"[^\w.-]+", "-", name).strip("-.")
    return Path(os.environ.get("ADRPO_RUNS", "runs")) / f"mmau-{words}"


def _evaluate(
    config: MmauConfig,
    benchmark: Benchmark,
    questions: Sequence[Question],
    subject: Subject,
    to: Path,
    lock: RunLock,
) -> None:
    """Asks the questions that have no answer yet, then writes all files. Collective."""
    if subject.source is not None:
        require_whole_source(subject.source)  # before the figures of answers get its name
    done: dict[str, Answer] = dist.run_on_main(
        lambda: predictions.begin(to, _identity(config, benchmark, subject))
    )
    if subject.source is not None and subject.source.run is not None and dist.is_main():
        asked = [question.prompt for question in questions]
        _say(f"questions: {overlap_text(subject.source.run.prompts, asked)}")
    pending = [question for question in questions if question.id not in done]
    _say(
        f"MMAU test-mini, revision {benchmark.revision}: {len(questions)} questions to "
        f"{subject.name}, {len(questions) - len(pending)} answered already; in {to}"
    )
    if not pending:
        _say("nothing to ask: every question has its answer; to ask again, choose another --to")
    mine: dict[str, Answer] = {}
    error: AdrpoError | StopRequested | None = None
    heard = _heard(pending) if pending else []
    if heard:
        with _model(config, subject, heard) as (model, size):
            try:
                for part in _ask(model, heard, size, to, done, lock.check):
                    mine |= part
            except (AdrpoError, StopRequested) as caught:
                error = caught  # raised below: the other ranks are still asking
    parts = dist.gather_objects((mine, error))
    fresh = {id: answer for answers, _ in parts for id, answer in answers.items()}
    dist.run_on_main(lock.check)
    dist.run_on_main(lambda: _write(config, benchmark, questions, subject, to, fresh))
    failed = [found for _, found in parts if found is not None]
    for found in sorted(failed, key=lambda found: isinstance(found, StopRequested)):
        raise agreed(found) if isinstance(found, AdrpoError) else found


def _identity(config: MmauConfig, benchmark: Benchmark, subject: Subject) -> dict[str, Any]:
    """All facts that answers depend on: an unfinished evaluation resumes only with equal ones. The
    weights behind an endpoint are unknown: other weights at its address need another folder."""
    shared = ("variant", "max_new_tokens")
    found = {key: getattr(config, key) for key in shared}
    if subject.source is None:
        asked: dict[str, Any] = {"url": base_url(), "temperature": config.temperature}
        asked |= {"extra": config.endpoint.extra, "without": config.endpoint.without}
    else:
        asked = {"domain": config.domain, "engine": config.engine}
        asked |= {"weights": fingerprint(subject.source)}
        # Folders of before name no set: they are of the trained weights.
        asked |= {} if subject.weights == RAW else {"set": subject.weights}
    return {
        "benchmark": f"MMAU test-mini {benchmark.revision}",
        "questions_sha256": benchmark.sha256,
        "model": subject.name,
        **subject.row,
        **found,
        **asked,
    }


def _heard(questions: Sequence[Question]) -> list[Question]:
    """The questions whose clips can be read; the others are named on the terminal. Collective."""
    prompts = [question.prompt for question in questions]
    faults: Mapping[int, str] = dist.run_on_main(lambda: dict(clip_faults(prompts)))
    for question in questions:
        if question.prompt.id in faults:
            _say(f"question {question.id} is not asked: {faults[question.prompt.id]}")
    return [question for question in questions if question.prompt.id not in faults]


@contextmanager
def _model(
    config: MmauConfig, subject: Subject, questions: Sequence[Question]
) -> Iterator[tuple[Model, int]]:
    """(the model, the number of questions it answers at once). Collective."""
    if subject.source is None:
        yield Endpoint(subject.name, config), config.endpoint.at_once
    else:
        with local.opened(subject.source, questions, subject.weights) as model:
            yield model, config.batch


def _ask(
    model: Model,
    asked: Sequence[Question],
    size: int,
    to: Path,
    known: Mapping[str, Answer],
    check_owner: Callable[[], None],
) -> Iterator[dict[str, Answer]]:
    """Yields answers to this rank's block of the questions, by id, `size` at a time; each part is
    on the disk before the next is asked. known: answers of earlier starts.
    check_owner: raises where another process has taken over the folder."""
    mine = [asked[k] for k in dist.block(len(asked), dist.rank(), dist.world_size())]
    step = max(1, len(mine) // _LINES)
    answered = list(known.values())
    for start in range(0, len(mine), size):
        stop_if_heard()
        part = mine[start : start + size]
        pairs = zip(part, model.answers(part), strict=True)
        answers = {question.id: answer for question, answer in pairs if answer is not None}
        check_owner()
        predictions.append(to, dist.rank(), answers)
        yield answers
        count = start + len(part)
        answered += answers.values()
        check_writes(answered, is_all=count == len(mine))
        if count // step > start // step:
            whole = "" if dist.world_size() == 1 else f" of the first of {dist.world_size()} ranks"
            _say(f"asked {count} of {len(mine)}{whole}")


def _write(
    config: MmauConfig,
    benchmark: Benchmark,
    questions: Sequence[Question],
    subject: Subject,
    to: Path,
    fresh: Mapping[str, Answer],
) -> None:
    """Writes all files that follow from the answers, and prints the main table."""
    answers = predictions.merge(to, fresh)
    answered = [answers.get(question.id) for question in questions]
    judgements = [judge(*pair) for pair in zip(questions, answered, strict=True)]
    found = tallies(questions, judgements)
    parts = zip(questions, answered, judgements, strict=True)
    predictions.write_lines(to / QUESTIONS, [predictions.question_row(*part) for part in parts])
    replace_json(to / "predictions.json", predictions.submission(questions, answers))
    weights = {} if subject.row["seed"] is None else {"weights": subject.weights}
    rows = predictions.eval_rows(found, {**subject.row, **weights})
    predictions.write_lines(to / "eval.jsonl", rows)
    title = f"MMAU test-mini, revision {benchmark.revision}: {subject.name}"
    notes = [
        f"{len(questions)} of {len(benchmark.questions)} questions, asked as "
        f"`{config.variant}`; accuracy in percent. Questions file: SHA-256 {benchmark.sha256}."
    ]
    text = tables.page(title, notes, subject.name, found, config.published)
    replace_file(to / "table.md", text.encode())
    _say(tables.main_table(subject.name, found, config.published))
    missing = [question.id for question in questions if question.id not in answers]
    if missing:
        names = ", ".join(missing[:_NAMED]) + (", ..." if len(missing) > _NAMED else "")
        _say(f"questions without an answer: {len(missing)} ({names}); the same command asks again")
    _say(f"table.md, questions.jsonl, predictions.json and eval.jsonl are in {to}")


def _dry_run(endpoint: Endpoint, questions: Sequence[Question]) -> None:
    found = endpoint.dry_run(questions)
    _say(
        f"{found.questions} questions to {endpoint.name}, nothing sent: {found.seconds:.0f} s of "
        f"audio, {found.request_bytes / 1e6:.1f} MB of requests, {found.broken} clips missing or "
        "broken"
    )


def _say(text: str) -> None:
    if dist.is_main():
        console.print(text, highlight=False, soft_wrap=True)
