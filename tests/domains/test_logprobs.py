"""Log-probabilities, entropies and their gradients against the plain formula on all logits."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import (
    CohereConfig,
    CohereForCausalLM,
    Gemma2Config,
    Gemma2ForCausalLM,
    GraniteConfig,
    GraniteForCausalLM,
    Qwen3ForCausalLM,
)

from adrpo_scale.domains import logprobs
from adrpo_scale.domains.logprobs import LogitRule, Targets
from tests.support.closeness import LOGP
from tests.support.tiny_text import tiny_config

K, HIDDEN, VOCABULARY = 11, 6, 17


def inputs(bias=False, seed=0):
    random = torch.Generator().manual_seed(seed)
    hidden = torch.randn(K, HIDDEN, generator=random).requires_grad_()
    weight = nn.Parameter(torch.randn(VOCABULARY, HIDDEN, generator=random))
    offset = nn.Parameter(torch.randn(VOCABULARY, generator=random)) if bias else None
    tokens = torch.randint(VOCABULARY, (K,), generator=random)
    return hidden, weight, offset, tokens


def by_all_logits(hidden, weight, bias, tokens, temperature, scale=1.0, cap=0.0):
    logits = scale * nn.functional.linear(hidden, weight, bias)
    logits = cap * torch.tanh(logits / cap) if cap else logits
    logp = (logits / temperature).log_softmax(-1)
    return logp.gather(1, tokens[:, None])[:, 0], -(logp.exp() * logp).sum(-1)


@pytest.mark.parametrize("rule", [(1.0, 0.0), (0.25, 0.0), (1.0, 3.0), (2.0, 5.0)])
@pytest.mark.parametrize("chunk", [1, 4, 11, 100])
@pytest.mark.parametrize("bias", [False, True])
def test_values_and_gradients_equal_those_of_all_logits(chunk, bias, rule):
    hidden, weight, offset, tokens = inputs(bias)
    leaves = [hidden, weight, *([offset] if bias else [])]
    targets = Targets(tokens, tokens, tokens, 0.7, chunk)
    found = logprobs._TokenLogprobs.apply(hidden, weight, offset, targets, LogitRule(*rule))
    expected = by_all_logits(hidden, weight, offset, tokens, 0.7, *rule)
    mix = torch.randn(2, K, generator=torch.Generator().manual_seed(1))
    for chosen in ([0], [1], [0, 1]):  # gradients into log-probabilities, entropies, both
        ours = torch.autograd.grad(
            sum((mix[i] * found[i]).sum() for i in chosen), leaves, retain_graph=True
        )
        plain = torch.autograd.grad(
            sum((mix[i] * expected[i]).sum() for i in chosen), leaves, retain_graph=True
        )
        for a, b in zip(ours, plain, strict=True):
            torch.testing.assert_close(a, b, **LOGP)
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b, **LOGP)


def test_a_frozen_output_layer_gets_no_gradient():
    hidden, weight, _, tokens = inputs()
    weight.requires_grad_(False)
    targets = Targets(tokens, tokens, tokens, 1.0, 4)
    logp, _ = logprobs._TokenLogprobs.apply(hidden, weight, None, targets, LogitRule())
    logp.sum().backward()
    assert weight.grad is None and hidden.grad is not None


FAMILIES = {
    "qwen3": lambda: Qwen3ForCausalLM(tiny_config()),
    "qwen3 untied": lambda: Qwen3ForCausalLM(tiny_config(tie_word_embeddings=False)),
    "gemma2": lambda: Gemma2ForCausalLM(small(Gemma2Config, final_logit_softcapping=2.0)),
    "granite": lambda: GraniteForCausalLM(small(GraniteConfig, logits_scaling=4.0)),
    "cohere": lambda: CohereForCausalLM(small(CohereConfig, logit_scale=0.5)),
}


def small(config_class, **changes):
    return config_class(**{
        "vocab_size": 64, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2,
        "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 16, "pad_token_id": 0,
        "initializer_range": 0.3, "attention_dropout": 0.0, **changes,
    })  # fmt: skip


@pytest.mark.parametrize("family", FAMILIES)
def test_what_a_family_does_to_its_logits_is_done_here_too(family):
    torch.manual_seed(0)
    model = FAMILIES[family]().eval()
    ids = torch.randint(64, (3, 9))
    rows, places = torch.ones(3, 8).nonzero(as_tuple=True)
    tokens = ids[rows, places + 1]
    logits = model(input_ids=ids).logits.detach().float()[:, :-1].flatten(0, 1)
    logprobs.install(model)
    logp, entropy = model(input_ids=ids, targets=Targets(rows, places, tokens, 0.9, 5))
    expected = (logits / 0.9).log_softmax(-1)
    torch.testing.assert_close(
        logp, expected.gather(1, tokens[:, None])[:, 0], rtol=1e-4, atol=1e-5
    )
    torch.testing.assert_close(entropy, -(expected.exp() * expected).sum(-1), rtol=1e-4, atol=1e-5)
    plain = model(input_ids=ids).logits  # the ordinary call is as it was
    torch.testing.assert_close(plain[:, :-1].flatten(0, 1).float(), logits)


class Largest(TorchDispatchMode):
    """Numbers of the largest tensor that any operation returned."""

    numel = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for tensor in torch.utils._pytree.tree_leaves(out):
            if isinstance(tensor, torch.Tensor):
                self.numel = max(self.numel, tensor.numel())
        return out


def test_the_logits_of_all_tokens_are_never_in_memory():
    vocabulary, chunk = 5000, 16
    torch.manual_seed(0)
    model = Qwen3ForCausalLM(tiny_config(vocab_size=vocabulary))
    logprobs.install(model)
    ids = torch.randint(vocabulary, (4, 65))
    rows, places = torch.ones(4, 64).nonzero(as_tuple=True)
    with Largest() as largest:
        targets = Targets(rows, places, ids[rows, places + 1], 1.0, chunk)
        logp, entropy = model(input_ids=ids, targets=targets)
        (logp.sum() + entropy.sum()).backward()
    weights = vocabulary * model.config.hidden_size
    assert largest.numel == max(weights, chunk * vocabulary)
    assert largest.numel < ids.numel() * vocabulary / 4
