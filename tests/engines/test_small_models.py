"""Models that no number of ranks divides: unused branches, tied weights."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import Qwen3Config, Qwen3ForCausalLM

from adrpo_scale.core import dist
from adrpo_scale.engines.spec import ModelSpec
from adrpo_scale.hub.weights import SafetensorsFolder
from adrpo_scale.run.build import build_engine
from tests.support.closeness import assert_adam_near, drifted, second_moments
from tests.support.engine_cases import RATE, UPDATES, VARIANTS
from tests.support.ranks import run_ranks
from tests.support.tiny import demo_config, whole_tensors


class Branches(nn.Module):
    """Sizes that no number of ranks divides, and parameters that not every pass uses."""

    def __init__(self) -> None:
        super().__init__()
        self.left, self.right = nn.Linear(3, 5), nn.Linear(3, 5)
        self.scale = nn.Parameter(torch.ones(1))
        self.register_buffer("shift", torch.zeros(5))
        self.register_buffer("constant", torch.full((5,), 0.5), persistent=False)

    def forward(self, rows: Tensor, branch: str) -> Tensor:
        return self.scale * getattr(self, branch)(rows) + self.shift + self.constant


def small_spec(folder: Path) -> ModelSpec:
    return ModelSpec(Branches, SafetensorsFolder(folder, "model"), blocks=())


def small_model(folder: Path) -> Branches:
    model = Branches()
    model.load_state_dict(load_file(folder / "model.safetensors"))
    return model


def branch_losses(model: nn.Module, branches: list[str], rank: int, world: int) -> list[Tensor]:
    batch = torch.arange(24, dtype=torch.float32).view(8, 3).sin()
    mine = dist.block(8, rank, world)
    mine_rows = batch[mine.start : mine.stop]
    return [model(mine_rows, branch).square().sum() / 8 for branch in branches]


def trains_branches(rank, world, variant, folder):
    settings = [*VARIANTS[variant], "optimizer.max_grad_norm=1e6"]
    engine = build_engine(demo_config(overrides=settings))
    model = engine.build_policy(small_spec(folder))
    assert torch.equal(model.shift, torch.arange(5.0))
    assert torch.equal(model.constant, torch.full((5,), 0.5))
    norms = []
    for branches in (["left", "right"], ["right", "left"], ["left"]):
        for k, name in enumerate(branches):
            (loss,) = branch_losses(model, [name], rank, world)
            engine.backward(loss, last=k == len(branches) - 1)
        norms.append(engine.step(0.1).grad_norm)
    return norms, whole_tensors(engine)


@pytest.mark.parametrize("world", [2, 4])
@pytest.mark.parametrize("variant", ["fsdp2-all", "zero3-all", "zero3-offload"])
def test_a_parameter_that_a_micro_batch_does_not_use(tmp_path, variant, world):
    """Its gradients of other micro-batches count, and those of the step before do not."""
    torch.manual_seed(0)
    model = Branches()
    model.shift = torch.arange(5.0)
    save_file(model.state_dict(), tmp_path / "model.safetensors")
    model = small_model(tmp_path)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1, weight_decay=0.0)
    norms = []
    for branches in (["left", "right"], ["right", "left"], ["left"]):
        optimizer.zero_grad()
        sum(branch_losses(model, branches, 0, 1)).backward()
        gradients = [p.grad for p in model.parameters() if p.grad is not None]
        norms.append(float(nn.utils.get_total_norm(gradients)))
        optimizer.step()
    # ZeRO-3 steps "right" with a zero gradient, others do not.
    expected = {n: p.detach() for n, p in model.named_parameters() if not n.startswith("right")}
    moments = second_moments(optimizer, dict(model.named_parameters()))
    for found, whole in run_ranks(trains_branches, world, variant, tmp_path):
        assert found == drifted(norms, updates=3)
        assert_adam_near(whole, expected, moments, rate=0.1, steps=3)


def tied_config() -> Qwen3Config:
    sizes = {"hidden_size": 12, "intermediate_size": 20, "num_hidden_layers": 2, "vocab_size": 37}
    heads = {"num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 6}
    return Qwen3Config(**sizes, **heads, tie_word_embeddings=True)


def tied_spec(folder: Path) -> ModelSpec:
    return ModelSpec(
        build=lambda: Qwen3ForCausalLM(tied_config()),
        weights=SafetensorsFolder(folder, "model"),
        blocks=("Qwen3DecoderLayer",),
        units=lambda model: [[model.model.embed_tokens, model.lm_head]],
        tie=lambda model: model.tie_weights(),
    )


def token_loss(model: nn.Module, start: int = 0, stop: int = 8) -> Tensor:
    tokens = (torch.arange(8 * 6).view(8, 6) ** 2 % 37)[start:stop]
    logits = model(input_ids=tokens, use_cache=False).logits[:, :-1]
    return nn.functional.cross_entropy(
        logits.flatten(0, 1), tokens[:, 1:].flatten(), reduction="sum"
    )


def trains_tied(rank, world, variant, folder):
    engine = build_engine(demo_config(overrides=VARIANTS[variant]))
    model = engine.build_policy(tied_spec(folder))
    mine = dist.block(8, rank, world)
    for _ in range(UPDATES):
        engine.backward(token_loss(model, mine.start, mine.stop) / 40, last=True)
        engine.step(RATE)
    with engine.sampling(model):
        assert model.lm_head.weight.data_ptr() == model.model.embed_tokens.weight.data_ptr()
    return whole_tensors(engine)


@pytest.mark.parametrize("variant", ["fsdp2-1", "fsdp2-all", "zero3-all"])
def test_tied_weights_train_as_one_parameter(tmp_path, variant):
    torch.manual_seed(0)
    model = Qwen3ForCausalLM(tied_config())
    model.save_pretrained(tmp_path)
    optimizer = torch.optim.AdamW(model.parameters(), lr=RATE, weight_decay=0.0)
    for _ in range(UPDATES):
        optimizer.zero_grad()
        (token_loss(model) / 40).backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
    expected = {name: parameter.detach() for name, parameter in model.named_parameters()}
    moments = second_moments(optimizer, dict(model.named_parameters()))
    for whole in run_ranks(trains_tied, 2, variant, tmp_path):
        assert whole.keys() == expected.keys() and "lm_head.weight" not in whole
        assert_adam_near(whole, expected, moments, RATE, UPDATES)
