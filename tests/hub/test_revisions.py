"""A need that names a commit: brought, pinned, found offline, and never mixed with another one."""

from __future__ import annotations

import tomllib

import pytest
import torch
from safetensors.torch import save_file

from adrpo_scale.core.errors import ConfigError, ModelNotFoundError
from adrpo_scale.evaluation.file import parse_evaluation
from adrpo_scale.evaluation.images.models import PipelineModel
from adrpo_scale.evaluation.images.noise import draw_key
from adrpo_scale.evaluation.images.painters import painter_of
from adrpo_scale.evaluation.needs import needs_of
from adrpo_scale.hub.lock import read_lock
from adrpo_scale.hub.needs import HubNeed, joined
from adrpo_scale.hub.prefetch import prefetch
from adrpo_scale.hub.weights import find_model, revision_of
from tests.support.published import POLICY
from tests.support.tiny_pipelines import save_pipeline


@pytest.fixture
def commits(hub, place):
    """The commits of own/policy, the older one first; the newer has a file more."""
    older = hub.repos[POLICY].main
    (place / "work" / "NOTE.txt").write_text("newer")
    return older, hub.add("own/policy", place / "work").main


def need(revision):
    return HubNeed("own/policy", "pipeline", ("*",), revision=revision)


def test_a_commit_is_brought_and_found_offline_beside_a_newer_one(hub, commits):
    older, newer = commits
    assert revision_of(find_model(need(None))) == newer
    assert revision_of(find_model(need(older))) == older
    hub.down = True
    assert [revision_of(find_model(need(c))) for c in commits] == [older, newer]


def test_a_commit_is_pinned_and_another_is_refused(hub, commits):
    older, newer = commits
    prefetch([need(older)])
    assert read_lock()[POLICY].revision == older
    hub.down = True
    assert revision_of(find_model(need(older))) == revision_of(find_model(need(None))) == older
    hub.down = False
    for ask in (lambda: find_model(need(newer)), lambda: prefetch([need(newer)])):
        with pytest.raises(ModelNotFoundError, match=f"and revision {newer} is asked for: take"):
            ask()
    prefetch([need(newer)], upgrade=True)
    assert read_lock()[POLICY].revision == newer


def test_a_pipeline_and_its_lora_are_read_offline_at_the_locked_commits(hub, place, tmp_path):
    layer = "transformer.transformer_blocks.0.attn.to_q"
    (tmp_path / "lora").mkdir()
    save_file(
        {f"{layer}.lora_A.weight": torch.ones(1, 32), f"{layer}.lora_B.weight": torch.ones(32, 1)},
        tmp_path / "lora" / "theirs.safetensors",
    )
    hub.add("own/lora", tmp_path / "lora")
    folder = save_pipeline("flux", tmp_path / "flux")
    hub.add("own/flux", folder)
    (folder / "vae" / "other.txt").write_text("newer")
    older = hub.repos["model", "own/flux"].main
    hub.add("own/flux", folder)
    text = 'benchmark = "images"\nprompts.file = "p.jsonl"\nsampling.per_prompt = 1\n'
    text += 'scorers = [{kind = "glyph_checker"}]\n[models.flux]\npipeline = "own/flux"\n'
    text += f'lora = "own/lora"\nrevision = "{older}"\nsteps = 1\nsize = 32\n'
    (place / "work" / "p.jsonl").write_text('{"prompt": "a red ring"}\n')
    prefetch(needs_of(parse_evaluation(tomllib.loads(text))))
    hub.down = True
    model = PipelineModel("own/flux", older, "own/lora", steps=1, size=32)
    painter = painter_of(model, torch.device("cpu"))
    identity = painter.identity
    assert identity["revision"] == older and identity["sha256"] is None
    assert identity["lora"]["revision"] == hub.repos["model", "own/lora"].main
    painter.prepare(["a red ring"])
    (picture,) = painter.paint(["a red ring"], [draw_key(0, 0, 0)])
    assert picture.shape == (32, 32, 3)


def test_a_repository_is_needed_at_one_commit(commits):
    older, newer = commits
    assert joined([need(None), need(older)])[0].revision == older
    with pytest.raises(ConfigError, match="is needed at the revisions"):
        joined([need(older), need(newer)])
