"""Shapes of published models, which `plan` knows without their weights."""

from __future__ import annotations

import pytest
from accelerate import init_empty_weights

from adrpo_scale.cluster.plan.workload import workload_of
from adrpo_scale.core.errors import ConfigError, ModelNotFoundError
from adrpo_scale.hub.shapes import config_folder
from tests.support.plans import config_of
from tests.support.shipped import RUNS

PARAMETERS = {  # as published
    "configs/sd3/adrpo.toml": {
        "policy": 2_028_328_000,
        "VAE": 83_819_683,
        "CLIP text encoder": 123_650_304,
        "CLIP text encoder 2": 694_659_840,
        "T5": 4_762_310_656,
        "reward clip": 427_616_513,
    },
    "configs/qwen/qwen2_0.5b_adrpo.toml": {"policy": 494_032_768},
    "configs/qwen/qwen3_0.6b_adrpo.toml": {
        "policy": 596_049_920,
        "reward reward_model": 2_506_174_464,
    },
    # The thinker has 8,931,813,888 with both of its towers; that of vision is never built.
    "configs/omni/avqa_adrpo.toml": {"policy": 7_615_616_512, "audio tower": 639_647_232},
}


def parameters(spec):
    with init_empty_weights():
        model = spec.build()
    spec.tie(model)
    if hasattr(model, "tie_weights"):
        model.tie_weights()
    return sum(p.numel() for p in model.parameters())


@pytest.mark.parametrize("path", PARAMETERS)
def test_shapes_have_the_published_number_of_parameters(path):
    work = workload_of(config_of(path))
    found = {"policy": parameters(work.spec)}
    found |= {model.name: parameters(model.spec) for model in work.frozen}
    assert {name: found[name] for name in PARAMETERS[path]} == PARAMETERS[path]


@pytest.mark.parametrize("path", RUNS, ids=lambda p: p.stem)
def test_every_shipped_config_is_known_without_network(path):
    assert workload_of(config_of(path)).spec is not None


def test_the_thinker_is_none_of_the_text_domains():
    with pytest.raises(ConfigError, match="'qwen2_5_omni_thinker', for which transformers has no"):
        workload_of(
            config_of("configs/qwen/qwen3_0.6b_adrpo.toml", "domain.model=Qwen/Qwen2.5-Omni-7B")
        )


def test_an_unknown_model_names_those_that_are_known():
    with pytest.raises(ModelNotFoundError, match=r"adrpo-scale prefetch.*Qwen/Qwen3-0\.6B"):
        config_folder("nobody/nothing", "domain.model")
