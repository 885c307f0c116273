"""Engines for the tests of their contract: variants, models, rows, and the loop written by hand.

The plain loop runs in one process, on the same diffusers class and rows. A new engine is a line of
VARIANTS (and of `held`, how it stores what a rank holds).
"""

from __future__ import annotations

import functools
import os
from contextlib import nullcontext
from typing import Any

import peft
import pytest
import torch
from diffusers import SD3Transformer2DModel
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from adrpo_scale.core import dist
from adrpo_scale.domains.flow import ATTENTION, WEIGHTS, FlowDomain
from adrpo_scale.engines.base import Engine
from adrpo_scale.engines.spec import ModelSpec
from adrpo_scale.hub.weights import find_model, initial_uniform
from adrpo_scale.run.build import build_engine
from adrpo_scale.training.ema import Ema
from tests.support.closeness import second_moments
from tests.support.tiny import FULL, MODEL, demo_config, whole_tensors

VARIANTS: dict[str, list[str]] = {
    "fsdp2-1": ["engine.name=fsdp2", "engine.shard=1"],
    "fsdp2-node": ["engine.name=fsdp2", "engine.shard=node"],
    "fsdp2-all": ["engine.name=fsdp2", "engine.shard=all"],
    "zero3-all": ["engine.name=zero3", "engine.shard=all"],
    "zero3-node": ["engine.name=zero3", "engine.shard=node"],
    "zero3-offload": [
        *("engine.name=zero3", "engine.shard=all"),
        *("engine.offload_optimizer=true", "engine.offload_parameters=true"),
    ],
}
PER_NODE = 2  # four ranks are two nodes of two
WORLDS = {"zero3-node": [4], "zero3-offload": [2]}  # elsewhere these are zero3-all, or as it
SLOW = {"zero3-node", "zero3-offload"}  # half a minute each
CASES = [
    pytest.param(variant, world, marks=[pytest.mark.slow] if variant in SLOW else [])
    for variant in VARIANTS
    for world in WORLDS.get(variant, [1, 2, 4])
]
ROWS = 16
UPDATES = 3
RATE = 1e-3
MAX_NORM = 1e-3  # below the norms of these rows, so that clipping is at work
RANK = 16


# ---- models and rows -----------------------------------------------------------------------------


def build(variant: str, kind: str, *settings: str) -> tuple[Engine, ModelSpec]:
    """An engine inside a rank, and what it is to build. kind: "lora" or "full"."""
    os.environ["LOCAL_WORLD_SIZE"] = str(min(PER_NODE, dist.world_size()))
    os.environ["LOCAL_RANK"] = str(dist.rank() % PER_NODE)
    trained = FULL if kind == "full" else []
    clipping = f"optimizer.max_grad_norm={MAX_NORM}"
    config = demo_config(overrides=[*VARIANTS[variant], *trained, clipping, *settings])
    return build_engine(config), FlowDomain(config.domain).policy_spec()


def weights_on_disk() -> dict[str, Tensor]:
    """In float32, whatever the file has: that is what a float32 engine must hold to the bit."""
    stored = load_file(find_model(MODEL) / "transformer" / f"{WEIGHTS}.safetensors")
    return {name: tensor.float() for name, tensor in stored.items()}


def rows(model: nn.Module, start: int = 0, stop: int = ROWS) -> dict[str, Tensor]:
    """Rows [start, stop) of ROWS random ones, the same everywhere."""
    config, random = model.config, torch.Generator().manual_seed(7)
    latent = (ROWS, config.in_channels, config.sample_size, config.sample_size)
    made = {
        "hidden_states": torch.randn(latent, generator=random),
        "timestep": 1000 * torch.rand(ROWS, generator=random),
        "encoder_hidden_states": torch.randn(ROWS, 8, config.joint_attention_dim, generator=random),
        "pooled_projections": torch.randn(ROWS, config.pooled_projection_dim, generator=random),
        "target": torch.randn(latent, generator=random),
        "weight": torch.rand(ROWS, generator=random) * 4 - 1,
    }
    return {name: tensor[start:stop] for name, tensor in made.items()}


def predict(model: nn.Module, batch: dict[str, Tensor], dtype: torch.dtype) -> Tensor:
    inputs = {n: t for n, t in batch.items() if n not in ("target", "weight")}
    inputs = {n: t if n == "timestep" else t.to(dtype) for n, t in inputs.items()}
    return model(**inputs, return_dict=False)[0].float()


