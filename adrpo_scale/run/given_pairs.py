"""`algorithm.rollouts = "file"`: settings that contradict it, and the pairs of a run.

config: a `RunConfig`, whose module asks this one for contradictions.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from adrpo_scale.core.types import Prompt
from adrpo_scale.data.pairs import folder_of
from adrpo_scale.domains.base import NO_PAIRS, Domain
from adrpo_scale.hub.weights import combined_sha256
from adrpo_scale.run.registry import ALGORITHMS, DOMAINS
from adrpo_scale.training.given import PAIR

_FILE = 'algorithm.rollouts = "file"'


def has_given_pairs(config: Any) -> bool:
    """Whether the run trains on pairs that its prompt file gives."""
    return bool(config.algorithm.rollouts == "file")


def faults_of_pairs(config: Any, algorithm: Any) -> Iterator[str]:
    """What contradicts given pairs, a sentence each."""
    if not algorithm.takes_pairs:
        others = [name for name in ALGORITHMS if ALGORITHMS[name].takes_pairs]
        yield (
            f"{_FILE} with {config.algorithm.name}: a given pair says which of two answers is the "
            "better one, while this algorithm weighs the policy's own samples by the size of "
            f"their rewards; take {' or '.join(others)}, or let it sample from the policy"
        )
    if DOMAINS[config.domain.name].given is Domain.given:
        yield NO_PAIRS.format(config.domain.name)
    if config.prompts.group_size != PAIR:
        yield (
            f"prompts.group_size = {config.prompts.group_size} with {_FILE}: a pair has two "
            f"answers; set prompts.group_size = {PAIR}"
        )
    judges = [reward.label for reward in config.rewards if reward.use != "evaluation"]
    if judges:
        yield (
            f"rewards {judges} are to be trained on with {_FILE}: the pairs say which answer is "
            'the better one; set use = "evaluation" of each, or leave them out'
        )
    yield from _faults_of_the_domain(config)
    saving = config.checkpoint
    if saving.keep_best and saving.best_metric == "reward":
        yield (
            f'checkpoint.best_metric = "reward" with {_FILE}: no reward is trained on; name '
            "another metric of eval.jsonl, or set keep_best = 0"
        )


def _faults_of_the_domain(config: Any) -> Iterator[str]:
    if getattr(config.domain, "noise", "") == "rollout":
        yield (
            f'domain.noise = "rollout" with {_FILE}: given pictures were made from no known noise; '
            'set noise = "independent"'
        )
    backend = getattr(config.domain, "backend", "in_process")
    if backend != "in_process":
        yield (
            f'domain.backend = "{backend}" with {_FILE}: no rollout is drawn; set backend = '
            '"in_process"'
        )


def take_pairs(config: Any, domain: Domain, train: Sequence[Prompt]) -> list[Prompt]:
    """The prompts to train on: those of `Domain.take_pairs` where the run has given pairs, else
    all. Collective."""
    if not has_given_pairs(config):
        return list(train)
    return domain.take_pairs(train, folder_of(config.prompts.train))


def pair_facts(config: Any, domain: Domain) -> dict[str, Any]:
    """What each checkpoint says of the files that pairs name: {} where they name none. The rows
    themselves are part of the prompts."""
    files = domain.pair_files() if has_given_pairs(config) else []
    if not files:
        return {}
    return {"pairs": combined_sha256(files, folder_of(config.prompts.train))}
