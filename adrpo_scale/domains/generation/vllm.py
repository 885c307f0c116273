"""Rollouts by vLLM, in the process of one GPU: every call of vLLM that this package makes.

Read in the source of vLLM 0.33.0. The engine lies in this very process, without workers of its own,
so the weights reach it as a plain iterator. Its own process group has one member and meets in a
file. It imports nothing here but the standard library and torch: its environment may be another.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from adrpo_scale.domains.generation.generator import Generator

BANNED = -100.0  # the lowest bias of a logit that a request may have


class Vllm(Generator):
    """One `vllm.LLM`. Not reproducible to the bit: its kernels depend on the batch, and it draws
    tokens itself, by a seed per sample."""

    def __init__(self, settings: Mapping[str, Any]) -> None:
        os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"  # the engine here, where weights arrive
        os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")  # compute nodes reach nothing outside
        import vllm
        from vllm.platforms import current_platform

        self._ends, self._banned = settings["ends"], settings["banned"]
        self._pad = settings["pad"]
        self._sleeps = settings["sleeps"] and current_platform.is_sleep_mode_available()
        self._is_asleep = False
        self._params = vllm.SamplingParams
        # What is compiled for a CPU keeps the weights that it was compiled with.
        eager = current_platform.is_cpu()
        self._model = vllm.LLM(**model_arguments(settings, self._sleeps), enforce_eager=eager)

    def load(self, weights: Iterator[tuple[str, Tensor]]) -> None:
        if self._is_asleep:
            self._model.wake_up(tags=["weights"])
        else:
            self._model.reset_prefix_cache()  # it was computed with the old weights
        # Not load_weights of the model: some kernels keep weights in a form of their own.
        self._model.collective_rpc("reload_weights", kwargs={"weights_iterator": weights})
        if self._is_asleep:
            self._model.wake_up(tags=["kv_cache"])
        self._is_asleep = False

    def generate(
        self, request: Mapping[str, Any], tensors: Mapping[str, Tensor]
    ) -> dict[str, Tensor]:
        params = [
            self._params(**request_arguments(request["sampling"], self._ends, self._banned, seed))
            for seed in request["seeds"]
        ]
        prompts = [{"prompt_token_ids": prompt} for prompt in request["prompts"]]
        answers = self._model.generate(prompts, params, use_tqdm=False)
        return as_tensors(
            [answer.outputs[0] for answer in answers], tensors["uniforms"].shape[1], self._pad
        )

    def rest(self) -> None:
        if self._sleeps:
            # Level 2 keeps no copy of the weights: `load` brings them anew.
            self._model.sleep(level=2)
            self._is_asleep = True


def model_arguments(settings: Mapping[str, Any], sleeps: bool) -> dict[str, Any]:
    """Arguments of vLLM's LLM."""
    return {
        "model": settings["folder"],
        "dtype": settings["dtype"],
        "gpu_memory_utilization": settings["memory_share"],
        "max_model_len": settings["longest"],
        "max_num_seqs": settings["rows"],
        "load_format": "dummy",  # the policy's weights come before the first request
        "logprobs_mode": "processed_logprobs",  # after the temperature, as the loss has them
        "enable_sleep_mode": sleeps,
    }


def request_arguments(
    sampling: Mapping[str, Any], ends: Sequence[int], banned: Sequence[int], seed: int
) -> dict[str, Any]:
    """Arguments of vLLM's SamplingParams for one completion. sampling: as `SamplingConfig`."""
    return {
        "temperature": sampling["temperature"],
        "top_p": sampling["top_p"],
        "top_k": sampling["top_k"] or -1,
        "max_tokens": sampling["max_new_tokens"],
        "stop_token_ids": list(ends),
        "logit_bias": dict.fromkeys(banned, BANNED) or None,
        "seed": seed,
        "logprobs": 0,  # of the token that was drawn
        "detokenize": False,
    }


def as_tensors(answers: Sequence[Any], width: int, pad: int) -> dict[str, Tensor]:
    """The answer of `generate` from vLLM's CompletionOutputs."""
    shape = (len(answers), width)
    tokens, logp = torch.full(shape, pad), torch.zeros(shape)
    for row, answer in enumerate(answers):
        length = len(answer.token_ids)
        tokens[row, :length] = torch.tensor(list(answer.token_ids))
        chosen = zip(answer.logprobs, answer.token_ids, strict=True)
        logp[row, :length] = torch.tensor([found[token].logprob for found, token in chosen])
    return {
        "tokens": tokens,
        "lengths": torch.tensor([len(answer.token_ids) for answer in answers]),
        "finished": torch.tensor([answer.finish_reason == "stop" for answer in answers]),
        "logp": logp,
    }
