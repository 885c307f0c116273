"""Weights that an engine writes back or refuses, and shardings that it refuses."""

from __future__ import annotations

import importlib
import os
from dataclasses import replace

import pytest
import torch
from safetensors.torch import save_file

from adrpo_scale.core.errors import ConfigError, WeightsError
from adrpo_scale.domains.flow import WEIGHTS
from adrpo_scale.hub.weights import SafetensorsFolder
from adrpo_scale.run.build import build_engine
from tests.support.engine_cases import (
    assert_average_goes_in_and_out,
    build,
    update,
    weights_on_disk,
)
from tests.support.ranks import run_ranks
from tests.support.tiny import demo_config, load_whole, whole_tensors


def publishes_copies(rank, world):
    """With offload on GPUs DeepSpeed's accessors give copies; here they are made to."""
    engine, spec = build("zero3-offload", "full")
    utils, asked = importlib.import_module("deepspeed.utils"), []
    for name in ("safe_get_local_fp32_param", "safe_get_local_optimizer_state"):
        accessor = getattr(utils, name)

        def copied(*args, accessor=accessor):
            asked.append(args)
            return accessor(*args).clone()

        setattr(utils, name, copied)
    model = engine.build_policy(spec)
    update(engine, model)
    asked.clear()
    assert engine.moment_sums()[1][1] > 0 and not asked  # sums are taken where the moments lie
    whole = whole_tensors(engine)
    for slices in engine.moments().values():
        for values in slices.values():
            values.fill_(rank + 3)
    load_whole(engine, {name: 2 * tensor for name, tensor in whole.items()})
    assert all(torch.equal(t, 2 * whole[name]) for name, t in whole_tensors(engine).items())
    assert_average_goes_in_and_out(engine, model)
    for slices in engine.moments().values():
        assert all((values == rank + 3).all() for values in slices.values())
    update(engine, model)
    stepped = whole_tensors(engine)
    engine.moments(), update(engine, model)
    moved = whole_tensors(engine)
    engine.publish()  # nothing handed out before a step is written back after it
    assert any(not torch.equal(moved[name], stepped[name]) for name in moved)
    assert all(torch.equal(t, moved[name]) for name, t in whole_tensors(engine).items())


def test_what_zero3_hands_out_as_copies_is_written_back():
    run_ranks(publishes_copies, 2)


def refuses_shapes(rank, world, variant, folder):
    engine, spec = build(variant, "full")
    spec = replace(spec, weights=SafetensorsFolder(folder, WEIGHTS))
    with pytest.raises(WeightsError, match=r"proj_out\.bias does not have the model's shape"):
        engine.build_policy(spec)


@pytest.mark.parametrize("variant", ["fsdp2-all", "zero3-all"])
@pytest.mark.parametrize("more", [-1, 1])
def test_weights_of_another_shape_are_refused_on_every_rank(tmp_path, variant, more):
    """Read by rows, a tensor with more of them would pass for the model's."""
    tensors = weights_on_disk()
    tensors["proj_out.bias"] = torch.ones(len(tensors["proj_out.bias"]) + more)
    save_file(tensors, tmp_path / f"{WEIGHTS}.safetensors")
    run_ranks(refuses_shapes, 2, variant, tmp_path)


def refuses_weights(rank, world, variant, folder, fault):
    engine, spec = build(variant, "lora")
    spec = replace(spec, weights=SafetensorsFolder(folder, WEIGHTS))
    with pytest.raises(WeightsError, match=rf"1 {fault} \['proj_out"):
        engine.build_policy(spec)


@pytest.mark.parametrize("fault", ["missing", "unknown"])
def test_weights_that_do_not_cover_the_model_exactly_are_refused(tmp_path, fault):
    tensors = weights_on_disk()
    if fault == "missing":
        del tensors["proj_out.bias"]
    else:
        tensors["proj_out.scale"] = torch.ones(2)
    save_file(tensors, tmp_path / f"{WEIGHTS}.safetensors")
    for variant in ("fsdp2-1", "zero3-all"):
        run_ranks(refuses_weights, 1, variant, tmp_path, fault)


def unequal_nodes(rank, world, name):
    os.environ |= {"LOCAL_WORLD_SIZE": "2", "LOCAL_RANK": "0"}
    with pytest.raises(ConfigError, match="every node must run the same number"):
        build_engine(demo_config(overrides=[f"engine.name={name}", "engine.shard=node"]))


@pytest.mark.parametrize("name", ["fsdp2", "zero3"])
def test_sharding_inside_nodes_of_unequal_size_is_refused(name):
    run_ranks(unequal_nodes, 3, name)


def test_zero3_refuses_to_replicate():
    with pytest.raises(ConfigError, match=r'engine.shard: .*use engine.name = "fsdp2"'):
        demo_config(overrides=["engine.name=zero3", "engine.shard=1"])
