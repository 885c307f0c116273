"""Prompts → groups with rewards: each rank samples a block of the S = P·G samples, chunk by chunk.

A group may straddle ranks, and blocks may be empty. Each rank computes the rewards of its own
samples; only ids and rewards travel. Every rank ends with the same `Rewards`, after a check that
each sample of each group is there exactly once.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from adrpo_scale.algorithms.base import Algorithm
from adrpo_scale.core import dist, watchdog
from adrpo_scale.core.errors import GroupError
from adrpo_scale.core.naming import named
from adrpo_scale.core.types import DrawKey, Prompt, Rewards, Rows
from adrpo_scale.data.prompts import PromptStream
from adrpo_scale.domains.base import Domain, Mode
from adrpo_scale.engines.base import Engine
from adrpo_scale.rewards.base import Reward, longest_wait, sharded_models
from adrpo_scale.rewards.calls import ABSTAINED, Info, rewards_of
from adrpo_scale.training.given import PAIR, Artifacts, Preference, given_parts, preference
from adrpo_scale.training.reference import References
from adrpo_scale.training.stopwatch import Stopwatch


class Summed(Protocol):
    """A reward as the weighted sum knows it."""

    @property
    def label(self) -> str: ...

    @property
    def weight(self) -> float: ...


@dataclass(frozen=True)
class Rewarded:
    """One iteration's rollout: this rank's rows and artifacts, and the rewards of all ranks."""

    prompts_P: Sequence[Prompt]
    rows: Rows
    artifacts: Sequence[Any]
    rewards: Rewards


@dataclass
class Rollouts:
    """The rollouts of a run, on this rank.

    chunk: samples made at once. check: called before every chunk; may raise StopRequested.
    """

    seed: int
    group_size: int
    chunk: int
    domain: Domain
    algorithm: Algorithm
    engine: Engine
    policy: nn.Module
    references: References
    rewards: Sequence[Reward]
    stream: PromptStream
    check: Callable[[], None]
    gates: frozenset[str] = frozenset()  # labels of the rewards outside the sum
    pool: dict[int, Rewarded] = field(default_factory=dict)  # offline rollouts, by place
    _checked: bool = False  # whether `Domain.check_policy` was called, for given pairs

    def of(self, iteration: int, watch: Stopwatch) -> Rewarded:
        """Samples and rewards of one iteration; offline, of its place in the pool. Collective."""
        size = self.algorithm.rollout_pool
        place = iteration % size if size else iteration
        if place in self.pool:
            return self.pool[place]
        prompts_P = self.stream.at(place * self.stream.per_iteration)
        if self.algorithm.rollouts == "file":
            return self._given(prompts_P, watch)
        with watch("rollout"), self._source() as model:
            with self.engine.sampling(model):
                rows = sample_block(
                    self.domain,
                    model,
                    prompts_P,
                    self.group_size,
                    DrawKey(self.seed, place),
                    self.chunk,
                    self.check,
                )
            artifacts = self.domain.artifacts(rows)
        with watch("reward"):
            rewards = self._reward(rows, artifacts, prompts_P)
        rewarded = Rewarded(prompts_P, rows, artifacts, rewards)
        if size:
            self.pool[place] = rewarded
        return rewarded

    def _given(self, prompts_P: Sequence[Prompt], watch: Stopwatch) -> Rewarded:
        """The given pairs of an iteration. Collective."""
        chunks = chunk_count(PAIR * len(prompts_P), self.chunk)
        with watch("rollout"):
            if not self._checked:
                with self.engine.sampling(self.policy):
                    self.domain.check_policy(self.policy)
                self._checked = True
            parts = given_parts(self.domain, prompts_P, self.chunk, chunks, self.check)
            rows = concatenate([*parts])
        with watch("reward"):
            keeps_N = self.domain.keeps(rows)
            rewards = gather_rewards(
                rows, preference(rows), [Preference()], prompts_P, PAIR, keeps_N
            )
        return Rewarded(prompts_P, rows, Artifacts(self.domain, rows), rewards)

    def _source(self) -> AbstractContextManager[nn.Module]:
        """The model that the samples are drawn from."""
        sources = {"base": self.references.base, "reference": self.references.reference}
        source = sources.get(self.algorithm.rollouts)
        return nullcontext(self.policy) if source is None else source()

    def _reward(self, rows: Rows, artifacts: Sequence[Any], prompts_P: Sequence[Prompt]) -> Rewards:
        prompts_N = [prompts_P[int(s) // self.group_size] for s in rows.sample_ids_N]
        samples, info = len(prompts_P) * self.group_size, Info()
        keeps_N, size = self.domain.keeps(rows), self.group_size
        with watchdog.patience(longest_wait(self.rewards)):
            with self.engine.sampling(*sharded_models(self.rewards)):
                rewards_NR = reward_block(
                    self.rewards, artifacts, prompts_N, samples, self.chunk, self.check, info
                )
            found = gather_rewards(
                rows, rewards_NR, self.rewards, prompts_P, size, keeps_N, self.gates
            )
        return replace(found, info=gather_info(info))


def nothing() -> None:
    """A `check` that never stops."""


def chunk_count(samples: int, chunk: int) -> int:
    """Number of chunks of every rank, including ranks with a shorter or empty block."""
    largest = -(-samples // dist.world_size())
    return -(-largest // chunk)


def sample_block(
    domain: Domain,
    policy: nn.Module,
    prompts_P: Sequence[Prompt],
    group_size: int,
    key: DrawKey,
    chunk: int,
    check: Callable[[], None] = nothing,
    mode: Mode = "rollout",
) -> Rows:
    """This rank's block of the P·G samples. Call it inside `engine.sampling()`.

    check: called before every chunk, equally often on every rank; may raise StopRequested.
    """
    samples = len(prompts_P) * group_size
    mine = dist.block(samples, dist.rank(), dist.world_size())
    parts = []
    if mode == "rollout":
        domain.begin_rollout(policy)
    for k in range(chunk_count(samples, chunk)):
        check()
        ids = list(mine)[k * chunk : (k + 1) * chunk]
        prompts_N = [prompts_P[s // group_size] for s in ids]
        ids_N = torch.tensor(ids, dtype=torch.int64)
        parts.append(domain.sample(policy, prompts_N, ids_N, key, mode))
    if mode == "rollout":
        domain.end_rollout()
    return concatenate(parts)


def concatenate(parts: Sequence[Rows]) -> Rows:
    """The rows of all parts, in order."""
    return Rows(
        torch.cat([part.sample_ids_N for part in parts]),
        torch.cat([part.prompt_ids_N for part in parts]),
        {name: torch.cat([part.tensors[name] for part in parts]) for name in parts[0].tensors},
    )


def reward_block(
    rewards: Sequence[Reward],
    artifacts: Sequence[Any],
    prompts_N: Sequence[Prompt],
    samples: int,
    chunk: int,
    check: Callable[[], None] = nothing,
    info: Info | None = None,
) -> Tensor:
    """float64 [N, R]: rewards of this rank's samples, NaN where a reward failed, ABSTAINED where it
    gave none.

    Computed in the chunks of `sample_block`. samples: S, over all ranks. check: as there. info:
    takes what rewards gave beside their numbers.
    """
    parts = []
    for k in range(chunk_count(samples, chunk)):
        check()
        part = slice(k * chunk, (k + 1) * chunk)
        columns = []
        for reward in rewards:
            columns.append(rewards_of(reward, artifacts[part], prompts_N[part], info))
            watchdog.beat()
        size = len(artifacts[part])
        parts.append(torch.stack(columns, 1) if columns else torch.empty(size, 0).double())
    return torch.cat(parts)


def gather_rewards(
    rows: Rows,
    rewards_NR: Tensor,
    rewards: Sequence[Summed],
    prompts_P: Sequence[Prompt],
    size: int,
    keeps_N: Tensor | None = None,
    gates: Collection[str] = (),
) -> Rewards:
    """The rewards of all S samples, the same on every rank. Collective.

    rewards_NR: of `reward_block`. keeps_N: `Domain.keeps` of the rows; all by default. gates:
    labels of the rewards that the sum leaves out. Raises GroupError, naming the prompt, where a
    group does not have exactly `size` samples.
    """
    if keeps_N is None:
        keeps_N = torch.ones(len(rows), dtype=torch.bool)
    facts = dist.gather_rows(torch.stack([rows.sample_ids_N, rows.prompt_ids_N, keeps_N.long()], 1))
    ids = facts[:, :2]
    rewards_SR = dist.gather_rows(rewards_NR)
    check_groups(ids, prompts_P, size)
    order, shape = ids[:, 0].argsort(), (len(prompts_P), size)
    every_RPG = rewards_SR[order].T.unflatten(1, shape)
    is_gate = torch.tensor([reward.label in gates for reward in rewards], dtype=torch.bool)
    given_RPG, gates_RPG = every_RPG[~is_gate], every_RPG[is_gate]
    abstained_RPG = given_RPG == ABSTAINED
    summed = [reward for reward in rewards if reward.label not in gates]
    weights_R = torch.tensor([reward.weight for reward in summed], dtype=torch.float64)
    total_PG = weighted_sum(weights_R, given_RPG)
    mask_PG = total_PG.isfinite()
    return Rewards(
        names=[reward.label for reward in summed],
        weights_R=weights_R,
        per_reward_RPG=torch.where(abstained_RPG, torch.nan, given_RPG),
        total_PG=torch.where(mask_PG, total_PG, 0.0),
        mask_PG=mask_PG,
        prompt_ids_P=torch.tensor([p.id for p in prompts_P], dtype=torch.int64),
        kept_PG=facts[order, 2].bool().unflatten(0, shape),
        abstained_RPG=abstained_RPG,
        gate_names=[reward.label for reward in rewards if reward.label in gates],
        gates_RPG=torch.where(gates_RPG == ABSTAINED, torch.nan, gates_RPG) if gates else None,
    )


def weighted_sum(weights_R: Tensor, given_RPG: Tensor) -> Tensor:
    """The weighted sum of the rewards that a sample got, float64 [P, G]; NaN where one of them
    failed, and where all abstained. Weights are not shared out again: a sample that one of two
    rewards scores has that one's share alone. given_RPG: as in `reward_block`."""
    abstained_RPG = given_RPG == ABSTAINED
    total_PG = torch.einsum("r,rpg->pg", weights_R, torch.where(abstained_RPG, 0.0, given_RPG))
    return torch.where(abstained_RPG.all(0), torch.nan, total_PG)


