"""Terms of a few rows by hand, for tests of the algorithms: of a flow, and of tokens."""

from __future__ import annotations

import math

import torch

from adrpo_scale.algorithms.dpo import Dpo, DpoConfig
from adrpo_scale.algorithms.terms import LikelihoodTerms, RegressionTerms
from adrpo_scale.core.types import Credit, Rewards

TOKENS = {"beta0": 0.04, "advantage_min": -0.04, "advantage_max": 0.04, "scale": "group_std"}
NO_CLIP = {"advantage_min": 0.0, "advantage_max": 0.0}


def scored(rewards, mask=None):
    total = torch.as_tensor(rewards, dtype=torch.float64)
    mask = torch.ones_like(total, dtype=torch.bool) if mask is None else torch.tensor(mask)
    weights = torch.ones(1, dtype=torch.float64)
    return Rewards(["reward"], weights, total[None], total, mask, torch.arange(len(total)))


def credit_of(advantage, beta=0.0, clipped=None, include=None):
    advantage = torch.as_tensor(advantage, dtype=torch.float64)
    return Credit(
        advantage=advantage,
        advantage_clipped=advantage if clipped is None else torch.as_tensor(clipped).double(),
        beta=torch.as_tensor(beta, dtype=torch.float64).expand_as(advantage),
        pair_id=torch.full_like(advantage, -1, dtype=torch.int64),
        include=torch.ones_like(advantage) if include is None else torch.tensor(include).double(),
    )


class Flow:
    """N rows of velocities of 6 latent elements; `v` is the policy's and has a gradient."""

    def __init__(self, rows, seed=0, dtype=torch.float64):
        random = torch.Generator().manual_seed(seed)
        self.v, self.v_ref, self.u = torch.randn(3, rows, 6, generator=random, dtype=dtype)
        self.v.requires_grad_()

    def terms(self, rows=slice(None), divergence=True):
        v, v_ref, u = self.v[rows], self.v_ref[rows], self.u[rows]
        return RegressionTerms(
            error_N=((v - u) ** 2).mean(1),
            divergence_N=((v - v_ref) ** 2).mean(1) if divergence else None,
            reference_error_N=((v_ref - u) ** 2).mean(1),
        )

    def gradient(self, loss):
        return torch.autograd.grad(loss, self.v)[0]


class Tokens:
    """Completions of the given lengths; `logp` is the policy's and has a gradient."""

    def __init__(self, lengths, seed=0, spread=0.3, dtype=torch.float64):
        random = torch.Generator().manual_seed(seed)
        self.lengths, total = torch.tensor(lengths), sum(lengths)
        noise = spread * torch.randn(2, total, generator=random, dtype=dtype)
        self.logp = -3 * torch.rand(total, generator=random, dtype=dtype)
        self.logp_old, self.logp_ref = self.logp + noise
        self.logp.requires_grad_()

    def terms(self, rows=None):
        """Terms of the rows (indices), packed."""
        rows = range(len(self.lengths)) if rows is None else rows
        starts = self.lengths.cumsum(0) - self.lengths
        spans = [torch.arange(n) + s for s, n in zip(starts, self.lengths, strict=True)]
        places = torch.cat([spans[row] for row in rows])
        lengths = self.lengths[list(rows)]
        segment = torch.repeat_interleave(torch.arange(len(lengths)), lengths)
        return LikelihoodTerms(
            rows=len(lengths),
            logp_K=self.logp[places],
            logp_old_K=self.logp_old[places],
            segment_K=segment,
            logp_ref_K=self.logp_ref[places],
        )

    def gradient(self, loss):
        return torch.autograd.grad(loss, self.logp)[0]

    def by_hand(self, advantage, beta, clip=0.2, by_token=False):
        """eq. 7, one token at a time; detached numbers."""
        loss, at = 0.0, 0
        for row, length in enumerate(self.lengths.tolist()):
            values = []
            for k in range(at, at + length):
                logp, old = self.logp[k].item(), self.logp_old[k].item()
                ratio = math.exp(logp - old)
                clipped = min(max(ratio, 1 - clip), 1 + clip)
                d = self.logp_ref[k].item() - logp
                surrogate = -min(advantage[row] * ratio, advantage[row] * clipped)
                values.append(surrogate + beta[row] * (math.exp(d) - d - 1))
            loss += sum(values) if by_token else sum(values) / length
            at += length
        return loss


REWARDS = scored([[29.1, 30.4, 28.2, 29.0], [31.0, 31.0, 31.0, 31.0]])
LENGTHS = [3, 1, 5, 2, 4, 4, 1, 2]


# --- DPO ------------------------------------------------------------------------------------
def dpo(terms=RegressionTerms, **settings):
    return Dpo(DpoConfig(**settings), terms)
