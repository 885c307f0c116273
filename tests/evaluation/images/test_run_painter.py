"""A run's checkpoint paints what its domain samples from the noise that each key stands for."""

from __future__ import annotations

import itertools
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from adrpo_scale.checkpoint.locate import open_checkpoint
from adrpo_scale.core import dist
from adrpo_scale.core.errors import CheckpointError, ConfigError
from adrpo_scale.core.types import Prompt
from adrpo_scale.evaluation.images.models import RunModel
from adrpo_scale.evaluation.images.noise import NOISE, draw_key, first_noise, ids_of
from adrpo_scale.evaluation.images.painters import painter_of
from adrpo_scale.evaluation.sample import domain_of, load_policy, run_source, sampling_engine
from tests.support.ranks import run_ranks
from tests.support.shared import CACHE
from tests.support.tiny import MODEL, demo_config, demo_trainer

CPU = torch.device("cpu")
RUNS = Path(__file__).parents[2] / "golden" / "runs"
TEXTS = ["a red ring", "two green triangles", "a red ring"]
KEYS = [draw_key(0, 4, 0), draw_key(0, 9, 0), draw_key(1, 4, 1)]
LEVELS = 1  # of 255: another batch adds up in another order, which may tip a rounding


@pytest.fixture(autouse=True)
def cache(monkeypatch):
    monkeypatch.setenv("ADRPO_CACHE", str(CACHE))


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run whose adapters and their average differ from the base, in iteration 0."""
    folder = tmp_path_factory.mktemp("painted") / "image_adrpo,seed=0-abc"
    overrides = ["ema_decay=0.9", "evaluation.weights=ema", "engine.shard=all"]
    trainer = demo_trainer(folder, demo_config(overrides=overrides))
    random = torch.Generator().manual_seed(1)
    for tensor in trainer.engine.trained_slices().values():
        tensor += 0.05 * torch.randn(tensor.shape, generator=random)
    trainer.engine.publish()
    trainer.saver.save_now()
    return folder


def painted(model, texts=TEXTS, keys=KEYS):
    painter = painter_of(model, CPU)
    painter.prepare(texts)
    found = painter.paint(texts, keys)
    painter.close()
    return found


def by_hand(run, weights):
    """The same samples, by the domain itself."""
    source = run_source(open_checkpoint(str(run)))
    domain, engine = domain_of(source), sampling_engine(source.config)
    prompts = [Prompt(place, text) for place, text in enumerate(TEXTS)]
    domain.prepare(prompts, engine.device, engine.dtype)
    policy = load_policy(source, domain, engine, weights)
    ids = torch.tensor(ids_of(KEYS))
    with engine.sampling(policy):
        return domain.artifacts(domain.sample(policy, prompts, ids, NOISE, "evaluation"))


def test_a_run_paints_what_its_domain_samples(run):
    found = {w: painted(RunModel(str(run), w)) for w in ("evaluated", "ema", "raw")}
    for weights, pictures in found.items():
        for one, other in zip(pictures, by_hand(run, weights), strict=True):
            assert one.dtype == np.uint8 and one.shape == (20, 20, 3)
            assert np.array_equal(one, other)
    assert np.array_equal(found["evaluated"], found["ema"])
    assert not np.array_equal(found["ema"], found["raw"])


def test_a_picture_does_not_depend_on_its_batch(run):
    painter = painter_of(RunModel(str(run)), CPU)
    painter.prepare(TEXTS)
    together = painter.paint(TEXTS, KEYS)
    for text, key, expected in zip(TEXTS, KEYS, together, strict=True):
        (alone,) = painter.paint([text], [key])
        assert np.abs(alone.astype(int) - expected).max() <= LEVELS
    assert np.abs(together[0].astype(int) - together[2]).max() > 50  # one prompt, two keys
    painter.close()


def _of_one_rank(rank, world, run):
    """Rank 0 paints three times, rank 1 once."""
    painter = painter_of(RunModel(str(run)), CPU)
    painter.prepare(TEXTS)
    pictures = [painter.paint(TEXTS[:1], KEYS[:1])[0] for _ in range(3 if rank == 0 else 1)]
    painter.close()
    dist.barrier()
    return pictures


@pytest.mark.slow
def test_ranks_of_a_sharded_run_paint_differently_often(run):
    (expected,) = painted(RunModel(str(run)), TEXTS[:1], KEYS[:1])
    for pictures in run_ranks(_of_one_rank, 2, run):
        for picture in pictures:
            assert np.abs(picture.astype(int) - expected).max() <= LEVELS


def test_the_identity_names_run_weights_and_settings(run):
    identity = painter_of(RunModel(str(run)), CPU).identity
    assert identity == {
        "kind": "run",
        "run": "image_adrpo,seed=0-abc",
        "iteration": 0,
        "weights": "ema",
        "steps": 4,
        "guidance": 1.0,
        "height": 20,
        "width": 20,
        "latent_shape": [3, 20, 20],
        "dtype": "float32",
    }
    changed = painter_of(RunModel(str(run), "raw", steps=2, guidance=3.0), CPU).identity
    assert changed == identity | {"weights": "raw", "steps": 2, "guidance": 3.0}


def test_what_is_no_run_of_pictures_is_refused(run, tmp_path):
    with pytest.raises(ConfigError, match="published model: name it as pipeline"):
        painter_of(RunModel(MODEL), CPU)
    with pytest.raises(ConfigError, match=r'makes completions: judge it.* benchmark = "text"'):
        painter_of(RunModel(str(RUNS / "text_rm")), CPU)
    with pytest.raises(CheckpointError, match="no checkpoint of iteration 7"):
        painter_of(RunModel(f"{run}@7"), CPU)
    with pytest.raises(ConfigError, match="height = 21: this model takes multiples"):
        painter_of(RunModel(str(run), size=21), CPU)


def test_a_damaged_checkpoint_is_refused_before_it_is_loaded(run, tmp_path):
    shutil.copytree(run, tmp_path / "run")
    (file, *_) = sorted((tmp_path / "run").rglob("*.safetensors"))
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    with pytest.raises(CheckpointError, match="damaged"):
        painter_of(RunModel(str(tmp_path / "run")), CPU).prepare(TEXTS)


def test_noise_is_a_function_of_the_key_alone():
    keys = [draw_key(*numbers) for numbers in itertools.product((0, 1), (0, 3), (0, 1))]
    noise = first_noise(keys, (2, 3, 3))
    assert noise.shape == (8, 2, 3, 3) and noise.dtype == torch.float32
    assert len({tuple(row.flatten().tolist()) for row in noise}) == 8
    for key, row in zip(keys, noise, strict=True):
        assert torch.equal(first_noise([key], (2, 3, 3))[0], row)
