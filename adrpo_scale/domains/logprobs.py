"""Log-probabilities and entropies of chosen tokens, without holding all logits in memory.

A causal language model ends in a matrix of vocabulary × hidden size. The float32 logits of a whole
batch would be its largest tensor (4 rows of 2,000 tokens and 151,936 words: 4.9 GB, and as much for
the gradient), so they are computed for `chunk` tokens at a time, in forward and in backward.

`install(model)` gives a transformers model a second call:

    logp_K, entropy_K = model(input_ids=..., targets=Targets(...))

It goes through the ordinary `__call__`, so that an engine's hooks on the model, its blocks and its
output layer run as in any forward pass; a sharded output layer is gathered once per pass.

With the reference's hidden states, the same call measures KL(policy || reference) over the whole
vocabulary, and the reference's log-probabilities:

    beside = Beside(*reference(input_ids=..., targets=States(...)))
    logp_K, entropy_K, kl_K, logp_ref_K = policy(input_ids=..., targets=Targets(..., beside))

Neither model's logits of all tokens exist at any time, in forward or in backward.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

from adrpo_scale.core.errors import given

BANNED = -1e9  # a logit; finite, because -inf would make entropies NaN (0 · inf)


@dataclass(frozen=True)
class Beside:
    """The reference at the tokens of `Targets`, without gradient. hidden: [K, H], what enters its
    output layer. weight, bias: of that layer; None where it is the policy's own."""

    hidden: Tensor
    weight: Tensor | None = None
    bias: Tensor | None = None


@dataclass(frozen=True)
class Targets:
    """The chosen tokens, all int64 [K]: tokens[k] is predicted from the hidden state at
    [rows[k], places[k]]. temperature: logits are divided by it. chunk: tokens whose logits are in
    memory at once. beside: the reference, where the exact KL is asked for."""

    rows: Tensor
    places: Tensor
    tokens: Tensor
    temperature: float = 1.0
    chunk: int = 256
    beside: Beside | None = None


@dataclass(frozen=True)
class States:
    """Asks for the fields of `Beside` instead of log-probabilities; rows, places: of `Targets`.
    with_layer: the output layer too, copied, because an engine frees a gathered one."""

    rows: Tensor
    places: Tensor
    with_layer: bool


@dataclass(frozen=True)
class LogitRule:
    """A model family's transformation of logits: z = cap · tanh(scale · x / cap); cap 0: no tanh.
    banned: tokens with probability 0, in rollouts and in log-probabilities."""

    scale: float = 1.0
    cap: float = 0.0
    banned: tuple[int, ...] = ()

    def apply(self, logits: Tensor) -> Tensor:
        """The transformed logits; changes its argument in place where possible."""
        if self.scale != 1.0:
            logits = logits.mul_(self.scale)
        logits = logits.div_(self.cap).tanh_().mul_(self.cap) if self.cap else logits
        return self.ban(logits)

    @functools.cached_property
    def _banned_slices(self) -> list[slice]:
        return [slice(first, last + 1) for first, last in ranges(self.banned)]

    def ban(self, logits: Tensor) -> Tensor:
        """Sets banned tokens to BANNED, in place. By slices: a list would go to the device in every
        call."""
        for part in self._banned_slices:
            logits[..., part] = BANNED
        return logits

    def pull_back(self, gradient: Tensor, logits: Tensor) -> Tensor:
        """Gradient by the logits before the rule, from the `gradient` and `logits` after it; in
        place."""
        if self.cap:
            gradient = gradient.mul_(1 - (logits / self.cap).square_())
        return gradient.mul_(self.scale) if self.scale != 1.0 else gradient


def logit_rule(config: Any, banned: tuple[int, ...] = ()) -> LogitRule:
    """The rule of a transformers config: Gemma caps logits, Cohere scales and Granite divides."""
    scale = getattr(config, "logit_scale", None) or 1.0
    scale /= getattr(config, "logits_scaling", None) or 1.0
    return LogitRule(scale, getattr(config, "final_logit_softcapping", None) or 0.0, banned)


def install(model: Any, banned: tuple[int, ...] = ()) -> None:
    """Adds the calls of the module docstring to a transformers causal language model, in place.

    banned: tokens that the model must never generate; their logits become `BANNED` in every call.
    """
    plain, head = model.forward, model.get_output_embeddings()
    rule = logit_rule(model.config, banned)

    def head_forward(hidden: Tensor, targets: Targets | States | None = None) -> Any:
        if targets is None:
            return rule.ban(linear(hidden, head.weight, head.bias))
        if isinstance(targets, States):
            return hidden, *(_copied(head) if targets.with_layer else ())
        return _TokenLogprobs.apply(hidden, head.weight, head.bias, targets, rule)

    def forward(*args: Any, targets: Targets | States | None = None, **kwargs: Any) -> Any:
        if targets is None:
            return plain(*args, **kwargs)
        states = model.base_model(*args, use_cache=False, **kwargs).last_hidden_state
        return head(states[targets.rows, targets.places], targets)

    head.forward, model.forward = head_forward, forward


def _copied(head: Any) -> tuple[Tensor, Tensor | None]:
    """(weight, bias) of an output layer."""
    bias = head.bias
    return head.weight.detach().clone(), None if bias is None else bias.detach().clone()