def gather_info(info: Info) -> dict[str, float]:
    """Means over the samples of all ranks. Collective."""
    whole = Info()
    for part in dist.gather_objects(info.sums):
        whole.merge(part)
    return whole.means()


def gather_sizes(domain: Domain, rows: Rows) -> Tensor | None:
    """`Domain.sizes` of all S samples on every rank. Collective."""
    sizes_N = domain.sizes(rows)
    if sizes_N is None:
        return None
    pairs = dist.gather_rows(torch.stack([rows.sample_ids_N, sizes_N], 1))
    return pairs[pairs[:, 0].argsort(), 1]


def check_groups(ids: Tensor, prompts_P: Sequence[Prompt], size: int) -> None:
    """Raises GroupError unless each sample s of P·size is there once, made for prompt s // size.

    ids: int64 [S, 2], (sample id, prompt id).
    """
    counts = torch.bincount(ids[:, 0], minlength=len(prompts_P) * size)
    expected = torch.tensor([p.id for p in prompts_P], dtype=torch.int64)
    for p, prompt in enumerate(prompts_P):
        members = counts[p * size : (p + 1) * size]
        if not bool((members == 1).all()):
            raise GroupError(
                f"{named(prompt)}: samples came {members.tolist()} times, "
                f"each of the group's {size} is expected once; a rank has lost or repeated rows: "
                "please open an issue"
            )
    if len(counts) > len(expected) * size:
        raise GroupError(
            f"sample id {len(counts) - 1} is beyond the {len(expected) * size} expected"
        )
    wrong = (ids[:, 1] != expected[ids[:, 0] // size]).nonzero().flatten()
    if len(wrong):
        sample, found = ids[wrong[0]].tolist()
        prompt = prompts_P[sample // size]
        raise GroupError(
            f"sample {sample} was made for prompt {found}, but belongs to {named(prompt)}"
        )
