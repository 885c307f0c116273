"""The command `evaluate` for pictures and completions: every model of a file, on the same prompts
and noise, by the same scorers.

What is there is not made again: after any stop the same command goes on, and another scorer needs
no new samples. Everything that can be refused is refused before a model is loaded.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

from adrpo_scale.core import dist
from adrpo_scale.core.console import console
from adrpo_scale.core.errors import ConfigError, together
from adrpo_scale.core.files import replace_json
from adrpo_scale.core.json_files import read_object
from adrpo_scale.data.prompt_sets import key_of, set_hash
from adrpo_scale.engines.base import Engine
from adrpo_scale.evaluation import parts, scoring
from adrpo_scale.evaluation.asked import MOST, AskedConfig
from adrpo_scale.evaluation.held import held
from adrpo_scale.evaluation.images.making import Images
from adrpo_scale.evaluation.language.making import Completions
from adrpo_scale.evaluation.making import Kind, made, make_missing
from adrpo_scale.evaluation.report.evaluated import read_runs
from adrpo_scale.evaluation.report.text import report_text
from adrpo_scale.evaluation.row_folder import (
    DIVERSITY,
    IDENTITY,
    MANIFEST,
    ROWS,
    TIMING,
)
from adrpo_scale.evaluation.row_identity import begin_row, identity_of, refuse_another
from adrpo_scale.evaluation.row_numbers import read_scores, write_numbers
from adrpo_scale.evaluation.rows import Row, require_whole_rows, rows_of
from adrpo_scale.evaluation.sample import sampling_engine
from adrpo_scale.evaluation.samples import NamedSet, Sample, planned
from adrpo_scale.evaluation.size import sets_of
from adrpo_scale.rewards.base import Embedding, RewardConfig
from adrpo_scale.run.config import SampleConfig
from adrpo_scale.run.registry import REWARDS
from adrpo_scale.run.starts import command_line, environment

KINDS: Mapping[str, Callable[[], Kind]] = {"images": Images, "text": Completions}


@dataclass(frozen=True)
class Asked:
    """An evaluation that is about to run."""

    config: AskedConfig
    to: Path
    kind: Kind
    sets: tuple[NamedSet, ...]
    samples: tuple[Sample, ...]
    engine: Engine

    def folder(self, row: Row) -> Path:
        return self.to / ROWS / row.name


def evaluate(config: AskedConfig, to: Path, limit: int | None = None) -> None:
    """Runs the command; prints the table of `report`. to: the folder of the results. limit: prompts
    of each set, spread evenly; None: all."""
    benchmark = str(config.resolved()["benchmark"])
    if benchmark not in KINDS:
        raise ConfigError(f"benchmark = {benchmark!r} cannot be run yet")
    began = time.monotonic()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    with dist.process_group(device, 3600.0):
        asked = _asked(config, to, KINDS[benchmark](), limit)
        rows = _rows(config)
        _say(
            f"{len(rows)} rows of {len(asked.samples):,} samples: {config.sampling.per_prompt} of "
            f"each prompt and sampling seed; in {to}"
        )
        identities = {row.name: _identity(asked, row) for row in rows}
        with held(to) as lock:
            dist.run_on_main(lambda: _begin(asked, rows, identities))
            samples, scores = _carry_out(asked, rows, lock.check)
            dist.run_on_main(lock.check)
            dist.run_on_main(lambda: _finish(asked, rows, began, samples, scores))


def _asked(config: AskedConfig, to: Path, kind: Kind, limit: int | None) -> Asked:
    """Reads the prompts, and refuses scorers that cannot judge them. Collective."""
    sets = sets_of(config, limit)
    samples = tuple(planned(sets, config.sampling))
    if len(samples) > MOST:
        raise ConfigError(f"a row would have {len(samples):,} samples, and at most {MOST:,} go")
    engine = _engine(config)
    prompts = [prompt for one in sets for prompt in one.prompts]
    dist.run_on_main(lambda: scoring.check_scorers(config.scorers, engine, prompts))
    return Asked(config, to, kind, sets, samples, engine)


def _engine(config: AskedConfig) -> Engine:
    """An engine for scorers whose model is sharded; nothing is trained."""
    medium = {"pictures": "flow", "completions": "text"}[config.MEDIUM]
    domain = {"name": medium, "model": "none"}
    return sampling_engine(SampleConfig.model_validate({"domain": domain}))


def _rows(config: AskedConfig) -> list[Row]:
    """Every row, as rank 0 finds them. Collective."""

    def found() -> list[tuple[Any, ...]]:
        rows = rows_of(config.rows)
        names = [row.name for row in rows]
        for name in names:
            if names.count(name) > 1:
                raise ConfigError(f"two models make the row {name!r}: rename one")
        return [(r.name, r.key, r.run, dict(r.of), r.config, r.sha256) for r in rows]

    told = dist.run_on_main(found)
    rows = [Row(name, key, config.rows[key], *more) for name, key, *more in told]
    require_whole_rows(rows)
    return rows


def _identity(asked: Asked, row: Row) -> dict[str, Any]:
    """Everything that a row's samples depend on. Collective."""
    maker = asked.kind.maker(asked.config, row, asked.engine.device)
    return identity_of(asked.config, asked.sets, row, maker.identity)


