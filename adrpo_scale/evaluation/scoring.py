"""The scores of a row's samples: of one scorer after the other, and none that is there already.

One scorer is loaded at a time, for all rows. It is called with whole batches of samples, cut by
their numbers, and forgets in between: a score depends on its batch alone. A sample that a scorer
could not judge has no line; the next start asks again.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from adrpo_scale.core import dist
from adrpo_scale.core.errors import RunFolderError, together
from adrpo_scale.core.files import replace_json
from adrpo_scale.core.json_files import read_object
from adrpo_scale.core.pace import Pace
from adrpo_scale.core.settings import walk
from adrpo_scale.core.signals import heard
from adrpo_scale.core.types import Prompt
from adrpo_scale.engines.base import Engine
from adrpo_scale.evaluation import parts
from adrpo_scale.evaluation.making import Kind
from adrpo_scale.evaluation.row_folder import DIVERSITY, SCORES, scores_file
from adrpo_scale.evaluation.samples import Sample, batches
from adrpo_scale.evaluation.sharing import free_memory, merge_all
from adrpo_scale.rewards.base import Embedding, Reward, RewardConfig, sharded_models
from adrpo_scale.rewards.calls import ABSTAINED, embeddings_of, rewards_of
from adrpo_scale.run.registry import REWARDS
from adrpo_scale.run.rewards import VERDICTS, build_judge

_NO_PART = ("weight", "use", "name", "kind")  # of what a score depends on, beside its label


@dataclass(frozen=True)
class Judged:
    """A row to be scored: its folder, and the lines of its samples by number."""

    name: str
    folder: Path
    lines: Mapping[int, parts.Line]


def check_scorers(
    scorers: Sequence[RewardConfig], engine: Engine, prompts: Sequence[Prompt]
) -> None:
    """Raises RewardError where a scorer's code cannot be used, or prompts lack what a scorer that
    loads no model needs. On rank 0 alone."""
    for scorer in scorers:
        REWARDS[scorer.kind].check_code(scorer)
    light = [scorer for scorer in scorers if REWARDS[scorer.kind].is_light]
    together(*[lambda one=one: build_judge(one, engine, prompts) for one in light])


def stated(scorer: RewardConfig) -> dict[str, Any]:
    """What a scorer's scores depend on, as JSON."""
    kept = {
        leaf.path: leaf.value
        for leaf in walk(scorer)
        if leaf.path not in _NO_PART and leaf.effect not in ("none", "rounding")
    }
    return {"kind": scorer.kind, **kept}


def refuse_other_scorers(folder: Path, scorers: Sequence[RewardConfig]) -> None:
    """Raises RunFolderError where a row's scores are of a scorer of this name with other settings.
    On rank 0 alone."""
    for scorer in scorers:
        known, asked = read_object(_settings(folder, scorer.label)), stated(scorer)
        if known is not None and known != asked:
            keys = [key for key in {**known, **asked} if known.get(key) != asked.get(key)]
            differ = ", ".join(f"{key}: {known.get(key)!r} → {asked.get(key)!r}" for key in keys)
            raise RunFolderError(
                f"{folder} has scores of another scorer {scorer.label!r} ({differ}): give this one "
                f"another name, or delete {folder / scores_file(scorer.label)} and its .json"
            )


def _settings(folder: Path, label: str) -> Path:
    return folder / SCORES / f"{label}.json"


def score_missing(
    kind: Kind,
    scorer: RewardConfig,
    rows: Sequence[Judged],
    samples: Sequence[Sample],
    size: int,
    engine: Engine,
    check: Callable[[], None],
    with_diversity: bool,
) -> int:
    """Scores what has no score, of every row; returns the number of new scores. with_diversity:
    measures also how much the samples of a prompt differ, where the scorer embeds. Collective."""
    cut = batches(samples, size)
    todo = dist.run_on_main(lambda: _missing(scorer, rows, cut, with_diversity))
    if not todo:
        return 0
    record = rows[0].folder.parent.parent / VERDICTS
    prompts = list({id(sample.prompt): sample.prompt for sample in samples}.values())
    file = record / f"{scorer.label}-rank-{dist.rank():04d}.jsonl"
    reward = build_judge(
        scorer, engine, prompts, file if REWARDS[scorer.kind].asks_server else None
    )
    count = 0
    with engine.sampling(*sharded_models([reward])):
        for row in rows:
            if row.name not in todo:
                continue
            wanted, is_embedded = todo[row.name]
            judging = _Judging(kind, reward, row, cut, check)
            count += judging.score(wanted)
            if is_embedded and isinstance(reward, Embedding):
                judging.diversity()
    del reward, judging
    free_memory()
    return count


