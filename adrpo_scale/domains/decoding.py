"""Sampling of completions: one prefill per different prompt, then token by token in one batch.

The token at position t of sample s is the inverse of the cumulative distribution at a uniform
number, a function of (seed, iteration, s, t). A sample therefore depends neither on its batch nor
on the number of processes. Rows that have ended leave the batch.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from adrpo_scale.core.bounds import COUNT, NUMBER, TOKENS
from adrpo_scale.core.settings import Section, setting
from adrpo_scale.domains.step_masks import StepMasks

if TYPE_CHECKING:
    from transformers import DynamicCache

LOOK = 16  # tokens between two looks at how many rows are unfinished: a GPU waits for each
SHRINK = 0.75  # ended rows leave the batch when at most this share of it is still unfinished


class SamplingConfig(Section):
    """The distribution that tokens are drawn from. Every config states it: results depend on it."""

    max_new_tokens: int = setting(512, "largest number of tokens of a completion", ge=1, le=TOKENS)
    temperature: float = setting(
        1.0, "logits are divided by it; 0 is greedy, in evaluations only", ge=0, le=NUMBER
    )
    top_p: float = setting(
        1.0, "draw from the smallest set of tokens with this probability; 1: all", gt=0, le=1
    )
    top_k: int = setting(0, "draw from the k likeliest tokens; 0: all", ge=0, le=COUNT)


@dataclass(frozen=True)
class Generated:
    """N completions on the model's device.

    tokens_NT: int64, `pad` after the end; T = max_new_tokens. lengths_N: int64, including the token
    that ends the completion. finished_N: bool, False for a completion that was cut off.
    logp_NT: float32 log-probabilities under the program that drew the tokens; None where it is the
    policy itself.
    """

    tokens_NT: Tensor
    lengths_N: Tensor
    finished_N: Tensor
    logp_NT: Tensor | None = None

    def tensors(self) -> dict[str, Tensor]:
        """The tensors of a domain's rows."""
        found = {
            "completion": self.tokens_NT,
            "lengths": self.lengths_N,
            "finished": self.finished_N.long(),
        }
        return found if self.logp_NT is None else {**found, "logp_rollout": self.logp_NT}


@torch.no_grad()
def generate(
    model: Any,
    prompts: Sequence[Sequence[int]],
    uniforms_NT: Tensor,
    sampling: SamplingConfig,
    ends: Sequence[int],
    pad: int,
    audio_N: Sequence[Tensor] | None = None,
) -> Generated:
    """Completions of N ≥ 1 prompts. model: a transformers causal language model in eval mode.

    prompts: token ids. uniforms_NT: float32 [N, max_new_tokens] in [0, 1). ends: tokens that end a
    completion. pad: the token that fills up rows. audio_N: for models that hear, the embeddings at
    each prompt's audio tokens, [tokens, H]; the samples of a prompt share one tensor.
    """
    device, rows, steps = uniforms_NT.device, len(prompts), sampling.max_new_tokens
    logits, cache, mask, positions = prefill(model, prompts, steps, pad, device, audio_N)
    width = mask.shape[1] - steps
    masks = StepMasks(model.config, device, any(len(prompt) < width for prompt in prompts))
    tokens_NT = torch.full((rows, steps), pad, device=device)
    lengths_N = torch.full((rows,), steps, device=device)
    finished_N = torch.zeros(rows, dtype=torch.bool, device=device)
    ending = torch.tensor(list(ends), device=device)
    here = torch.arange(rows, device=device)  # the row of each place in the batch
    for step in range(steps):
        tokens = pick(logits, uniforms_NT[here, step], sampling)
        going = ~finished_N[here]
        tokens = torch.where(going, tokens, pad)
        tokens_NT[here, step] = tokens
        ended = going & torch.isin(tokens, ending)
        lengths_N[here] = torch.where(ended, step + 1, lengths_N[here])
        finished_N[here] |= ended
        if step == steps - 1:
            break
        looks = device.type == "cpu" or step % LOOK == LOOK - 1
        left = int((going & ~ended).sum()) if looks else len(here)
        if left == 0:
            break
        if left <= SHRINK * len(here):
            kept = (~finished_N[here]).nonzero()[:, 0]
            here, tokens, mask, positions = here[kept], tokens[kept], mask[kept], positions[kept]
            cache.batch_select_indices(kept)
            masks.rows_left(mask[:, :width])
        logits = model(
            input_ids=tokens[:, None],
            attention_mask=masks.of_step(mask[:, : width + step + 1]),
            position_ids=positions[:, None] + step,
            past_key_values=cache,
            use_cache=True,
        ).logits[:, -1]
    return Generated(tokens_NT, lengths_N, finished_N)


