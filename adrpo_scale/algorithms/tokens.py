"""Formulas on packed completion tokens (paper, eq. 3 and 7): pure functions, no padding anywhere.

K is the number of completion tokens of all rows of a micro-batch; `segment_K` gives each token's
row. The log-ratio is clamped at ±20 before exp: one token with an extreme ratio would otherwise
turn the whole update into infinities.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

Aggregation = Literal["sequence", "token"]
Estimator = Literal["k3", "k1", "k2", "exact"]

MAX_LOG_RATIO = 20.0


def per_row(values_K: Tensor, segment_K: Tensor, rows: int, aggregation: Aggregation) -> Tensor:
    """[rows]: the mean over each row's tokens ("sequence"), or their sum ("token").

    A row without tokens gives 0.
    """
    sums = values_K.new_zeros(rows).index_add(0, segment_K, values_K)
    if aggregation == "token":
        return sums
    # `bincount` would make the host wait for a GPU.
    lengths = segment_K.new_zeros(rows).index_add(0, segment_K, torch.ones_like(segment_K))
    return sums / lengths.clamp(min=1)


def ratio_surrogate(
    logp_K: Tensor, logp_old_K: Tensor, advantage_K: Tensor, clip_low: float, clip_high: float
) -> Tensor:
    """-min(A·r, A·clip(r, 1 - clip_low, 1 + clip_high)), r = exp(logp - logp_old); [K] (eq. 3)."""
    ratio = (logp_K - logp_old_K).clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO).exp()
    clipped = ratio.clamp(1 - clip_low, 1 + clip_high)
    return -torch.minimum(advantage_K * ratio, advantage_K * clipped)


def importance_weights(logp_old_K: Tensor, logp_rollout_K: Tensor, cap: float) -> Tensor:
    """min(exp(logp_old - logp_rollout), cap), [K], without gradient: corrects for tokens that
    another program drew from slightly different probabilities (truncated importance sampling)."""
    difference = (logp_old_K - logp_rollout_K).detach()
    return difference.clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO).exp().clamp(max=cap)


def kl_estimate(logp_K: Tensor, logp_ref_K: Tensor, estimator: Estimator = "k3") -> Tensor:
    """Per-token estimate of KL(policy || reference), [K], with gradient into `logp_K`.

    With d = logp_ref - logp: k3 = exp(d) - d - 1 (never negative), k1 = -d, k2 = d² / 2. On policy
    E[∇ logp] = 0, so the expected gradient of k1 is 0, that of k2 is the gradient of the token's
    KL(policy || reference), and that of k3 is the gradient of KL(reference || policy). The paper
    writes D_KL and does not state an estimator; k3 is inferred from GRPO (arXiv 2402.03300, eq. 4),
    on whose loss it builds. "exact" needs whole distributions: see `ExactLikelihoodTerms`.
    """
    if estimator == "exact":
        raise ValueError("log-probabilities of chosen tokens do not give the exact KL")
    d = (logp_ref_K - logp_K).clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO)
    if estimator == "k1":
        return -d
    if estimator == "k2":
        return d * d / 2
    return d.exp() - d - 1
