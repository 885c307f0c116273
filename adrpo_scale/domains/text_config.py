"""The settings of the text domain, which the audio domain extends."""

from __future__ import annotations

from typing import Literal

from pydantic import model_validator

from adrpo_scale.core.bounds import COUNT
from adrpo_scale.core.settings import REQUIRED, setting
from adrpo_scale.domains.base import DomainConfig
from adrpo_scale.domains.chat import ChatConfig
from adrpo_scale.domains.decoding import SamplingConfig
from adrpo_scale.domains.language_model import FILES
from adrpo_scale.engines.spec import LoraConfig
from adrpo_scale.hub.needs import HubNeed


class TextConfig(DomainConfig):
    name: str = setting("text", "language models")
    model: str = setting(
        REQUIRED, "transformers folder, hub id, or demo:text", effect="content", min_length=1
    )
    train: Literal["full", "lora"] = setting(
        "full", "all parameters, or adapters", paper="appendix B.2"
    )
    lora: LoraConfig | None = setting(None, "adapter settings, with train = lora only")
    chat: ChatConfig = setting(ChatConfig(), "conversion of prompts into tokens")
    rollout: SamplingConfig = setting(SamplingConfig(), "distribution of a rollout's tokens")
    evaluation: SamplingConfig = setting(
        SamplingConfig(), "distribution of the tokens of evaluations and `sample`", effect="none"
    )
    mask_truncated: bool = setting(
        False, "leave completions that were cut off out of the loss; their rewards still count"
    )
    head_chunk: int = setting(
        256, "tokens whose logits are in memory at once", effect="rounding", ge=1, le=COUNT
    )
    attention: Literal["sdpa", "eager", "flash_attention_2"] = setting(
        "sdpa", "implementation of attention", effect="rounding"
    )
    shared_prefix: bool = setting(
        False,
        "completions of one prompt in a micro-batch share its pass in an update; needs sdpa. A "
        "model with layers of another attention than full takes the plain pass",
        effect="rounding",
        before=False,
    )
    decoding: Literal["eager", "graph"] = setting(
        "eager",
        "how a token's pass runs in this program. graph: launched as one CUDA graph, several times "
        "faster where launches bound it; needs sdpa and full attention in every layer. On a CPU "
        "the same passes, one by one",
        effect="rounding",
        before="eager",
    )
    backend: Literal["in_process", "vllm", "process"] = setting(
        "in_process",
        "the program that draws rollouts: the policy; vllm, not reproducible to the bit; or a copy "
        "of the policy in a process of its own, which draws the policy's tokens",
    )
    vllm_memory: float = setting(
        0.3, "vllm: its share of the GPU's memory", effect="none", gt=0, lt=1
    )
    vllm_sleep: bool = setting(
        True, "vllm: its GPU memory is free between rollouts", effect="none", before=True
    )
    vllm_python: str | None = setting(
        None,
        "vllm: the Python of an environment that has it; none: this one",
        effect="none",
        before=None,
        min_length=1,
    )

    @model_validator(mode="after")
    def _settings_agree(self) -> TextConfig:
        if self.train == "full" and self.lora is not None:
            raise ValueError(
                '[domain.lora] together with train = "full": remove the section, or train adapters '
                'with train = "lora"'
            )
        if self.backend == "process" and self.train == "lora":
            raise ValueError(
                'backend = "process" with train = "lora": merged adapters round otherwise, so the '
                'tokens would not be the policy\'s; set backend = "in_process", or "vllm", which '
                "corrects the loss"
            )
        if self.shared_prefix and self.attention != "sdpa":
            raise ValueError(
                f'shared_prefix = true with attention = "{self.attention}": its masks are those of '
                'sdpa; set attention = "sdpa", or shared_prefix = false'
            )
        if self.decoding == "graph" and self.attention != "sdpa":
            raise ValueError(
                f'decoding = "graph" with attention = "{self.attention}": its masks are those of '
                'sdpa; set attention = "sdpa", or decoding = "eager"'
            )
        if self.rollout.temperature == 0:
            raise ValueError(
                "rollout.temperature = 0 is greedy: all samples of a group would be the same; set "
                "it above 0 (the paper's is 1)"
            )
        return self

    def needs_from_hub(self) -> list[HubNeed]:
        return [HubNeed(self.model, "domain.model", FILES, raw=True)]
