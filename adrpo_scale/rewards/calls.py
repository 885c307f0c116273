"""Calls of rewards in which a bad sample stops no run.

A reward that raises is called again for one sample at a time. A sample whose reward raises or is
not finite is masked on every rank, and the log names its prompt; samples with the same fault share
one line, which names the first prompts.

A reward gets copies of samples and rows, and what it changes of this process is put back: the next
reward sees what the model made, and the run goes on as it was. Coroutines are awaited.

A reward that gives None for a sample abstains: the sample's weighted sum leaves it out, as if its
weight were 0 there. A sample for which every reward abstains is masked.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from adrpo_scale.core import failure, watchdog
from adrpo_scale.core.errors import RewardError
from adrpo_scale.core.keeping import kept
from adrpo_scale.core.naming import named
from adrpo_scale.core.types import Prompt
from adrpo_scale.rewards.awaiting import awaited
from adrpo_scale.rewards.base import REPEATS, Reward
from adrpo_scale.rewards.copies import own_artifacts, own_prompts

log = logging.getLogger(__name__)
_NAMED = 6  # prompts of one fault that a warning names

_halves_told: set[str] = set()  # a warning at every iteration would bury the others

ABSTAINED = -math.inf  # in place of a number, where a reward abstained; NaN: it failed


class CallFailed(Exception):
    """A call in another process failed; the text says how, after the reward's name."""


class NoNumber(TypeError):
    """A sample has something else in the place of a number."""


@dataclass(frozen=True)
class Scores:
    """A reward's answer about N samples. values_N: float64, NaN where it abstained; abstained_N:
    bool. info: name → (sum, number of samples) of what it gave beside them. faults_N: why there is
    no number, after the reward's name, "" where there is one; () says nothing of any."""

    values_N: Tensor
    abstained_N: Tensor
    info: Mapping[str, tuple[float, int]]
    faults_N: tuple[str, ...] = ()


@dataclass
class Info:
    """Sums of the numbers that rewards gave beside their scores, by `LABEL_NAME`."""

    sums: dict[str, tuple[float, int]] = field(default_factory=dict)

    def add(self, label: str, info: Mapping[str, tuple[float, int]]) -> None:
        self.merge({f"{label}_{name}": pair for name, pair in info.items()})

    def merge(self, sums: Mapping[str, tuple[float, int]]) -> None:
        for name, (value, count) in sums.items():
            before, many = self.sums.get(name, (0.0, 0))
            self.sums[name] = before + value, many + count

    def means(self) -> dict[str, float]:
        return {name: value / count for name, (value, count) in sorted(self.sums.items()) if count}


def rewards_of(
    reward: Reward,
    artifacts: Sequence[Any],
    prompts: Sequence[Prompt],
    info: Info | None = None,
) -> Tensor:
    """float64 [N] on the CPU: NaN where the reward raised or was not finite, ABSTAINED where it
    gave None. The log has one line for each fault of the batch: a reward with a bug fails on every
    sample in the same way. info: takes what the reward gave beside its scores."""
    if not artifacts:
        return torch.empty(0, dtype=torch.float64)
    values, faults = _scored(reward, artifacts, prompts, Info() if info is None else info)
    for fault in dict.fromkeys(filter(None, faults)):
        hit = [prompt for prompt, its in zip(prompts, faults, strict=True) if its == fault]
        log.warning("reward %s %s on %s; masked", reward.label, fault, _all_named(hit))
    return values


def _scored(
    reward: Reward, artifacts: Sequence[Any], prompts: Sequence[Prompt], info: Info
) -> tuple[Tensor, list[str]]:
    """The values of `rewards_of`, and the fault of each sample; "" where none."""
    try:
        scores = checked(reward, artifacts, prompts)
    except RewardError:
        raise  # the reward breaks the contract on every sample
    except (Exception, SystemExit) as error:
        if failure.is_memory(error):
            return _halved(reward, artifacts, prompts, info, error)
        if failure.is_lost(error):
            raise  # a dead GPU or node would fail on every sample, and is not the sample's fault
        # Third-party code on generated input: one bad sample must not end a run of days.
        if len(artifacts) > 1:
            return _one_by_one(reward, artifacts, prompts, info)
        return _failed(said(error))
    info.add(reward.label, scores.info)
    values, abstained = scores.values_N, scores.abstained_N
    faults = [
        "" if none or math.isfinite(value) else fault or f"is {value}"
        for value, none, fault in zip(
            values.tolist(),
            abstained.tolist(),
            scores.faults_N or [""] * len(values),
            strict=True,
        )
    ]
    values = torch.where(values.isfinite(), values, torch.nan)
    return torch.where(abstained, ABSTAINED, values), faults


def _halved(
    reward: Reward,
    artifacts: Sequence[Any],
    prompts: Sequence[Prompt],
    info: Info,
    error: BaseException,
) -> tuple[Tensor, list[str]]:
    """As `_scored`, in two calls: the samples are too many for the memory at once. Raises `error`
    where there is one."""
    half = len(artifacts) // 2
    if half == 0:
        raise error
    key = f"{reward.label} {len(artifacts)}"
    if key not in _halves_told:
        _halves_told.add(key)
        first = str(error).partition(". ")[0]
        log.warning(
            "reward %s ran out of memory on %d samples and is asked in halves, which takes longer; "
            "domain.rollout_chunk=%d asks for fewer (%s)",
            *(reward.label, len(artifacts), half, first),
        )
    parts = [
        _scored(reward, artifacts[part], prompts[part], info)
        for part in (slice(half), slice(half, None))
    ]
    return torch.cat([values for values, _ in parts]), [f for _, faults in parts for f in faults]