def _missing(
    scorer: RewardConfig, rows: Sequence[Judged], cut: Sequence[Sequence[Sample]], embeds: bool
) -> dict[str, tuple[list[int], bool]]:
    """By row with work: the batches with a sample without a score, and whether its diversity is not
    measured. On rank 0 alone."""
    found = {}
    for row in rows:
        (row.folder / SCORES).mkdir(exist_ok=True)
        replace_json(_settings(row.folder, scorer.label), stated(scorer))
        there = parts.merged(row.folder / scores_file(scorer.label))
        wanted = [
            b
            for b, batch in enumerate(cut)
            if any(s.number in row.lines and s.number not in there for s in batch)
        ]
        has_none = embeds and not (row.folder / scores_file(DIVERSITY)).is_file()
        if wanted or has_none:
            found[row.name] = (wanted, has_none)
    return found


class _Judging:
    """One scorer at one row."""

    def __init__(
        self,
        kind: Kind,
        reward: Reward,
        row: Judged,
        cut: Sequence[Sequence[Sample]],
        check: Callable[[], None],
    ) -> None:
        self._kind, self._reward, self._row, self._cut = kind, reward, row, cut
        self._check = check

    def _batches(
        self, wanted: Sequence[int], what: str
    ) -> Iterator[tuple[list[Sample], list[Any]]]:
        """This rank's samples and artifacts, batch by batch; of samples that could be made."""
        pace = Pace(f"{what} of {self._row.name}", len(wanted), "batches")
        for b in wanted:
            if b % dist.world_size() != dist.rank():
                continue
            batch = [s for s in self._cut[b] if s.number in self._row.lines]
            lines = [self._row.lines[s.number] for s in batch]
            yield batch, [self._kind.artifact(self._row.folder, line) for line in lines]
            pace.step(dist.world_size())

    def score(self, wanted: Sequence[int]) -> int:
        """Scores the wanted batches; returns the number of scores of all ranks. Collective."""
        path, fresh = self._row.folder / scores_file(self._reward.label), []
        for batch, artifacts in self._batches(wanted, self._reward.label):
            if heard():
                break
            self._reward.forget()
            values = rewards_of(self._reward, artifacts, [s.prompt for s in batch]).tolist()
            by_number = {s.number: v for s, v in zip(batch, values, strict=True)}
            self._check()
            lines = [
                {"id": number, "score": None if value == ABSTAINED else value}
                for number, value in by_number.items()
                if not math.isnan(value)
            ]
            parts.append(path, dist.rank(), lines)
            fresh += lines
        return merge_all(path, fresh)

    def diversity(self) -> None:
        """Writes the mean distance of each sample's embedding to those of the other samples of its
        prompt: its mean over samples is the mean over pairs. Collective."""
        mine: dict[int, list[float]] = {}
        every = range(len(self._cut))
        for batch, artifacts in self._batches(every, DIVERSITY):
            features = embeddings_of(self._reward, artifacts).float()
            mine |= {s.number: f.tolist() for s, f in zip(batch, features, strict=True)}
        told = dist.gather_objects(mine, to_main=True)
        dist.run_on_main(lambda: self._write_diversity(told))

    def _write_diversity(self, told: Sequence[Mapping[int, list[float]]]) -> None:
        features = {number: vector for part in told for number, vector in part.items()}
        groups: dict[tuple[str, int], dict[int, None]] = {}
        for sample in (s for batch in self._cut for s in batch if s.number in features):
            groups.setdefault((sample.set, sample.prompt.id), {})[sample.number] = None
        lines = []
        for group in groups.values():
            numbers = list(group)
            distances = mean_distances(torch.tensor([features[n] for n in numbers]))
            lines += [
                {"id": number, "score": value}
                for number, value in zip(numbers, distances.tolist(), strict=True)
                if math.isfinite(value)
            ]
        parts.merged(self._row.folder / scores_file(DIVERSITY), lines)


def mean_distances(features_GD: Tensor) -> Tensor:
    """[G]: the mean Euclidean distance of each row to the others; NaN where G is 1."""
    distances_GG = torch.cdist(
        features_GD, features_GD, compute_mode="donot_use_mm_for_euclid_dist"
    )
    return distances_GG.double().sum(1) / (len(features_GD) - 1)


def unscored(rows: Sequence[Judged], scorer: str) -> int:
    """The number of samples without a score. On rank 0 alone."""
    found = 0
    for row in rows:
        there = parts.merged(row.folder / scores_file(scorer))
        found += sum(number not in there for number in row.lines)
    return found
