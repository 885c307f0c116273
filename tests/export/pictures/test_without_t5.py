"""A pipeline that was saved without its third text encoder: it trains, and is exported, without."""

from __future__ import annotations

import json
import shutil
from types import SimpleNamespace

import pytest
import torch

from adrpo_scale.cluster.preflight.models import model_findings
from adrpo_scale.core.errors import ConfigError
from adrpo_scale.core.paths import resolve_path
from adrpo_scale.domains.flow import FlowDomain
from adrpo_scale.export import verify
from adrpo_scale.export.base import Request
from adrpo_scale.export.exporter import export
from adrpo_scale.hub.prefetch import require_models
from tests.support.plain_processes import plain_processes
from tests.support.tiny import FULL, MODEL, demo_config, demo_trainer

ABSENT = ("text_encoder_3", "tokenizer_3", "image_encoder", "feature_extractor")


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """As `save_pretrained` of a pipeline with `text_encoder_3=None` writes it."""
    to = tmp_path_factory.mktemp("sd3") / "base"
    shutil.copytree(resolve_path(MODEL), to)
    index = json.loads((to / "model_index.json").read_text())
    for part in ABSENT:
        index[part] = [None, None]
        if (to / part).is_dir():
            shutil.rmtree(to / part)
    (to / "model_index.json").write_text(json.dumps(index))
    return to


def config_of(base, *settings):
    prompts = resolve_path(f"{MODEL}/prompts/train.jsonl")
    given = [f"domain.model={base}", f"prompts.train={prompts}", "optimizer.learning_rate=1e-2"]
    return demo_config(overrides=[*given, "domain.t5=false", *settings])


def test_it_trains_is_planned_and_found_fit(base):
    config = config_of(base)
    require_models(config.needs_from_hub())
    assert model_findings(config, base / "run") == []
    assert FlowDomain.workload(config.domain, torch.float32).frozen


def test_its_third_encoder_cannot_be_asked_for(base):
    config = config_of(base, "domain.t5=true")
    message = r"saved without text_encoder_3 .*: set domain\.t5 = false"
    with pytest.raises(ConfigError, match=message):
        FlowDomain(config.domain)
    with pytest.raises(ConfigError, match=message):
        FlowDomain.workload(config.domain, torch.float32)
    (finding,) = model_findings(config, base / "run")
    assert "set domain.t5 = false" in finding.value


@pytest.mark.parametrize(
    ("settings", "forms"),
    [
        pytest.param([], ("adapter", "merged"), id="lora"),
        pytest.param(FULL, ("full",), id="full", marks=pytest.mark.slow),
    ],
)
def test_every_export_of_it_loads_as_a_pipeline(base, tmp_path, monkeypatch, settings, forms):
    trainer = demo_trainer(tmp_path / "run", config_of(base, *settings))
    trainer.train()
    trainer.saver.save_now()
    imports = "from diffusers import SD3Transformer2DModel, StableDiffusion3Pipeline"
    (tmp_path / "plain").mkdir()
    with plain_processes(tmp_path / "plain", imports) as plain:
        run = lambda command, **_: plain(*command[2:])  # noqa: E731
        monkeypatch.setattr(verify, "subprocess", SimpleNamespace(run=run))
        for form in forms:
            to = tmp_path / form
            assert export(str(tmp_path / "run"), Request(to, form)).verdict.level == "outputs"
            if form != "adapter":
                there = json.loads((to / "model_index.json").read_text())
                assert all(there[part] == [None, None] for part in ABSENT)
                assert not any((to / part).exists() for part in ABSENT)
            assert "text_encoder_3=None" in (to / "README.md").read_text()