def loss_sum(
    model: nn.Module, batch: dict[str, Tensor], dtype: torch.dtype = torch.float32
) -> Tensor:
    errors = (predict(model, batch, dtype) - batch["target"]).square().flatten(1).mean(1)
    return (batch["weight"] * errors).sum()


def update(engine: Engine, model: nn.Module, micro_batches: int = 1, rate: float = RATE) -> Any:
    """(loss, StepResult) of one optimizer step on all rows, each rank on its block of them."""
    mine, loss = dist.block(ROWS, dist.rank(), dist.world_size()), torch.zeros(())
    for k in range(micro_batches):
        part = dist.block(len(mine), k, micro_batches)
        batch = rows(model, mine.start + part.start, mine.start + part.stop)
        micro_loss = loss_sum(model, batch, engine.dtype) / ROWS
        engine.backward(micro_loss, last=k == micro_batches - 1)
        loss += micro_loss.detach()
    return float(dist.all_sum(loss)), engine.step(rate)


# ---- the plain loop ------------------------------------------------------------------------------


@functools.cache
def plain_loop(
    kind: str,
) -> tuple[list[float], list[float], dict[str, Tensor], dict[str, Tensor], float]:
    """(loss and gradient norm of each update, trained parameters after them, second moments, Σ m̂²
    over Σ v̂ of all)."""
    model = SD3Transformer2DModel.from_pretrained(find_model(MODEL) / "transformer")
    if kind == "lora":
        model.requires_grad_(False)
        config = peft.LoraConfig(r=RANK, lora_alpha=RANK, target_modules=list(ATTENTION))
        peft.inject_adapter_in_model(config, model)
        for name, parameter in model.named_parameters():
            if "lora_A" in name:
                whole = initial_uniform(name, parameter.shape, parameter.shape[1], seed=0)
                parameter.data.copy_(whole)
    trained = {n: p for n, p in model.named_parameters() if p.requires_grad}
    optimizer = torch.optim.AdamW(trained.values(), lr=RATE, weight_decay=0.0)
    losses, norms = [], []
    for _ in range(UPDATES):
        loss = loss_sum(model.train(), rows(model)) / ROWS
        loss.backward()
        norm = nn.utils.clip_grad_norm_(trained.values(), MAX_NORM)
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
        norms.append(norm.item())
    moments = second_moments(optimizer, trained)
    left = [1 - beta**UPDATES for beta in optimizer.defaults["betas"]]
    firsts = [optimizer.state[p]["exp_avg"].double() / left[0] for p in trained.values()]
    ratio = sum(float(first.square().sum()) for first in firsts) / sum(
        float(second.double().sum()) / left[1] for second in moments.values()
    )
    return losses, norms, {n: p.detach() for n, p in trained.items()}, moments, ratio


# ---- what a rank holds ---------------------------------------------------------------------------


def held_numbers(model: nn.Module) -> int:
    """How many numbers of the parameters this rank holds."""
    return sum(held(parameter) for parameter in model.parameters())


def held(parameter: Any) -> int:
    if isinstance(parameter, DTensor):
        return parameter.to_local().numel()
    if hasattr(parameter, "ds_tensor"):  # ZeRO-3: its shard, and what is gathered at the moment
        return parameter.ds_tensor.numel() + parameter.numel()
    return parameter.numel()


def is_sharded(parameter: Any) -> bool:
    return isinstance(parameter, DTensor) or hasattr(parameter, "ds_tensor")


def degree(variant: str, world: int) -> int:
    """Over how many ranks a parameter is spread."""
    if variant.startswith("zero3"):
        return world
    return {"1": 1, "node": min(PER_NODE, world), "all": world}[variant.rpartition("-")[2]]


def assert_average_goes_in_and_out(engine: Engine, model: nn.Module) -> None:
    """In and out through the same slices: they hold what is trained after a `publish` too."""
    average, whole = Ema(engine, 0.5), whole_tensors(engine)
    for values in average.slices.values():
        values.mul_(3)
    for factor, weights in ((3, average.applied()), (1, nullcontext())):
        with weights, engine.sampling(model):
            for name, parameter in model.named_parameters():
                assert name not in whole or torch.equal(parameter, factor * whole[name])


# ---- communication -------------------------------------------------------------------------------


class GatheredBytes(TorchDispatchMode):
    """Counts what all-gathers bring to this rank, whichever function calls them."""

    count = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        if function.name() in ("c10d::_allgather_base_", "c10d::allgather_"):
            self.count += sum(t.numel() * t.element_size() for t in tree_leaves(args[0]))
        return result
