"""Batched sampling: equal to single rows, to transformers' generate, to the distribution."""

from __future__ import annotations

import pytest
import torch
from transformers import Qwen3ForCausalLM
from transformers.generation.logits_process import TopKLogitsWarper, TopPLogitsWarper

from adrpo_scale.domains.decoding import SamplingConfig, generate, kept_chances, pick
from tests.support.tiny_text import tiny_config

ENDS, PAD = [2, 5], 0
PROMPTS = [[7, 8, 9], [7, 8, 9], [11], [12, 13, 14, 15, 16], [7, 8, 9], [11]]


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(3)
    return Qwen3ForCausalLM(tiny_config()).eval()


def uniforms(rows, steps=12, seed=0):
    return torch.rand(rows, steps, generator=torch.Generator().manual_seed(seed))


def drawn(model, prompts=PROMPTS, u=None, **settings):
    sampling = SamplingConfig(**({"max_new_tokens": 12} | settings))
    u = uniforms(len(prompts), sampling.max_new_tokens) if u is None else u
    return generate(model, prompts, u, sampling, ENDS, PAD)


def test_a_row_does_not_depend_on_its_batch(model):
    u = uniforms(len(PROMPTS))
    together = drawn(model, u=u)
    assert len(set(together.lengths_N.tolist())) > 1  # rows leave the batch at different times
    for row, prompt in enumerate(PROMPTS):
        alone = drawn(model, [prompt], u[row : row + 1])
        assert torch.equal(alone.tokens_NT[0], together.tokens_NT[row])
        assert alone.lengths_N[0] == together.lengths_N[row]
        assert alone.finished_N[0] == together.finished_N[row]


def test_lengths_ends_and_padding(model):
    found = drawn(model)
    for tokens, length, finished in zip(
        found.tokens_NT.tolist(), found.lengths_N.tolist(), found.finished_N.tolist(), strict=True
    ):
        inside, beyond = tokens[:length], tokens[length:]
        assert (inside[-1] in ENDS) == finished
        assert not set(inside[:-1]) & set(ENDS)
        assert set(beyond) <= {PAD}
        assert finished or length == 12


def test_greedy_is_what_transformers_generates(model):
    found = drawn(model, temperature=0.0)
    for row, prompt in enumerate(PROMPTS):
        ids = torch.tensor([prompt])
        theirs = model.generate(
            ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=12,
            eos_token_id=ENDS, pad_token_id=PAD,
        )[0, len(prompt) :]  # fmt: skip
        assert found.tokens_NT[row, : found.lengths_N[row]].tolist() == theirs.tolist()


def test_a_prompt_goes_through_the_model_once_for_its_whole_group(model):
    rows = []
    handle = model.register_forward_pre_hook(
        lambda module, args, kwargs: rows.append(tuple(kwargs["input_ids"].shape)), with_kwargs=True
    )
    try:
        drawn(model, max_new_tokens=3)
    finally:
        handle.remove()
    assert rows[0] == (3, 5)  # three different prompts, the longest has five tokens
    assert all(shape[1] == 1 and shape[0] <= len(PROMPTS) for shape in rows[1:])


def test_rows_that_have_ended_leave_the_batch(model):
    sizes = []
    handle = model.register_forward_pre_hook(
        lambda module, args, kwargs: sizes.append(len(kwargs["input_ids"])), with_kwargs=True
    )
    try:
        found = drawn(model, [[7, 8]] * 32, max_new_tokens=40)
    finally:
        handle.remove()
    ended = found.lengths_N[found.finished_N]
    assert len(ended) > 16
    assert sizes[-1] < 32 and sizes[1:] == sorted(sizes[1:], reverse=True)


def test_tokens_have_the_frequencies_of_the_distribution():
    logits = torch.tensor([[0.0, 1.0, 2.0, -1.0]])
    u = torch.rand(20000, generator=torch.Generator().manual_seed(0))
    sampling = SamplingConfig(temperature=0.5)
    found = pick(logits.expand(len(u), -1), u, sampling).bincount(minlength=4) / len(u)
    torch.testing.assert_close(found, (logits[0] / 0.5).softmax(0), atol=0.01, rtol=0)


@pytest.mark.parametrize("u", [0.0, 1 - 2**-24])
def test_the_ends_of_the_unit_interval_give_tokens_that_have_a_chance(u):
    logits = torch.full((1, 1000), -torch.inf)
    logits[0, 10:20] = torch.randn(10)
    token = int(pick(logits, torch.tensor([u]), SamplingConfig()))
    assert 10 <= token < 20


@pytest.mark.parametrize(("top_k", "top_p"), [(3, 1.0), (0, 0.6), (5, 0.7), (0, 0.999)])
def test_top_k_and_top_p_keep_what_transformers_keeps(top_k, top_p):
    logits = 2 * torch.randn(16, 40, generator=torch.Generator().manual_seed(0))
    theirs = logits
    if top_k:
        theirs = TopKLogitsWarper(top_k)(None, theirs)
    if top_p < 1:
        theirs = TopPLogitsWarper(top_p)(None, theirs)
    ours = kept_chances(logits, SamplingConfig(top_k=top_k, top_p=top_p))
    assert torch.equal(ours > 0, theirs.isfinite())
