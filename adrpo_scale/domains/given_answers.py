"""Given pairs of answers as rows of a language model (`algorithm.rollouts = "file"`).

An answer's tokens are those of its text, and the token that ends a turn in the model's own chat
template. Nothing is cut: an answer longer than a rollout may be is refused or left out.
"""

from __future__ import annotations

import functools
import logging
from abc import abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from adrpo_scale.core.errors import PromptError
from adrpo_scale.core.naming import named
from adrpo_scale.core.types import Prompt, Rows
from adrpo_scale.data.pairs import COLUMNS, each_pair, texts_of
from adrpo_scale.domains.base import Domain
from adrpo_scale.domains.chat import ChatConfig, tokenizing
from adrpo_scale.domains.language_model import LanguageModel
from adrpo_scale.domains.text_config import TextConfig
from adrpo_scale.hub.templates import TemplateFault, rendered

log = logging.getLogger(__name__)

Pair = tuple[list[int], list[int]]
_MARK = "adrpo"


class GivenAnswers(Domain):
    """The part of a language model's domain that takes given pairs."""

    config: TextConfig
    model: LanguageModel
    tokenizer: Any
    device: torch.device

    def take_pairs(self, prompts: Sequence[Prompt], folder: Path) -> list[Prompt]:
        """`domain.chat.long_prompts` also says what becomes of answers that are too long."""
        read = functools.partial(
            self._pair, end=end_of(self.tokenizer, self.model.ends, self.config.chat)
        )
        self._pairs = each_pair(tokenizing(prompts), read)
        kept = [prompt for prompt in prompts if self._pairs[prompt.id]]
        most = self.config.rollout.max_new_tokens
        if prompts and not kept:
            raise PromptError(
                f"every one of the {len(prompts)} pairs has an answer of more than "
                f"domain.rollout.max_new_tokens = {most} tokens: raise it"
            )
        if len(kept) < len(prompts):
            log.warning(
                "%d of %d pairs have an answer of more than %d tokens and are left out; logs/ "
                "names them",
                len(prompts) - len(kept),
                len(prompts),
                most,
            )
        return kept

    def _pair(self, prompt: Prompt, end: int) -> Pair | tuple[()]:
        """The tokens of both answers; () where one is too long and pairs may be left out."""
        found = [[*self._tokens_of(text), end] for text in texts_of(prompt)]
        most, banned = self.config.rollout.max_new_tokens, set(self.model.banned)
        for key, tokens in zip(COLUMNS, found, strict=True):
            never = sorted(banned.intersection(tokens))
            if never:
                words = self.tokenizer.convert_ids_to_tokens(never[:3])
                raise PromptError(
                    f"{named(prompt)}: its `{key}` has {words}, which the model never generates; "
                    "fix the row or delete it"
                )
            if len(tokens) <= most:
                continue
            if self.config.chat.long_prompts == "drop":
                log.info("%s: its `%s` has %d tokens: left out", named(prompt), key, len(tokens))
                return ()
            raise PromptError(
                f"{named(prompt)}: its `{key}` has {len(tokens)} tokens with the one that ends it, "
                f"domain.rollout.max_new_tokens is {most}: raise it, delete the row, or set "
                'domain.chat.long_prompts = "drop"; answers are never cut'
            )
        return found[0], found[1]

    def _tokens_of(self, text: str) -> list[int]:
        return list(self.tokenizer(text, add_special_tokens=False)["input_ids"])

    def check_policy(self, policy: nn.Module) -> None:
        self._check_logprobs(policy)

    @abstractmethod
    def _check_logprobs(self, policy: nn.Module) -> None:
        """Compares log-probabilities with the model's own logits."""

    def given(self, prompts_N: Sequence[Prompt], sample_ids_N: Tensor) -> Rows:
        width = self.config.rollout.max_new_tokens
        ids = [(p.id, int(s) % 2) for p, s in zip(prompts_N, sample_ids_N, strict=True)]
        answers = [self._pairs[prompt][member] for prompt, member in ids]
        completion = torch.zeros(len(answers), width, dtype=torch.int64)
        for n, tokens in enumerate(answers):
            completion[n, : len(tokens)] = torch.tensor(tokens)
        tensors = {
            "completion": completion,
            "lengths": torch.tensor([len(tokens) for tokens in answers], dtype=torch.int64),
            "finished": torch.ones(len(answers), dtype=torch.int64),
        }
        prompt_ids_N = torch.tensor([prompt for prompt, _ in ids], dtype=torch.int64)
        return Rows(sample_ids_N, prompt_ids_N, {k: t.to(self.device) for k, t in tensors.items()})


def end_of(tokenizer: Any, ends: Sequence[int], config: ChatConfig) -> int:
    """The token that ends an answer: the first of `ends` that the chat template writes after one,
    else the tokenizer's own."""
    own = tokenizer.eos_token_id
    usual = own if own in ends else ends[0]
    if config.template == "plain":
        return usual
    turns = [{"role": "user", "content": "?"}, {"role": "assistant", "content": _MARK}]
    try:
        after = rendered(tokenizer, turns).rpartition(_MARK)[2]
    except TemplateFault:
        return usual
    written = tokenizer(after, add_special_tokens=False)["input_ids"]
    return next((token for token in written if token in ends), usual)
