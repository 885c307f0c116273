"""Log-probabilities and entropies of chosen tokens, without holding all logits in memory.

A causal language model ends in a matrix of vocabulary × hidden size. The float32 logits of a whole
batch would be its largest tensor (4 rows of 2,000 tokens and 151,936 words: 4.9 GB, and as much for
the gradient), so they are computed for `chunk` tokens at a time, in forward and in backward.

`install(model)` gives a transformers model a second call:

    logp_K, entropy_K = model(input_ids=..., targets=Targets(...))

It goes through the ordinary `__call__`, so that an engine's hooks on the model, its blocks and its
output layer run as in any forward pass; a sharded output layer is gathered once per pass.
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

BANNED = -1e9  # a logit; finite, because -inf would make entropies NaN (0 · inf)


@dataclass(frozen=True)
class Targets:
    """The chosen tokens, all int64 [K]: tokens[k] is predicted from the hidden state at
    [rows[k], places[k]]. temperature: logits are divided by it. chunk: tokens whose logits are in
    memory at once."""

    rows: Tensor
    places: Tensor
    tokens: Tensor
    temperature: float = 1.0
    chunk: int = 256


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
    """Adds the call of the module docstring to a transformers causal language model, in place.

    banned: tokens that the model must never generate; their logits become `BANNED` in every call.
    """
    plain, head = model.forward, model.get_output_embeddings()
    rule = logit_rule(model.config, banned)

    def head_forward(hidden: Tensor, targets: Targets | None = None) -> Any:
        if targets is None:
            return rule.ban(linear(hidden, head.weight, head.bias))
        return _TokenLogprobs.apply(hidden, head.weight, head.bias, targets, rule)

    def forward(*args: Any, targets: Targets | None = None, **kwargs: Any) -> Any:
        if targets is None:
            return plain(*args, **kwargs)
        states = model.base_model(*args, use_cache=False, **kwargs).last_hidden_state
        return head(states[targets.rows, targets.places], targets)

    head.forward, model.forward = head_forward, forward


class _TokenLogprobs(torch.autograd.Function):
    """(logp_K, entropy_K), float32, of tokens under softmax(rule(hidden @ weight.T + bias) / T).

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
    ) -> tuple[Tensor, Tensor]:
        logp = hidden.new_empty(len(hidden), dtype=torch.float32)
        entropy = torch.empty_like(logp)
        normaliser = torch.empty_like(logp)
        for part in parts(len(hidden), targets.chunk):
            logits = tempered_logits(hidden[part], weight, bias, targets.temperature, rule)
            normaliser[part] = logits.logsumexp(-1)
            picked = logits.gather(1, targets.tokens[part, None])[:, 0]
            logp[part] = picked - normaliser[part]
            chances = (logits - normaliser[part, None]).exp_()
            entropy[part] = normaliser[part] - chances.mul_(logits).sum(-1)
        ctx.save_for_backward(hidden, weight, bias, normaliser, entropy)
        ctx.targets, ctx.rule = targets, rule
        ctx.set_materialize_grads(False)
        return logp, entropy

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor | None) -> Any:
        hidden, weight, bias, normaliser, entropy = ctx.saved_tensors
        targets, (of_logp, of_entropy) = ctx.targets, gradients
        wants_hidden, wants_weight, wants_bias = ctx.needs_input_grad[:3]
        for_hidden = torch.zeros_like(hidden) if wants_hidden else None
        for_weight = torch.zeros_like(weight, dtype=torch.float32) if wants_weight else None
        for_bias = torch.zeros_like(bias, dtype=torch.float32) if wants_bias else None
        for part in parts(len(hidden), targets.chunk):
            logits = tempered_logits(hidden[part], weight, bias, targets.temperature, ctx.rule)
            chances = (logits - normaliser[part, None]).exp_()
            gradient = torch.zeros_like(logits)
            if of_entropy is not None:  # dH/dz = -p (log p + H)
                spread = (logits - normaliser[part, None]).add_(entropy[part, None])
                gradient -= spread.mul_(chances).mul_(of_entropy[part, None])
            if of_logp is not None:  # dlogp/dz = onehot - p
                gradient -= chances.mul_(of_logp[part, None])
                gradient.scatter_add_(1, targets.tokens[part, None], of_logp[part, None])
            logits.mul_(targets.temperature)
            gradient = ctx.rule.pull_back(gradient.div_(targets.temperature), logits)
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