def prefill(
    model: Any,
    prompts: Sequence[Sequence[int]],
    steps: int,
    pad: int,
    device: torch.device,
    audio_N: Sequence[Tensor] | None,
) -> tuple[Tensor, DynamicCache, Tensor, Tensor]:
    """(logits [N, V] of the first tokens, cache, attention mask [N, width + steps], position [N] of
    the first tokens). Each different prompt goes through the model once, padded on the left."""
    # Tokens alone do not tell prompts apart: two clips of one length have the same ones.
    clips = [None if audio_N is None else id(audio_N[row]) for row in range(len(prompts))]
    keys = [(tuple(prompt), clip) for prompt, clip in zip(prompts, clips, strict=True)]
    firsts = {key: row for row, key in reversed(list(enumerate(keys)))}
    rows = sorted(firsts.values())
    place = {keys[row]: number for number, row in enumerate(rows)}
    index = torch.tensor([place[key] for key in keys], device=device)
    different = [prompts[row] for row in rows]
    width = max(len(prompt) for prompt in different)
    ids = torch.tensor([[pad] * (width - len(p)) + list(p) for p in different], device=device)
    lengths = torch.tensor([len(prompt) for prompt in different], device=device)
    columns = torch.arange(width + steps, device=device)
    mask = (columns[None] >= (width - lengths)[:, None]).long()
    from transformers import DynamicCache

    cache = DynamicCache(config=model.config)
    logits = model(
        input_ids=ids,
        attention_mask=mask[:, :width],
        position_ids=(mask[:, :width].cumsum(1) - 1).clamp(min=0),
        past_key_values=cache,
        use_cache=True,
        logits_to_keep=1,
        **audio_inputs(None if audio_N is None else [audio_N[row] for row in rows]),
    ).logits[:, -1]
    cache.batch_select_indices(index)
    return logits[index], cache, mask[index], lengths[index]


def audio_inputs(audio_N: Sequence[Tensor] | None) -> dict[str, Tensor]:
    """The further arguments of a forward pass over N rows of tokens with these embeddings."""
    return {} if audio_N is None else {"input_features": torch.cat(list(audio_N))}


def pick(logits: Tensor, uniforms: Tensor, sampling: SamplingConfig) -> Tensor:
    """int64 [N]: the token of each row of logits [N, V] at its uniform number in [0, 1)."""
    if sampling.temperature == 0:
        return logits.argmax(-1)
    chances = kept_chances(logits.float() / sampling.temperature, sampling)
    cumulative = chances.cumsum(-1)
    total = cumulative[:, -1:]
    # A goal that rounds up to the total would pick a token of probability 0.
    goal = torch.minimum(uniforms[:, None] * total, total.nextafter(total.new_zeros(())))
    return torch.searchsorted(cumulative, goal, right=True)[:, 0]


def kept_chances(logits: Tensor, sampling: SamplingConfig) -> Tensor:
    """[N, V]: probabilities after top-k and then top-p; 0 for tokens outside."""
    if 0 < sampling.top_k < logits.shape[1]:
        least = logits.topk(sampling.top_k).values[:, -1:]
        logits = logits.masked_fill(logits < least, -torch.inf)
    chances = logits.softmax(-1)
    if sampling.top_p < 1:
        ordered, order = chances.sort(descending=True, stable=True)
        before = ordered.cumsum(-1) - ordered
        dropped = (before >= sampling.top_p).gather(1, order.argsort(-1))
        chances = chances.masked_fill(dropped, 0.0)
    return chances
