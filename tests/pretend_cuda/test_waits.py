"""How often the host waits for the device: a GPU idles meanwhile, once per token at worst."""

from __future__ import annotations

import pytest
import torch
from transformers import Qwen2Config, Qwen2ForCausalLM, Qwen3ForCausalLM

from adrpo_scale.domains import decoding
from tests.support.pretend_cuda import pretend_cuda
from tests.support.tiny_text import tiny_config

STEPS = 33
EVEN, UNEVEN = [[7, 8], [9, 10], [11, 12]], [[7, 8, 9], [11], [7, 8, 9], [12, 13, 14, 15]]
CASES = [("qwen2", EVEN), ("qwen3", UNEVEN)]


def model_of(kind="qwen3", **changes):
    torch.manual_seed(3)
    if kind == "qwen3":
        return Qwen3ForCausalLM(tiny_config(**changes)).eval()
    settings = {k: v for k, v in tiny_config().to_dict().items() if k in SHARED} | changes
    return Qwen2ForCausalLM(Qwen2Config(**settings)).eval()


SHARED = ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "pad_token_id")
SHARED += ("num_attention_heads", "num_key_value_heads", "initializer_range", "eos_token_id")


def generated(model, prompts, device, ends=(2, 5)):
    uniforms = torch.rand(len(prompts), STEPS, generator=torch.Generator().manual_seed(0))
    sampling = decoding.SamplingConfig(max_new_tokens=STEPS)
    found = decoding.generate(
        model.to(device), prompts, uniforms.to(device), sampling, list(ends), 0
    )
    return [found.tokens_NT.tolist(), found.lengths_N.tolist(), found.finished_N.tolist()]


@pytest.mark.parametrize(("kind", "prompts"), CASES, ids=["even", "uneven"])
def test_the_host_waits_once_in_sixteen_tokens(kind, prompts):
    """And once for a batch, where transformers looks at the mask of the prompts."""
    with pretend_cuda() as seen:
        generated(model_of(kind), prompts, "cuda", ends=())
    assert {what for what, _ in seen.syncs} == {"_local_scalar_dense", "tolist"}
    looks, of_prompts = STEPS // decoding.LOOK, 1 if prompts is EVEN else 2
    assert seen.syncs_at("decoding.py") == looks + of_prompts


@pytest.mark.parametrize(("kind", "prompts"), CASES, ids=["even", "uneven"])
def test_masks_that_are_ready_give_the_same_numbers(kind, prompts, monkeypatch):
    """The CPU still leaves the mask to transformers. LOOK = 1: rows leave the batch as they do
    there."""
    expected = generated(model_of(kind), prompts, "cpu")
    assert len(set(expected[1])) > 1  # rows leave at different times
    monkeypatch.setattr(decoding, "LOOK", 1)
    with pretend_cuda():
        assert generated(model_of(kind), prompts, "cuda") == expected


def test_models_with_windows_or_other_attention_keep_their_masks():
    from adrpo_scale.domains.step_masks import StepMasks

    mask = torch.ones(2, 5).long()
    device = torch.device("cuda", 0)
    full = model_of().config
    assert StepMasks(full, device, False).of_step(mask) is None
    assert StepMasks(full, device, True).of_step(mask).shape == (2, 1, 1, 5)
    assert StepMasks(full, torch.device("cpu"), True).of_step(mask) is mask
    windows = model_of("qwen2", use_sliding_window=True, sliding_window=4, max_window_layers=1)
    eager = model_of()
    eager.set_attn_implementation("eager")
    for other in (windows, eager):
        assert StepMasks(other.config, device, True).of_step(mask) is mask
