"""The numbers of one iteration: of its rewards and credit, and of its updates."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from adrpo_scale.algorithms.advantages import is_degenerate
from adrpo_scale.algorithms.terms import Terms
from adrpo_scale.algorithms.tokens import per_row
from adrpo_scale.core import dist
from adrpo_scale.core.types import Credit, Rewards
from adrpo_scale.training.batches import MicroBatch
from adrpo_scale.training.media import Measured


class Tally:
    """Sums over an iteration's micro-batches and steps, reduced over ranks once at the end.

    moves: whether the reference moves. `divergence` is that from the base either way, and
    `divergence_to_reference` is recorded beside it.
    """

    def __init__(self, moves: bool = False) -> None:
        self._moves = moves
        # loss; entropy and its number of tokens; divergence from the base, and from a moving
        # reference, each with its number of rows
        self._sums: Tensor | None = None
        self._rows: list[tuple[Tensor, Tensor | None, Tensor | None]] = []
        self._norms: list[float] = []
        self._rate = math.nan
        self._skipped = 0

    @torch.no_grad()
    def add(self, loss: Tensor, terms: Terms, micro: MicroBatch) -> None:
        """Adds a micro-batch. loss: already divided by the global count of its step."""
        include, zero = micro.credit.include, loss.new_zeros(())
        parts = [loss.detach().float(), zero, zero]
        entropies, entropy_N = terms.entropies(), None
        if entropies is not None:
            entropy_K, segment_K = entropies
            include_K = include.to(loss)[segment_K]
            parts[1:] = [(entropy_K * include_K).sum(), include_K.sum()]
            entropy_N = per_row(entropy_K, segment_K, len(include), "sequence")
        divergence_N = terms.base_divergence() if self._moves else terms.divergence()
        for values_N in (divergence_N, terms.divergence() if self._moves else None):
            if values_N is None:
                parts += [zero, zero]
            else:
                include_N = include.to(values_N)
                parts += [(values_N * include_N).sum(), include_N.sum()]
        self._rows.append((micro.rows.sample_ids_N, divergence_N, entropy_N))
        sums = torch.stack(parts)
        self._sums = sums if self._sums is None else self._sums + sums

    def measured(self) -> dict[int, Measured]:
        """This rank's samples: id → (divergence, entropy) at their first pass of training."""
        found: dict[int, Measured] = {}
        for ids_N, *columns in self._rows:
            divergences, entropies = (
                [None] * len(ids_N) if c is None else c.tolist() for c in columns
            )
            for sample, *values in zip(ids_N.tolist(), divergences, entropies, strict=True):
                found.setdefault(sample, (values[0], values[1]))
        return found

    def add_step(self, grad_norm: float, rate: float, skipped: bool) -> None:
        """Adds an optimizer step. rate: its learning rate."""
        self._norms.append(grad_norm)
        self._rate = rate
        self._skipped += skipped

    def record(self) -> dict[str, Any]:
        """The entries of the iteration's line in metrics.jsonl. Collective.

        The loss is the mean over steps, None without any; divergence is None where it was not
        measured.
        """
        sums = torch.zeros(7) if self._sums is None else self._sums
        loss, entropy, tokens, *divergences = dist.all_sum(sums.double().cpu()).tolist()
        steps = len(self._norms)
        to_base, to_reference = (_mean(*divergences[k : k + 2]) for k in (0, 2))
        return {
            "loss": loss / steps if steps else None,
            "divergence": to_base,
            **({"divergence_to_reference": to_reference} if self._moves else {}),
            **({"entropy": entropy / tokens} if tokens else {}),
            "grad_norm": sum(self._norms) / steps if steps else None,
            "learning_rate": self._rate if steps else None,
            "updates": steps,
            "updates_skipped": self._skipped,
        }


def _mean(total: float, count: float) -> float | None:
    return total / count if count else None


def row_record(metrics: Mapping[str, Tensor]) -> dict[str, float]:
    """Means of `Domain.row_metrics` over all ranks' rows, by name. Collective."""
    if not metrics:
        return {}
    sums = torch.stack([torch.stack([v.sum(), torch.tensor(len(v))]) for v in metrics.values()])
    totals = dist.all_sum(sums.double()).tolist()
    return {name: total / n for name, (total, n) in zip(metrics, totals, strict=True)}


def credit_record(rewards: Rewards, credit: Credit, open_S: Tensor | None = None) -> dict[str, Any]:
    """Statistics of rewards, advantages and betas over the samples with finite rewards. open_S: of
    `Algorithm.open_gates`."""
    kept = rewards.mask_PG.flatten()
    total = rewards.total_PG.flatten()[kept]
    advantage, clipped = credit.advantage[kept], credit.advantage_clipped[kept]
    beta = credit.beta[kept]
    some = len(total) > 0
    record = {
        "reward": float(total.mean()) if some else None,
        "reward_std": float(total.std()) if len(total) > 1 else None,
        "advantage_abs_mean": float(advantage.abs().mean()) if some else None,
        "advantage_clip_fraction": float((advantage != clipped).double().mean()) if some else None,
        "beta_mean": float(beta.mean()) if some else None,
        "beta_min": float(beta.min()) if some else None,
        "beta_max": float(beta.max()) if some else None,
        "masked": int((~kept).sum()),
        "degenerate_groups": float(
            is_degenerate(rewards.total_PG, rewards.mask_PG, 1).double().mean()
        ),
    }
    if len(rewards.names) > 1:
        for name, plane in zip(rewards.names, rewards.per_reward_RPG, strict=True):
            values = plane.flatten()[kept]
            values = values[values.isfinite()]
            record[f"reward_{name}"] = float(values.mean()) if len(values) else None
    if open_S is not None:
        record["open_gates"] = float(open_S[kept].double().mean()) if some else None
    gates = () if rewards.gates_RPG is None else rewards.gates_RPG
    for name, plane in zip(rewards.gate_names, gates, strict=True):
        values = plane.flatten()[kept]
        values = values[values.isfinite()]
        record[f"gate_{name}"] = float(values.mean()) if len(values) else None
    return record | abstained_record(rewards) | {f"info_{n}": v for n, v in rewards.info.items()}


def abstained_record(rewards: Rewards) -> dict[str, Any]:
    """How often rewards abstained; {} where none did."""
    abstained_RPG = rewards.abstained_RPG
    if abstained_RPG is None or not bool(abstained_RPG.any()):
        return {}
    shares = abstained_RPG.flatten(1).double().mean(1).tolist()
    each = zip(rewards.names, shares, strict=True)
    unscored = int(rewards.unscored_PG.sum())
    return {"unscored": unscored} | {f"abstained_{name}": share for name, share in each}
