"""Runs of language models in pieces: to the bit on the same processes, to rounding on others."""

from __future__ import annotations

import functools

import pytest

from tests.support import starts
from tests.support.tiny import CONFIGS

SETTINGS = [
    "seed=1",  # with which some groups have different rewards
    "iterations=4",
    "checkpoint.every_iterations=1",
    "prompts.per_iteration=3",
    "prompts.group_size=4",
    "domain.rollout.max_new_tokens=12",
    "domain.evaluation.max_new_tokens=12",
    "optimizer.updates=2",
    "optimizer.micro_batch=2",
    "evaluation.every=0",
    "evaluation.prompts=3",
    "logging.completions_every=1",
    "engine.timeout_seconds=60",
]
FSDP2 = ["engine.name=fsdp2", "engine.shard=all"]
ZERO3 = ["engine.name=zero3", "engine.shard=all"]
LORA = ["domain.train=lora", "domain.lora={rank=8}"]


def train(folder, world, *settings, config="text_adrpo"):
    """A start of a demo cut down to seconds, to its end."""
    path = CONFIGS / "demo" / f"{config}.toml"
    arguments = ["train", str(path), "--run-dir", str(folder / "run")]
    sets = [part for setting in [*SETTINGS, *settings] for part in ("--set", setting)]
    start = starts.Started(folder, world, [*arguments, *sets])
    assert start.wait() == [0] * world, start.text()
    return folder / "run"


@pytest.mark.parametrize(
    ("settings", "world"),
    # With adapters, and under ZeRO-3: test_resume.py.
    [(["evaluation.every=2"], 1), (FSDP2, 2)],
    ids=["alone", "fsdp2"],
)
def test_a_run_in_pieces_is_the_run_in_one_to_the_bit(tmp_path, settings, world):
    train(tmp_path / "pieces", world, *settings, "iterations=2")
    pieces = train(tmp_path / "pieces", world, *settings)
    whole = train(tmp_path / "whole", world, *settings)
    assert starts.differences(pieces, whole) == []
    files = [sorted(p.name for p in (run / "samples").iterdir()) for run in (pieces, whole)]
    assert files[0] == files[1] == [f"completions-00000{n}.parquet" for n in (1, 2, 3, 4)]


@pytest.mark.slow
@pytest.mark.parametrize("settings", [[], LORA], ids=["full", "lora"])
def test_a_checkpoint_goes_from_fsdp2_to_zero3_and_on(tmp_path, settings):
    """FSDP2 on 4 processes → ZeRO-3 on 2 → ZeRO-3 on 3 → FSDP2 on 1."""
    starts_ = ((4, FSDP2), (2, ZERO3), (3, ZERO3), (1, FSDP2))
    for done, (world, engine) in enumerate(starts_, start=1):
        run = train(tmp_path / "moved", world, *settings, *engine, f"iterations={done}")
    assert {start["outcome"] for start in starts.records_of(run)} == {"done"}
    starts.assert_close_runs(run, train(tmp_path / "stayed", 2, *settings, *FSDP2))


@pytest.mark.slow
def test_a_run_on_clips_goes_on_to_the_bit_and_on_another_engine(tmp_path):
    """What a rank has encoded is not part of a checkpoint: the next start hears it again."""
    more = ("domain.rollout.max_new_tokens=16", "domain.evaluation.max_new_tokens=16")
    clips = functools.partial(train, config="audio_adrpo")
    for done in (2, 4):
        pieces = clips(tmp_path / "pieces", 2, *more, *FSDP2, f"iterations={done}")
    whole = clips(tmp_path / "whole", 2, *more, *FSDP2)
    assert starts.differences(pieces, whole) == []
    for world, engine, done in ((2, FSDP2, 1), (3, ZERO3, 3), (1, FSDP2, 4)):
        moved = clips(tmp_path / "moved", world, *more, *engine, f"iterations={done}")
    starts.assert_close_runs(moved, whole)
