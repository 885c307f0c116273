"""Media: the ways to show, measure and write the artifacts of a domain.

A domain names its medium (`Domain.medium`). The loop, evaluations and `sample` use it through
`Medium` and never ask which one it is.
"""

from __future__ import annotations

import json
import re
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from torch import Tensor

from adrpo_scale.core import dist
from adrpo_scale.core.errors import ConfigError
from adrpo_scale.core.files import replace_file
from adrpo_scale.core.json_files import json_line
from adrpo_scale.core.types import Completion, Credit, Prompt, Rewards, Rows
from adrpo_scale.domains.base import Domain
from adrpo_scale.rewards.base import Embedding, Reward
from adrpo_scale.rewards.calls import embeddings_of
from adrpo_scale.training.metrics import LoggingConfig, MetricsLog, is_due, write_picture
from adrpo_scale.training.pictures import (
    mean_pairwise_cosine,
    mean_pairwise_l2,
    picture_grid,
    pixels,
)

GRID_COLUMNS = 6
GRID_ROWS = 6
WRITTEN_ROWS = 12  # prompts of the grid that `sample` writes
COMPLETIONS = "completions.jsonl"
SAMPLES = re.compile(r"\d+-\d+\.png|grid\.png|samples\.jsonl|completions\.jsonl")  # of `write`
SHOWN, SHOWN_CHARACTERS = 4, 400  # completions in a summary, and characters of each

Measured = tuple[float | None, float | None]
"""(divergence, entropy) of a sample that was trained on; None: not measured."""


@dataclass(frozen=True)
class Samples:
    """This rank's samples of some prompts. artifacts: `Domain.artifacts` of the rows. rewards_PG:
    the number shown with each sample, of all ranks."""

    rows: Rows
    artifacts: Sequence[Any]
    prompts_P: Sequence[Prompt]
    rewards_PG: Tensor


class Medium(ABC):
    """The contract of a medium. All methods except `check` and `summary` are collective."""

    def check(self, prompts: int, per_prompt: int, split: str) -> None:
        """Raises ConfigError where a split has too few samples for the number of processes."""
        return None

    @abstractmethod
    def show(
        self,
        log: MetricsLog,
        every: LoggingConfig,
        iteration: int,
        samples: Samples,
        rewards: Rewards,
        credit: Credit,
        measured: Mapping[int, Measured],
    ) -> None:
        """Writes an iteration's samples to the log, where that is due. measured: of this rank's
        samples, by id."""

    def grid(self, samples: Samples) -> Image.Image | None:
        """An evaluation's samples as one picture, on rank 0; None on other ranks, and for media
        without one."""
        return None

    def measure(self, samples: Samples, judges: Sequence[Reward]) -> dict[str, Tensor]:
        """Further metrics of an evaluation, [P] by name. The samples are in the order of their ids.
        judges: the run's rewards."""
        return {}

    @abstractmethod
    def write(
        self, prompts_P: Sequence[Prompt], mine: Mapping[int, Any], per_prompt: int, to: Path
    ) -> list[Path]:
        """Writes the output of `sample` into the folder `to`. mine: this rank's artifacts, by
        sample id. Returns the files of artifacts on rank 0, and [] on others."""

    @abstractmethod
    def summary(self, written: Sequence[Path], to: Path) -> list[str]:
        """Lines that `sample` prints about the written files."""


class Pictures(Medium):
    """The medium of pictures: artifacts are uint8 [H, W, 3]."""

    def check(self, prompts: int, per_prompt: int, split: str) -> None:
        if (
            prompts * per_prompt < dist.world_size()
        ):  # a rank without pictures would lack their shape
            raise ConfigError(
                f"evaluation of {split}: {prompts} prompts × {per_prompt} samples are fewer than "
                f"the {dist.world_size()} processes; raise evaluation.samples_per_prompt"
            )

    def show(
        self,
        log: MetricsLog,
        every: LoggingConfig,
        iteration: int,
        samples: Samples,
        rewards: Rewards,
        credit: Credit,
        measured: Mapping[int, Measured],
    ) -> None:
        if is_due(every.pictures_every, iteration):
            log.picture("rollouts", self.grid(samples), iteration)

    def grid(self, samples: Samples) -> Image.Image | None:
        """The first prompts and samples, the reward below each picture."""
        size = samples.rewards_PG.shape[1]
        shown = [
            (int(s), samples.artifacts[n])
            for n, s in enumerate(samples.rows.sample_ids_N)
            if int(s) // size < GRID_ROWS and int(s) % size < GRID_COLUMNS
        ]
        every = dict(pair for part in dist.gather_objects(shown) for pair in part)
        if not dist.is_main():
            return None
        rows, columns = min(GRID_ROWS, len(samples.prompts_P)), min(GRID_COLUMNS, size)
        return picture_grid(
            [[every[p * size + g] for g in range(columns)] for p in range(rows)],
            [prompt.text for prompt in samples.prompts_P[:rows]],
            samples.rewards_PG[:rows, :columns].tolist(),
        )

    def measure(self, samples: Samples, judges: Sequence[Reward]) -> dict[str, Tensor]:
        """Diversity of pixels, and of the embedding of the first reward that has one."""
        shape = tuple(samples.rewards_PG.shape)
        thumbnails = dist.gather_rows(pixels(samples.artifacts)).unflatten(0, shape)
        found = {"pixel_diversity": mean_pairwise_l2(thumbnails / 255.0)}
        judge = next((reward for reward in judges if isinstance(reward, Embedding)), None)
        if judge is not None:
            features = dist.gather_rows(embeddings_of(judge, samples.artifacts)).unflatten(0, shape)
            found["clip_diversity_l2"] = mean_pairwise_l2(features)
            found["clip_diversity_cosine"] = mean_pairwise_cosine(features)
        return found

    def write(
        self, prompts_P: Sequence[Prompt], mine: Mapping[int, Any], per_prompt: int, to: Path
    ) -> list[Path]:
        """PROMPT-SAMPLE.png files; on rank 0 also grid.png and samples.jsonl."""
        for sample, picture in mine.items():
            write_picture(Image.fromarray(picture), to / picture_name(sample, per_prompt))
        dist.barrier()
        if not dist.is_main():
            return []
        names = [
            [picture_name(p * per_prompt + g, per_prompt) for g in range(per_prompt)]
            for p in range(len(prompts_P))
        ]
        lines = [
            json.dumps({"file": name, "prompt": prompt.text})
            for prompt, row in zip(prompts_P, names, strict=True)
            for name in row
        ]
        replace_file(to / "samples.jsonl", ("\n".join(lines) + "\n").encode(), durable=False)
        shown = names[:WRITTEN_ROWS]
        images = [[np.asarray(Image.open(to / name)) for name in row] for row in shown]
        grid = picture_grid(images, [p.text for p in prompts_P[:WRITTEN_ROWS]])
        write_picture(grid, to / "grid.png")
        return [to / name for row in names for name in row]

    def summary(self, written: Sequence[Path], to: Path) -> list[str]:
        return [f"{len(written)} pictures and grid.png in {to}"]