def _begin(asked: Asked, rows: Sequence[Row], identities: Mapping[str, Mapping[str, Any]]) -> None:
    """Writes what was asked, once no row is refused."""
    together(
        *[lambda row=row: refuse_another(asked.folder(row), identities[row.name]) for row in rows],
        *[
            lambda row=row: scoring.refuse_other_scorers(asked.folder(row), asked.config.scorers)
            for row in rows
        ],
    )
    said: set[str] = set()
    for row in rows:
        text = begin_row(asked.folder(row), row, identities[row.name], asked.sets)
        if text and text not in said:
            said.add(text)
            _say(f"prompts, for {row.name}: {text}")
    hashes = {
        one.name: {"prompts": len(one.prompts), "hash": set_hash([*map(key_of, one.prompts)])}
        for one in asked.sets
    }
    document = {
        "benchmark": asked.config.resolved()["benchmark"],
        "config": asked.config.resolved(),
        "prompt_sets": hashes,
        "scorers": {one.label: scoring.stated(one) for one in asked.config.scorers},
        "versions": environment()["versions"],
        "rows": [row.name for row in rows],
    }
    if read_object(asked.to / IDENTITY) != document:
        replace_json(asked.to / IDENTITY, document)


def _carry_out(
    asked: Asked, rows: Sequence[Row], check: Callable[[], None]
) -> tuple[dict[str, int], dict[str, int]]:
    """(samples made by row, scores by scorer). Collective."""
    config, size = asked.config, asked.config.sampling.batch
    counts = {}
    for row in rows:
        folder = asked.folder(row)
        there = dist.run_on_main(lambda folder=folder: made(asked.kind, folder))
        if len(there) == len(asked.samples):
            continue
        maker = asked.kind.maker(config, row, asked.engine.device)
        what = f"samples of {row.name}"
        counts[row.name] = make_missing(
            asked.kind, maker, folder, asked.samples, there, size, what, check
        )
    judged = [
        scoring.Judged(row.name, asked.folder(row), lines)
        for row in rows
        for lines in [dist.run_on_main(lambda row=row: made(asked.kind, asked.folder(row)))]
    ]
    scores = {}
    embeds = _embedding(config)
    for scorer in config.scorers:
        scores[scorer.label] = scoring.score_missing(
            *(asked.kind, scorer, judged, asked.samples, size, asked.engine, check),
            scorer is embeds,
        )
    return counts, scores


def _embedding(config: AskedConfig) -> RewardConfig | None:
    """The scorer that measures diversity: the first one that embeds."""
    if config.sampling.per_prompt * len(config.sampling.seeds) < 2:
        return None
    kinds = [(one, REWARDS[one.kind]) for one in config.scorers]
    return next((one for one, kind in kinds if issubclass(kind, Embedding)), None)


def _finish(
    asked: Asked,
    rows: Sequence[Row],
    began: float,
    samples: Mapping[str, int],
    scores: Mapping[str, int],
) -> None:
    """Writes all numbers, and prints the table."""
    names = [scorer.label for scorer in asked.config.scorers]
    names += [DIVERSITY] if _embedding(asked.config) is not None else []
    for row in rows:
        folder = asked.folder(row)
        lines = parts.merged(folder / MANIFEST)
        asked.kind.finish(folder, lines)
        given = {name: read_scores(folder, name) for name in names} | asked.kind.measures(lines)
        write_numbers(folder, row.of, asked.sets, asked.samples, given)
    spent = round(time.monotonic() - began, 1)
    past = (read_object(asked.to / TIMING) or {}).get("starts", [])
    now = datetime.now(UTC).isoformat(timespec="seconds")
    start = {"ended": now, "seconds": spent, "samples": dict(samples), "scores": dict(scores)}
    start |= {"command": command_line(sys.argv)}
    replace_json(asked.to / TIMING, {"starts": [*past, start]})
    _say(report_text(read_runs(str(asked.to))))
    for name in names[: len(asked.config.scorers)]:
        judged = [
            scoring.Judged(row.name, asked.folder(row), parts.merged(asked.folder(row) / MANIFEST))
            for row in rows
        ]
        missing = scoring.unscored(judged, name)
        if missing:
            _say(f"{missing} samples have no score of {name}: the same command asks again")
    _say(f"the rows are in {asked.to / ROWS}")


def _say(text: str) -> None:
    if dist.is_main():
        console.print(text, highlight=False, soft_wrap=True, markup=False)
