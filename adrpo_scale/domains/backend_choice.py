"""The back-end that a config of tokens names, and whether it can start here."""

from __future__ import annotations

import importlib.util
import shutil
from typing import Any

import torch

from adrpo_scale.core.disk_space import size_text
from adrpo_scale.core.errors import ConfigError, of_one_rank
from adrpo_scale.domains.backends import Backend, InProcess, OwnProcess, Vllm
from adrpo_scale.domains.generation.process import GenerationProcess
from adrpo_scale.domains.language_model import LanguageModel

_OWN = "adrpo_scale.domains.generation.own:Own"
_VLLM = "adrpo_scale.domains.generation.vllm:Vllm"
_MOST_ROWS = 256  # at once in vLLM, whose memory for a step grows with them


def check_backend(config: Any) -> None:
    """Raises ConfigError where vLLM is asked for and not installed. Imports nothing of it."""
    if config.backend != "vllm":
        return
    python = config.vllm_python
    if python is None and importlib.util.find_spec("vllm") is None:
        raise ConfigError(
            'domain.backend = "vllm", but vllm is not installed: pip install '
            "'adrpo_scale[vllm]' on a machine with a GPU, name the interpreter of another "
            'environment that has it (domain.vllm_python), or use domain.backend = "in_process"'
        )
    if python is not None and shutil.which(python) is None:
        raise ConfigError(
            f"domain.vllm_python = {python!r} is no program here: give the path of the Python in "
            "an environment with vLLM, such as /scratch/vllm/bin/python"
        )


def check_share(share: float, weights: int, memory: int) -> None:
    """Raises ConfigError, on this rank, where vLLM's share of a GPU cannot even hold the weights.
    weights, memory (of the GPU): bytes."""
    least = weights / memory
    if share > least:
        return
    if least > 0.95:
        raise of_one_rank(
            ConfigError(
                f"the weights need {size_text(weights)}, and a GPU has {size_text(memory)}: vLLM "
                'cannot hold them on one GPU; set domain.backend = "in_process"'
            )
        )
    raise of_one_rank(
        ConfigError(
            f"domain.vllm_memory = {share:g} is {size_text(share * memory)} of a GPU with "
            f"{size_text(memory)}, and the weights alone need {size_text(weights)}: set it above "
            f"{least + 0.05:.2f}, which leaves room for caches"
        )
    )


def build_backend(
    config: Any, model: LanguageModel, device: torch.device, dtype: torch.dtype
) -> Backend:
    """The back-end of rollouts; a process of its own is started at the first one. dtype: the
    engine's."""
    if config.backend == "in_process":
        return InProcess(model.ends, model.pad, config.decoding)
    index = (device.index or 0) if device.type == "cuda" else None
    common = {"folder": str(model.folder), "ends": model.ends, "pad": model.pad}
    common |= {"banned": list(model.banned)}
    kind = str(dtype).removeprefix("torch.")
    if config.backend == "process":
        own = common | {
            "model": config.model,
            "attention": config.attention,
            "decoding": config.decoding,
            "tied": model.tied(),
            "engine": {
                "device": device.type,
                "dtype": kind,
                "threads": torch.get_num_threads(),
                "deterministic": torch.are_deterministic_algorithms_enabled(),
            },
        }
        return OwnProcess(lambda _: GenerationProcess("the policy's copy", _OWN, own, index))
    settings = common | {
        "dtype": kind,
        "memory_share": config.vllm_memory,
        "longest": config.chat.max_prompt_tokens + config.rollout.max_new_tokens,
        "rows": min(config.chunk, _MOST_ROWS),
        "sleeps": config.vllm_sleep,
    }
    found = None if config.vllm_python is None else shutil.which(config.vllm_python)

    def start(weights: int) -> GenerationProcess:
        if index is not None:
            memory = torch.cuda.get_device_properties(device).total_memory
            check_share(config.vllm_memory, weights, memory)
        return GenerationProcess("vLLM", _VLLM, settings, index, found)

    return Vllm(start)