def picture_name(sample: int, per_prompt: int) -> str:
    return f"{sample // per_prompt:05d}-{sample % per_prompt:03d}.png"


class Completions(Medium):
    """The medium of text: artifacts are `Completion`s."""

    def show(
        self,
        log: MetricsLog,
        every: LoggingConfig,
        iteration: int,
        samples: Samples,
        rewards: Rewards,
        credit: Credit,
        measured: Mapping[int, Measured],
    ) -> None:
        if is_due(every.completions_every, iteration):
            table = completion_table(samples, rewards, credit, measured)
            log.completions(table, iteration, every.completions_megabytes)

    def write(
        self, prompts_P: Sequence[Prompt], mine: Mapping[int, Any], per_prompt: int, to: Path
    ) -> list[Path]:
        """completions.jsonl: one line per sample of any rank, in order."""
        found = gathered(mine)
        if not dist.is_main():
            return []
        lines = []
        for sample in sorted(found):
            prompt, completion = prompts_P[sample // per_prompt], found[sample]
            line: dict[str, Any] = {"prompt": prompt.text, "sample": sample % per_prompt}
            line |= {"messages": list(prompt.messages)} if prompt.messages else {}
            line |= {"completion": completion.text, "finished": completion.finished}
            line |= {"tokens": list(completion.tokens)}
            lines.append(json_line(line, finite=False))  # a call's arguments may be anything
        path = to / COMPLETIONS
        replace_file(path, b"".join(lines), durable=False)
        return [path]

    def summary(self, written: Sequence[Path], to: Path) -> list[str]:
        rows = [json.loads(line) for line in (to / COMPLETIONS).read_text().split("\n")[:-1]]
        first = [row for row in rows if row["sample"] == 0]
        lines = []
        for row in first[:SHOWN]:
            end = "" if row["finished"] else " … (cut off)"
            lines.append(f"{_short(row['prompt'])}\n  → {_short(row['completion'])}{end}")
        finished = sum(row["finished"] for row in rows)
        count = f"{len(rows)} completions, {finished} of them finished"
        return [*lines, f"{count}, in {to / COMPLETIONS}"]


def _short(text: str) -> str:
    return text if len(text) <= SHOWN_CHARACTERS else text[:SHOWN_CHARACTERS] + " …"


def gathered(mine: Mapping[int, Any]) -> dict[int, Any]:
    """The values of all ranks by sample id, on rank 0. Collective."""
    return {sample: v for part in dist.gather_objects(dict(mine)) for sample, v in part.items()}


def completion_table(
    samples: Samples, rewards: Rewards, credit: Credit, measured: Mapping[int, Measured]
) -> list[dict[str, Any]] | None:
    """One record per sample of the iteration, on rank 0; None elsewhere. Collective.

    measured: this rank's `Tally.measured`."""
    ids = samples.rows.sample_ids_N.tolist()
    written: dict[int, Completion] = gathered(dict(zip(ids, samples.artifacts, strict=True)))
    numbers = gathered(measured)
    if not dist.is_main():
        return None
    size = rewards.total_PG.shape[1]
    planes = dict(zip(rewards.names, rewards.per_reward_RPG.flatten(1).tolist(), strict=True))
    table = []
    for sample in sorted(written):
        prompt, completion = samples.prompts_P[sample // size], written[sample]
        divergence, entropy = numbers.get(sample, (None, None))
        table.append(
            {
                "sample": sample,
                "prompt_id": prompt.id,
                "prompt": prompt.text,
                "completion": completion.text,
                "tokens": len(completion.tokens),
                "finished": completion.finished,
                **{f"reward_{name}": plane[sample] for name, plane in planes.items()},
                "advantage": float(credit.advantage[sample]),
                "beta": float(credit.beta[sample]),
                "divergence": divergence,
                "entropy": entropy,
            }
        )
    return table


MEDIA: Mapping[str, Medium] = {"pictures": Pictures(), "completions": Completions()}


def medium_of(domain: Domain | type[Domain]) -> Medium:
    """The medium of a domain. Raises ConfigError where `medium` is not a key of MEDIA."""
    name = domain.medium
    if name not in MEDIA:
        raise ConfigError(
            f"{domain}.medium = {name!r}: expected one of {', '.join(MEDIA)}; write a class of "
            "adrpo_scale.training.media.Medium for another and add it to MEDIA there"
        )
    return MEDIA[name]
