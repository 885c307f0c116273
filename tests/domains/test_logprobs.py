"""Log-probabilities, entropies and their gradients against the plain formula on all logits."""

from __future__ import annotations

from dataclasses import replace

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

from adrpo_scale.algorithms.tokens import kl_estimate
from adrpo_scale.domains import logprobs
from adrpo_scale.domains.logprobs import Beside, LogitRule, States, Targets
from tests.support.closeness import LOGP, NEAR
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


# ---- the exact KL --------------------------------------------------------------------------------


BANNED = (0, 3, 4, 16)


def all_logp(hidden, weight, bias, rule, banned):
    """Tempered log-probabilities of all words that are not banned, [K, words]."""
    scale, cap = rule
    logits = scale * nn.functional.linear(hidden, weight, bias)
    logits = cap * torch.tanh(logits / cap) if cap else logits
    return (logits[:, kept_words(banned)] / 0.7).log_softmax(-1)


def kept_words(banned):
    return [word for word in range(VOCABULARY) if word not in banned]


def kl_of(logp, logq):
    return (logp.exp() * (logp - logq)).sum(-1)


def doubles(leaves):
    return [None if leaf is None else leaf.detach().double().requires_grad_() for leaf in leaves]


@pytest.mark.parametrize("own_layer", [True, False])
@pytest.mark.parametrize("chunk", [1, 4, 100])
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize(("rule", "banned"), [((1.0, 0.0), ()), ((2.0, 5.0), BANNED)])
def test_the_exact_kl_and_its_gradients_equal_those_of_all_logits(
    rule, banned, bias, chunk, own_layer
):
    """In float64, by autograd; the whole loss: log-probabilities and entropies as well."""
    *leaves, tokens = inputs(bias)
    *others, _ = inputs(bias, seed=3)
    places = tokens % len(kept_words(banned))
    tokens = torch.tensor(kept_words(banned))[places]
    beside = Beside(*(o if o is None else o.detach() for o in others[: 3 if own_layer else 1]))
    targets = Targets(tokens, tokens, tokens, 0.7, chunk, beside)
    found = logprobs._TokenLogprobs.apply(*leaves, targets, LogitRule(*rule, banned))
    exact, layer = doubles(leaves), doubles(others if own_layer else leaves)[1:]
    logp = all_logp(*exact, rule, banned)
    logq = all_logp(others[0].detach().double(), *layer, rule, banned).detach()
    picked = [log.gather(1, places[:, None])[:, 0] for log in (logp, logq)]
    expected = (picked[0], -(logp.exp() * logp).sum(-1), kl_of(logp, logq), picked[1])
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a.double(), b, **LOGP)
    assert not found[3].requires_grad
    mix = torch.randn(3, K, generator=torch.Generator().manual_seed(1))
    trained = 3 if bias else 2
    for chosen in ([2], [0, 2], [0, 1, 2]):
        ours = torch.autograd.grad(
            sum((mix[i] * found[i]).sum() for i in chosen), leaves[:trained], retain_graph=True
        )
        plain = torch.autograd.grad(
            sum((mix[i] * expected[i]).sum() for i in chosen), exact[:trained], retain_graph=True
        )
        for a, b in zip(ours, plain, strict=True):
            torch.testing.assert_close(a.double(), b, **LOGP)


def test_log_probabilities_beside_a_reference_are_those_without_to_the_bit():
    hidden, weight, _, tokens = inputs()
    plain = Targets(tokens, tokens, tokens, 0.7, 4)
    beside = Targets(tokens, tokens, tokens, 0.7, 4, Beside(inputs(seed=3)[0].detach()))
    found = [
        logprobs._TokenLogprobs.apply(hidden, weight, None, targets, LogitRule())
        for targets in (plain, beside)
    ]
    for a, b in zip(found[0], found[1][:2], strict=True):
        assert torch.equal(a, b)
    ours, theirs = (torch.autograd.grad((f[0] + f[1]).sum(), [hidden, weight]) for f in found)
    assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))


def test_the_exact_kl_of_a_policy_that_is_its_reference_is_zero_with_its_gradient():
    hidden, weight, _, tokens = inputs()
    targets = Targets(tokens, tokens, tokens, 0.7, 4, Beside(hidden.detach()))
    _, _, kl, _ = logprobs._TokenLogprobs.apply(hidden, weight, None, targets, LogitRule())
    (gradient,) = torch.autograd.grad(kl.sum(), hidden)
    assert not kl.any() and not gradient.any()


def test_the_exact_kl_is_not_negative_and_errs_by_rounding_where_models_are_near():
    """A step of 1e-5 in the logits: a KL of about 1e-10, below the rounding of a sum of terms."""
    hidden, weight, _, tokens = inputs()
    near_by = Beside(hidden.detach() + 1e-5)
    targets = Targets(tokens, tokens, tokens, 0.7, 4, near_by)
    _, _, kl, _ = logprobs._TokenLogprobs.apply(hidden, weight, None, targets, LogitRule())
    assert bool((kl >= 0).all()) and float(kl.detach().max()) < NEAR


def test_the_mean_of_k2_s_gradient_over_all_words_is_the_exact_kl_s():
    """And k1's is 0, and k3's the gradient of KL(reference || policy): `kl_estimate` says so."""
    logits = torch.randn(4, 9, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    logits.requires_grad_()
    logq = torch.randn(4, 9, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    logq = logq.log_softmax(-1)
    logp = logits.log_softmax(-1)
    wanted = {
        "k1": torch.zeros(()) * logits.sum(),
        "k2": kl_of(logp, logq).sum(),
        "k3": kl_of(logq, logp).sum(),
    }
    for name, divergence in wanted.items():
        estimates = kl_estimate(logp, logq, name)
        mean = (logp.exp().detach() * estimates).sum()
        (found,) = torch.autograd.grad(mean, logits, retain_graph=True)
        (gradient,) = torch.autograd.grad(divergence, logits, retain_graph=True)
        torch.testing.assert_close(found, gradient, rtol=1e-12, atol=1e-12)


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
    beside = Beside(*model(input_ids=ids.flip(0), targets=States(rows, places, with_layer=True)))
    assert beside.weight.data_ptr() != model.get_output_embeddings().weight.data_ptr()
    targets = Targets(rows, places, tokens, 0.9, 5, beside)
    _, _, kl, _ = model(input_ids=ids, targets=targets)
    flipped = logits.view(3, 8, -1).flip(0).flatten(0, 1)
    reference = (flipped / 0.9).log_softmax(-1)
    torch.testing.assert_close(kl, kl_of(expected, reference), rtol=1e-4, atol=1e-5)
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
        with torch.no_grad():
            asked = States(rows, places, with_layer=True)
            beside = Beside(*model(input_ids=ids.flip(0), targets=asked))
        logp, entropy, kl, _ = model(input_ids=ids, targets=replace(targets, beside=beside))
        (logp.sum() + entropy.sum() + kl.sum()).backward()
    weights = vocabulary * model.config.hidden_size
    assert largest.numel == max(weights, chunk * vocabulary)
    assert largest.numel < ids.numel() * vocabulary / 4
