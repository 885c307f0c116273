"""Back-ends that draw the tokens of rollouts; the default is the policy itself.

A back-end gets the policy's weights before it generates (`sync`), and one uniform number per
(sample, position). One with its own random numbers sets `is_reproducible = False` and returns the
log-probabilities of its tokens; truncated importance weights then correct the loss
(`algorithm.importance_cap`).
"""

from __future__ import annotations

import importlib.util
import os
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from adrpo_scale.core import dist
from adrpo_scale.core.errors import ConfigError
from adrpo_scale.domains.decoding import Generated, SamplingConfig, generate

VLLM_BANNED = -100.0  # the lowest bias of a logit that vLLM's requests may have


class Backend(ABC):
    """The contract of a back-end. is_reproducible: its tokens follow from `uniforms_NT`."""

    is_reproducible: ClassVar[bool] = True

    @abstractmethod
    def sync(self, policy: nn.Module) -> None:
        """Takes over the policy's weights. Called inside `engine.sampling()`, where every rank
        holds them whole."""

    @abstractmethod
    def generate(
        self,
        policy: nn.Module,
        prompts: Sequence[Sequence[int]],
        sample_seeds: Sequence[int],
        uniforms_NT: Tensor,
        sampling: SamplingConfig,
        audio_N: Sequence[Tensor] | None = None,
    ) -> Generated:
        """Completions of N ≥ 1 prompts of token ids, on the device of `uniforms_NT`.

        sample_seeds: N integers, for back-ends that draw by themselves. The other arguments are
        those of `decoding.generate`.
        """


class InProcess(Backend):
    """Generation by the policy itself, in its own process and precision."""

    def __init__(self, ends: Sequence[int], pad: int) -> None:
        self._ends, self._pad = ends, pad

    def sync(self, policy: nn.Module) -> None:
        pass

    def generate(
        self,
        policy: nn.Module,
        prompts: Sequence[Sequence[int]],
        sample_seeds: Sequence[int],
        uniforms_NT: Tensor,
        sampling: SamplingConfig,
        audio_N: Sequence[Tensor] | None = None,
    ) -> Generated:
        with evaluating(policy):
            return generate(policy, prompts, uniforms_NT, sampling, self._ends, self._pad, audio_N)


class Vllm(Backend):
    """vLLM in the same process, its weights replaced before every rollout.

    Not reproducible to the bit: its kernels depend on the batch, and it draws tokens itself, by a
    seed per sample.
    """

    is_reproducible = False

    def __init__(
        self,
        folder: Path,
        dtype: torch.dtype,
        memory_share: float,
        ends: Sequence[int],
        pad: int,
        banned: Sequence[int],
    ) -> None:
        os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = (
            "0"  # otherwise `sync` cannot reach the weights
        )
        facts = dist.rank_facts()
        for name, value in (  # `external_launcher` reads them; only torchrun sets them
            ("RANK", facts.rank),
            ("LOCAL_RANK", facts.local_rank),
            ("WORLD_SIZE", facts.world),
            ("MASTER_ADDR", "localhost"),
            ("MASTER_PORT", 29500),
        ):
            os.environ.setdefault(name, str(value))
        import vllm

        self._vllm, self._ends, self._pad, self._banned = vllm, list(ends), pad, banned
        self._model = vllm.LLM(
            model=str(folder),
            dtype=str(dtype).removeprefix("torch."),
            gpu_memory_utilization=memory_share,
            distributed_executor_backend="external_launcher",  # one engine in every rank's process
            logprobs_mode="processed_logprobs",  # after the temperature, as the loss has them
        )

    def sync(self, policy: nn.Module) -> None:
        self._model.reset_prefix_cache()  # it was computed with the old weights
        self._model.apply_model(lambda model: model.load_weights(plain_weights(policy)))

    def generate(
        self,
        policy: nn.Module,
        prompts: Sequence[Sequence[int]],
        sample_seeds: Sequence[int],
        uniforms_NT: Tensor,
        sampling: SamplingConfig,
        audio_N: Sequence[Tensor] | None = None,
    ) -> Generated:
        if audio_N is not None:
            raise RuntimeError("vLLM takes tokens only here; please open an issue")
        settings = [
            self._vllm.SamplingParams(**vllm_request(sampling, self._ends, self._banned, seed))
            for seed in sample_seeds
        ]
        requests = [{"prompt_token_ids": list(prompt)} for prompt in prompts]
        answers = [a.outputs[0] for a in self._model.generate(requests, settings, use_tqdm=False)]
        tokens = torch.full(uniforms_NT.shape, self._pad)
        logp = torch.zeros(uniforms_NT.shape)
        for row, answer in enumerate(answers):
            length = len(answer.token_ids)
            tokens[row, :length] = torch.tensor(answer.token_ids)
            chosen = zip(answer.logprobs, answer.token_ids, strict=True)
            logp[row, :length] = torch.tensor([found[token].logprob for found, token in chosen])
        device = uniforms_NT.device
        return Generated(
            tokens.to(device),
            torch.tensor([len(a.token_ids) for a in answers], device=device),
            torch.tensor([a.finish_reason == "stop" for a in answers], device=device),
            logp.to(device),
        )


def vllm_request(
    sampling: SamplingConfig, ends: Sequence[int], banned: Sequence[int], seed: int
) -> dict[str, Any]:
    """Arguments of vLLM's SamplingParams for one completion."""
    return {
        "temperature": sampling.temperature,
        "top_p": sampling.top_p,
        "top_k": sampling.top_k or -1,
        "max_tokens": sampling.max_new_tokens,
        "stop_token_ids": list(ends),
        "logit_bias": dict.fromkeys(banned, VLLM_BANNED) or None,
        "seed": seed,
        "logprobs": 0,
        "detokenize": False,
    }


def check_vllm() -> None:
    """Raises ConfigError where vLLM is not installed. Does not import it."""
    if importlib.util.find_spec("vllm") is None:
        raise ConfigError(
            'domain.backend = "vllm", but vllm is not installed: pip install '
            "'adrpo_scale[vllm]' on a machine with a GPU, or use domain.backend = \"in_process\""
        )


def plain_weights(policy: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """The policy's weights with adapters merged, one at a time, by the base model's names."""
    from peft.tuners.tuners_utils import BaseTunerLayer

    layers = {n: m for n, m in policy.named_modules() if isinstance(m, BaseTunerLayer)}
    for name, parameter in policy.named_parameters():
        owner = name.removesuffix(".base_layer.weight")
        if ".lora_" in name:
            continue
        if owner in layers and name.endswith(".weight"):
            layer: Any = layers[owner]
            weight = parameter + sum(layer.get_delta_weight(a) for a in layer.active_adapters)
            yield f"{owner}.weight", weight.to(parameter.dtype)
        else:
            yield name.replace(".base_layer", ""), parameter


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """A context in which the model is in eval mode: with activation checkpointing, transformers
    keeps no cache in train mode."""
    before = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(before)
