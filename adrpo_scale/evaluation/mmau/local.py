"""A run's checkpoint or a published model as the model that answers: greedy, in batches.

The code uses only the contract of a domain that hears (`Domain.hears`). Every rank holds the model
or a shard of it, and answers its own questions inside `engine.sampling()`.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace

import torch
from torch import nn

from adrpo_scale.checkpoint.locate import open_checkpoint
from adrpo_scale.core.chat_endpoint import Answer
from adrpo_scale.core.errors import ConfigError
from adrpo_scale.core.settings import leaves
from adrpo_scale.core.types import DrawKey
from adrpo_scale.domains.base import Domain
from adrpo_scale.evaluation.mmau.base import MmauConfig, Question
from adrpo_scale.evaluation.sample import (
    Source,
    domain_of,
    load_policy,
    model_source,
    run_source,
    sampling_engine,
    stands_for,
)
from adrpo_scale.run.build import build_domain
from adrpo_scale.run.config import SampleConfig
from adrpo_scale.run.load import changed
from adrpo_scale.run.registry import DOMAINS

log = logging.getLogger(__name__)

_KEY = DrawKey(0, 0)  # a placeholder: greedy decoding draws no random numbers


def find_local(name: str, config: MmauConfig) -> Source:
    """The source of RUN, RUN@…, a checkpoint, a model's folder or a hub id. Raises
    ConfigError where the model does not hear."""
    source = hearing_source(name, config)
    build_domain(source.config)  # checks the model before anything is written
    return source


def hearing_source(name: str, config: MmauConfig) -> Source:
    """As `find_local`, for a model that need not be here yet."""
    hearing = [domain for domain in DOMAINS if DOMAINS[domain].hears]
    if not hearing:
        raise ConfigError(
            f"--model {name}: this version has no domain that hears (it has {', '.join(DOMAINS)}); "
            "ask an endpoint instead: --endpoint MODEL_NAME"
        )
    meant = stands_for(name)
    if meant == "run":
        source = run_source(open_checkpoint(name))
        domain = source.config.domain.name
    else:
        # A hub id counts as text where the hub cannot be asked. The domain that hears extends text,
        # and its own checks name the fault of a model that does not hear.
        heirs = (each for each in hearing if issubclass(DOMAINS[each], DOMAINS[meant]))
        domain = next(heirs, meant)
        source = model_source(name, domain)
    if not DOMAINS[domain].hears:
        raise ConfigError(
            f"--model {name} is of the domain {domain!r}, which hears nothing; expected a run of "
            f"{hearing[0]!r} or a Qwen2.5-Omni model"
        )
    return replace(source, config=with_settings(source.config, config))


def with_settings(sampling: SampleConfig, config: MmauConfig) -> SampleConfig:
    """`sampling`, overridden by the evaluation's settings."""
    given = {
        "domain": {
            "rollout_chunk": config.batch,
            "evaluation": {"max_new_tokens": config.max_new_tokens},
        }
    }
    own = {"domain": config.domain, "engine": config.engine}
    return changed(sampling, [*leaves(given), *leaves(own)])


class Local:
    """A `Model` of a domain and a policy, for use inside `engine.sampling()`."""

    def __init__(self, domain: Domain, policy: nn.Module, usable: frozenset[int]) -> None:
        """usable: ids of the prompts passed to `domain.prepare`."""
        self._domain, self._policy, self._usable = domain, policy, usable

    def answers(self, questions: Sequence[Question]) -> list[Answer | None]:
        """None where the clip could not be heard: the model then answered from the text alone."""
        prompts = [q.prompt for q in questions if q.prompt.id in self._usable]
        if not prompts:
            return [None] * len(questions)
        ids_N = torch.tensor([prompt.id for prompt in prompts], dtype=torch.int64)
        rows = self._domain.sample(self._policy, prompts, ids_N, _KEY, "greedy")
        columns = ids_N.tolist(), self._domain.artifacts(rows), self._domain.is_sound(rows).tolist()
        texts = {
            prompt_id: Answer(completion.text, not completion.finished)
            for prompt_id, completion, is_sound in zip(*columns, strict=True)
            if is_sound
        }
        for question in questions:
            if question.prompt.id in self._usable and question.prompt.id not in texts:
                log.warning("question %s has no answer: its clip was not heard", question.id)
        return [texts.get(question.prompt.id) for question in questions]


@contextmanager
def opened(source: Source, questions: Sequence[Question], weights: str) -> Iterator[Local]:
    """Loads the model. questions: those of all ranks, at least one. weights: a word of
    `named.WEIGHTS`. Collective."""
    domain = domain_of(source)
    engine = sampling_engine(source.config)
    prompts = domain.usable([question.prompt for question in questions])
    domain.prepare(prompts, engine.device, engine.dtype)
    policy = load_policy(source, domain, engine, weights)
    with engine.sampling(policy):
        yield Local(domain, policy, frozenset(prompt.id for prompt in prompts))
