"""Media: what is shown, measured and written, by what a domain makes."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from adrpo_scale.core.errors import ConfigError
from adrpo_scale.core.types import Completion, Prompt, Rows
from adrpo_scale.domains.flow import FlowDomain
from adrpo_scale.rewards.base import Embedding, Reward, RewardConfig
from adrpo_scale.training import media
from adrpo_scale.training.media import COMPLETIONS, MEDIA, Samples, medium_of
from tests.support.ranks import run_ranks

PROMPTS = [Prompt(0, "a"), Prompt(1, "b")]
PICTURES, COMPLETED = MEDIA["pictures"], MEDIA["completions"]


class Mean(Reward):
    """The mean colour; with `embed`, which is not asked for unless the class states it."""

    def __init__(self) -> None:
        super().__init__(RewardConfig(kind="mean"))

    def __call__(self, artifacts: Any, prompts: Any) -> torch.Tensor:
        return self.embed(artifacts).mean(1)

    def embed(self, artifacts: Any) -> torch.Tensor:
        return torch.tensor(np.stack([a.mean((0, 1)) for a in artifacts])).float()


class Embeds(Mean, Embedding):
    """And states it."""


def painted(count: int) -> list[np.ndarray]:
    return [np.full((8, 8, 3), 20 * n, dtype=np.uint8) for n in range(count)]


def samples(artifacts: list[Any], first: int = 0) -> Samples:
    ids = torch.arange(first, first + len(artifacts))
    rows = Rows(ids, ids // 2, {})
    return Samples(rows, artifacts, PROMPTS, torch.arange(4.0).view(2, 2))


def test_embeddings_are_those_of_a_reward_that_states_that_it_has_them() -> None:
    four = samples(painted(4))
    assert set(PICTURES.measure(four, [Mean()])) == {"pixel_diversity"}
    found = PICTURES.measure(four, [Mean(), Embeds()])
    assert found["clip_diversity_l2"].tolist() == pytest.approx([20 * 3**0.5] * 2)
    assert found["clip_diversity_cosine"].shape == found["pixel_diversity"].shape == (2,)
    assert COMPLETED.measure(four, [Embeds()]) == {}


def written(rank: int, world: int, folder: str) -> list[str]:
    from pathlib import Path

    to, mine = Path(folder), range(rank * 4 // world, (rank + 1) * 4 // world)
    pictures = painted(4)
    PICTURES.write(PROMPTS, {n: pictures[n] for n in mine}, 2, to)
    made = {n: Completion(f"w{n}", (n,), n != 3) for n in mine}
    COMPLETED.write(PROMPTS, made, 2, to)
    return sorted(path.name for path in to.iterdir()) if rank == 0 else []


@pytest.mark.parametrize("world", [1, 2])
def test_what_is_written_does_not_depend_on_the_ranks(world: int, tmp_path: Any) -> None:
    names = run_ranks(written, world, str(tmp_path))[0]
    files = [f"{p:05d}-{g:03d}.png" for p in range(2) for g in range(2)]
    assert names == sorted([*files, COMPLETIONS, "grid.png", "samples.jsonl"])
    assert np.asarray(Image.open(tmp_path / files[2])).tolist() == painted(4)[2].tolist()
    lines = [json.loads(line) for line in (tmp_path / COMPLETIONS).read_text().splitlines()]
    assert [line["completion"] for line in lines] == ["w0", "w1", "w2", "w3"]
    summary = COMPLETED.summary([tmp_path / COMPLETIONS], tmp_path)
    assert "4 completions, 3 of them finished" in summary[-1]
    assert "w2" in summary[1]


def test_a_medium_that_there_is_not_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    assert medium_of(FlowDomain) is PICTURES
    monkeypatch.setattr(FlowDomain, "medium", "films")
    with pytest.raises(ConfigError, match="'films': expected one of pictures, completions"):
        medium_of(FlowDomain)


def test_fewer_pictures_than_processes_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(media.dist, "world_size", lambda: 5)
    with pytest.raises(ConfigError, match="2 prompts × 2 samples are fewer than the 5 processes"):
        PICTURES.check(2, 2, "train")
    COMPLETED.check(2, 2, "train")
