"""What `plan` says a rank holds, against the bytes of the live tensors on every rank."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.distributed.tensor import DTensor

from adrpo_scale.cluster.plan.workload import engine_of, workload_of
from adrpo_scale.domains.audio import AudioDomain
from adrpo_scale.domains.flow import FlowDomain
from adrpo_scale.engines.planning import Ranks
from adrpo_scale.run.build import build_engine
from tests.support.ranks import run_ranks
from tests.support.tiny import FULL, demo_config
from tests.support.tiny_audio import audio_config, save_prompts, save_thinker

PER_NODE = 2  # four ranks are two nodes of two
VARIANTS = {
    "fsdp2-1": ["engine.name=fsdp2", "engine.shard=1"],
    "fsdp2-node": ["engine.name=fsdp2", "engine.shard=node"],
    "fsdp2-all": ["engine.name=fsdp2", "engine.shard=all"],
    "zero3-all": ["engine.name=zero3", "engine.shard=all"],
}


def config_of(variant, kind, dtype, thinker=None):
    """thinker: the folder of one, instead of the image demo's model."""
    if thinker:
        return audio_config(
            Path(thinker), [*VARIANTS[variant], f"domain.train={kind}", f"engine.dtype={dtype}"]
        )
    trained = FULL if kind == "full" else []
    return demo_config(overrides=[*VARIANTS[variant], *trained, f"engine.dtype={dtype}"])


def size(tensor: Any) -> int:
    local = tensor.to_local() if isinstance(tensor, DTensor) else tensor
    return local.numel() * local.element_size()


def one_update(engine, model):
    """A backward and what the optimizer needs, without its step, which would drop gradients."""
    config = model.config
    side = config.sample_size
    out = model(
        hidden_states=torch.randn(2, config.in_channels, side, side, dtype=engine.dtype),
        timestep=torch.rand(2),
        encoder_hidden_states=torch.randn(2, 8, config.joint_attention_dim, dtype=engine.dtype),
        pooled_projections=torch.randn(2, config.pooled_projection_dim, dtype=engine.dtype),
        return_dict=False,
    )[0]
    engine.backward(out.float().square().mean(), last=True)


def held_fsdp2(engine, model):
    stepped = engine._stepped().values()
    state = [t for s in engine._optimizer.state.values() for n, t in s.items() if n != "step"]
    tensors = {*model.parameters(), *model.buffers()}
    return {
        "parameters": sum(size(t) for t in tensors),
        "masters": sum(size(t) for t in engine._masters.values()),
        "gradients": sum(size(p.grad) for p in stepped),
        "moments": sum(size(t) for t in state),
    }


def held_zero3(engine, model):
    buffers = sum(size(b) for b in model.buffers())
    masters = engine._zero.fp32_partitioned_groups_flat
    state = [t for s in engine._adamw.state.values() for n, t in s.items() if n != "step"]
    return {
        "parameters": sum(size(p.ds_tensor) for p in model.parameters()) + buffers,
        "masters": sum(size(t) for t in masters),
        "gradients": size(engine._zero.grad_partitions_flat_buffer),
        "moments": sum(size(t) for t in state),
    }


def live(rank, world, cases, thinker=None):
    os.environ["LOCAL_WORLD_SIZE"] = str(min(PER_NODE, world))
    os.environ["LOCAL_RANK"] = str(rank % PER_NODE)
    found = []
    for variant, kind, dtype in cases:
        config = config_of(variant, kind, dtype, thinker)
        domain = AudioDomain if thinker else FlowDomain
        engine, spec = build_engine(config), domain(config.domain).policy_spec()
        model = engine.build_policy(spec)
        if thinker:
            engine.backward(workload_of(config).train(model, 2), last=True)
        else:
            one_update(engine, model)
        held = held_zero3 if variant.startswith("zero3") else held_fsdp2
        found.append(held(engine, model))
    return found


def planned(rank, world, variant, kind, dtype, thinker=None):
    config = config_of(variant, kind, dtype, thinker)
    spec, ranks = workload_of(config).spec, Ranks(world, PER_NODE, rank)
    found = engine_of(config).shards(spec, ranks, trained=True)
    names = ("parameters", "masters", "gradients", "moments")
    return {name: getattr(found, name) for name in names}


@pytest.mark.parametrize("world", [2, pytest.param(4, marks=pytest.mark.slow)])
@pytest.mark.parametrize("engine", ["fsdp2", "zero3"])
def test_bytes_per_rank_are_the_real_ones(engine, world):
    variants = [name for name in VARIANTS if name.startswith(engine)]
    dtype = "float32" if world == 2 else "bfloat16"  # with masters, and without
    cases = [(variant, kind, dtype) for variant in variants for kind in ("lora", "full")]
    by_rank = run_ranks(live, world, cases)
    for place, case in enumerate(cases):
        real = [found[place] for found in by_rank]
        assert real == [planned(rank, world, *case) for rank in range(world)], case


def test_bytes_per_rank_of_a_thinker_are_the_real_ones(tmp_path):
    """Its towers are no part of what an engine shards."""
    folder = str(save_thinker(tmp_path / "m"))
    save_prompts(tmp_path / "m" / "prompts.jsonl")
    cases = [("fsdp2-1", "lora", "bfloat16"), ("fsdp2-all", "lora", "bfloat16")]
    cases += [("fsdp2-all", "full", "float32"), ("zero3-all", "lora", "bfloat16")]
    by_rank = run_ranks(live, 2, cases, folder)
    for place, case in enumerate(cases):
        real = [found[place] for found in by_rank]
        assert real == [planned(rank, 2, *case, folder) for rank in range(2)], case