def _one_by_one(
    reward: Reward, artifacts: Sequence[Any], prompts: Sequence[Prompt], info: Info
) -> tuple[Tensor, list[str]]:
    """As `_scored`, to find the bad samples of a call that failed. With a time limit, all samples
    together get a few of them: other ranks wait, and a judge that is away is so for all."""
    left = math.inf if reward.time_limit is None else REPEATS * reward.time_limit
    found: list[tuple[Tensor, list[str]]] = []
    for artifact, prompt in zip(artifacts, prompts, strict=True):
        watchdog.beat()
        begin = time.monotonic()
        if left > 0:
            found.append(_scored(reward, [artifact], [prompt], info))
        else:
            found.append(_failed("was not asked again, after others had taken too long,"))
        spent = time.monotonic() - begin  # with the start of a new process, which is not its fault
        left -= min(spent, reward.time_limit or spent)
    return torch.cat([value for value, _ in found]), [fault for _, (fault,) in found]


def said(error: BaseException) -> str:
    """How a call failed, after the reward's name."""
    if isinstance(error, CallFailed):
        return str(error)
    return f"gave {error}" if isinstance(error, NoNumber) else f"raised {error!r}"


def _failed(fault: str) -> tuple[Tensor, list[str]]:
    return torch.full((1,), torch.nan, dtype=torch.float64), [fault]


def _all_named(prompts: Sequence[Prompt]) -> str:
    """The prompts of some samples for a message, the first few of them in full."""
    each = list({prompt.id: prompt for prompt in prompts}.values())
    names = ", ".join(named(prompt) for prompt in each[:_NAMED])
    more = f" and {len(each) - _NAMED} more" if len(each) > _NAMED else ""
    samples = f"{len(prompts)} samples: " if len(prompts) > 1 else ""
    return f"{samples}{names}{more}"


def checked(reward: Reward, artifacts: Sequence[Any], prompts: Sequence[Prompt]) -> Scores:
    """The reward's answer about a batch. Raises RewardError where it is not one number per sample,
    NoNumber where single samples have something else in the place of a number."""
    if reward.is_apart:
        answer = reward(artifacts, prompts)
    else:
        with kept(f"reward {reward.label}"):
            answer = awaited(reward(own_artifacts(artifacts), own_prompts(prompts)))
    if isinstance(answer, Scores):
        return answer
    return read_scores(answer, len(artifacts), reward.label)


def embeddings_of(judge: Any, artifacts: Sequence[Any]) -> Tensor:
    """`Embedding.embed` of a reward, as safe as a call."""
    with kept(f"reward {judge.label}"):
        return judge.embed(own_artifacts(artifacts))


def read_scores(answer: Any, count: int, label: str) -> Scores:
    """What a reward returned, read as numbers of `count` samples; raises as `checked` does."""
    info: Mapping[str, Any] = {}
    if isinstance(answer, tuple) and len(answer) == 2 and isinstance(answer[1], Mapping):
        answer, info = answer
    members = _members(answer)
    expected = f"for {count} samples; one number per sample is expected"
    if members is None:
        raise RewardError(f"reward {label} gave {_described(answer)} {expected}")
    shape = _shape(members)
    if shape != (count,):
        raise RewardError(f"reward {label} gave shape {shape} {expected}")
    return Scores(*_numbers(members), _summed(info, count))


def _members(answer: Any) -> Tensor | list[Any] | None:
    """The numbers of an answer as a tensor, or as a list of anything; None where it has no members,
    or others than those of a list."""
    if isinstance(answer, np.ndarray) and answer.dtype.kind in "biuf":
        return torch.as_tensor(answer)
    if isinstance(answer, Tensor):
        return answer.detach().cpu()
    has_members = isinstance(answer, Iterable) and not isinstance(answer, str | bytes | Mapping)
    return list(answer) if has_members else None


def _shape(members: Tensor | list[Any]) -> tuple[int, ...]:
    if isinstance(members, Tensor):
        return tuple(members.shape)
    inner = next((len(one) for one in members if isinstance(one, list | tuple)), None)
    return (len(members),) if inner is None else (len(members), inner)


def _numbers(members: Tensor | list[Any]) -> tuple[Tensor, Tensor]:
    """(float64 [N], NaN where there is none; bool [N]: where it is None)."""
    if isinstance(members, Tensor):
        return members.double(), torch.zeros(len(members), dtype=torch.bool)
    words = [one for one in members if isinstance(one, str | bytes)]
    if words:
        raise NoNumber(f"{words[0]!r} in the place of a number")
    abstained = torch.tensor([one is None for one in members])
    # torch's own conversion: Python's floats become float32, and runs of before have those.
    try:
        values = torch.as_tensor([0.0 if one is None else one for one in members]).detach().cpu()
    except (TypeError, ValueError, RuntimeError) as error:
        kinds = ", ".join(dict.fromkeys(type(one).__name__ for one in members))
        raise NoNumber(f"a list of {kinds} in the place of numbers ({error})") from error
    return torch.where(abstained, torch.nan, values.double()), abstained


def _described(answer: Any) -> str:
    if answer is None:
        return "nothing (None)"
    if isinstance(answer, int | float):
        return f"shape (), the one number {answer},"
    return f"a {type(answer).__name__}"


def _summed(info: Mapping[str, Any], count: int) -> dict[str, tuple[float, int]]:
    """The numbers of an info: one for the batch, or one per sample. All else is left out."""
    found = {}
    for name, value in info.items():
        many = isinstance(value, list | tuple | np.ndarray | Tensor)
        try:
            numbers = [float(v) for v in value if v is not None] if many else [float(value)]
        except (TypeError, ValueError):
            continue
        finite = [v for v in numbers if math.isfinite(v)]
        if finite and (not many or len(value) == count):
            weight = len(finite) if many else count
            found[str(name)] = sum(finite) / len(finite) * weight, weight
    return found