class _TokenLogprobs(torch.autograd.Function):
    """(logp_K, entropy_K), float32, of tokens under softmax(rule(hidden @ weight.T + bias) / T).
    With `Targets.beside`: (logp_K, entropy_K, kl_K, logp_ref_K), the last without gradient.

    Backward computes the logits of each chunk again; the weight's gradient is summed in float32.
    """

    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: nn.Parameter,
        bias: Tensor | None,
        targets: Targets,
        rule: LogitRule,
    ) -> tuple[Tensor, ...]:
        logp = hidden.new_empty(len(hidden), dtype=torch.float32)
        entropy, normaliser = torch.empty_like(logp), torch.empty_like(logp)
        kl, logp_ref, normaliser_ref = (torch.empty_like(logp) for _ in range(3))
        for part in parts(len(hidden), targets.chunk):
            logits = tempered_logits(hidden[part], weight, bias, targets.temperature, rule)
            normaliser[part] = logits.logsumexp(-1)
            picked = logits.gather(1, targets.tokens[part, None])[:, 0]
            logp[part] = picked - normaliser[part]
            chances = (logits - normaliser[part, None]).exp_()
            if targets.beside is not None:
                other = _logits_beside(part, weight, bias, targets, rule)
                normaliser_ref[part] = other.logsumexp(-1)
                picked = other.gather(1, targets.tokens[part, None])[:, 0]
                logp_ref[part] = picked - normaliser_ref[part]
                ratios = _log_ratios(logits, normaliser[part], other, normaliser_ref[part])
                # It is not below 0; a sum of rounded terms may be.
                kl[part] = ratios.mul_(chances).sum(-1).clamp_(min=0)
            entropy[part] = normaliser[part] - chances.mul_(logits).sum(-1)
        ctx.save_for_backward(hidden, weight, bias, normaliser, entropy, normaliser_ref)
        ctx.targets, ctx.rule = targets, rule
        ctx.set_materialize_grads(False)
        if targets.beside is None:
            return logp, entropy
        ctx.mark_non_differentiable(logp_ref)
        return logp, entropy, kl, logp_ref

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor | None) -> Any:
        hidden, weight, bias, normaliser, entropy, normaliser_ref = ctx.saved_tensors
        targets, rule, (of_logp, of_entropy) = ctx.targets, ctx.rule, gradients[:2]
        of_kl = gradients[2] if len(gradients) > 2 else None
        wants_hidden, wants_weight, wants_bias = ctx.needs_input_grad[:3]
        for_hidden = torch.zeros_like(hidden) if wants_hidden else None
        for_weight = torch.zeros_like(weight, dtype=torch.float32) if wants_weight else None
        for_bias = torch.zeros_like(bias, dtype=torch.float32) if wants_bias else None
        for part in parts(len(hidden), targets.chunk):
            logits = tempered_logits(hidden[part], weight, bias, targets.temperature, rule)
            chances = (logits - normaliser[part, None]).exp_()
            gradient = torch.zeros_like(logits)
            if of_entropy is not None:  # dH/dz = -p (log p + H)
                spread = (logits - normaliser[part, None]).add_(entropy[part, None])
                gradient -= spread.mul_(chances).mul_(of_entropy[part, None])
            if of_kl is not None:  # dKL/dz = p (log p/q - KL)
                other = _logits_beside(part, weight, bias, targets, rule)
                ratios = _log_ratios(logits, normaliser[part], other, normaliser_ref[part])
                means = ratios.mul_(chances).sum(-1, keepdim=True)
                ratios.addcmul_(chances, means, value=-1)
                gradient += ratios.mul_(of_kl[part, None])
            if of_logp is not None:  # dlogp/dz = onehot - p
                gradient -= chances.mul_(of_logp[part, None])
                gradient.scatter_add_(1, targets.tokens[part, None], of_logp[part, None])
            logits.mul_(targets.temperature)
            gradient = rule.pull_back(gradient.div_(targets.temperature), logits)
            gradient = gradient.to(hidden.dtype)
            if for_hidden is not None:
                for_hidden[part] = gradient @ weight
            if for_weight is not None:
                for_weight += gradient.T @ hidden[part]
            if for_bias is not None:
                for_bias += gradient.sum(0)
        return (
            for_hidden,
            None if for_weight is None else for_weight.to(weight.dtype),
            None if for_bias is None else for_bias.to(bias.dtype),
            None,
            None,
        )


def _logits_beside(
    part: slice, weight: Tensor, bias: Tensor | None, targets: Targets, rule: LogitRule
) -> Tensor:
    """The reference's tempered logits [k, vocabulary] of a part. weight, bias: the policy's."""
    beside = given(targets.beside)
    if beside.weight is not None:
        weight, bias = beside.weight, beside.bias
    return tempered_logits(beside.hidden[part], weight, bias, targets.temperature, rule)


def _log_ratios(
    logits: Tensor, normaliser: Tensor, other: Tensor, other_normaliser: Tensor
) -> Tensor:
    """log p - log q, [k, vocabulary], of logits and `other` ones, in the latter's memory. Logits
    are compared first: near each other, they differ without rounding."""
    return other.neg_().add_(logits).sub_((normaliser - other_normaliser)[:, None])


def tempered_logits(
    hidden: Tensor, weight: Tensor, bias: Tensor | None, temperature: float, rule: LogitRule
) -> Tensor:
    """float32 [k, vocabulary] of hidden states [k, H]; always a new tensor."""
    logits = linear(hidden, weight, bias).float()
    return rule.apply(logits).div_(temperature)


def ranges(ids: Sequence[int]) -> list[tuple[int, int]]:
    """(first, last) of each run of consecutive numbers."""
    places = enumerate(sorted(set(ids)))
    runs = ([i for _, i in run] for _, run in itertools.groupby(places, lambda p: p[1] - p[0]))
    return [(run[0], run[-1]) for run in runs]


def parts(total: int, size: int) -> list[slice]:
    """Slices of at most `size` that cover range(total)."""
    return [slice(start, min(start + size, total)) for start in range(0, total, size)]
