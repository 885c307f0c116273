"""The workload of `AudioDomain`: the thinker without its towers as the policy, and the audio tower
frozen and whole on every rank.

A prompt has the greatest length that the config allows, as in `text_workload`, and all of its
tokens are counted as audio: an upper bound on the cost of every clip of the run.
"""

from __future__ import annotations

from itertools import accumulate
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from adrpo_scale.domains.omni import read_thinker_config, thinker_spec
from adrpo_scale.domains.text_workload import attention_of, tokens_workload
from adrpo_scale.engines.workload import (
    NO_WEIGHTS,
    Clips,
    Frozen,
    Workload,
    lora_of,
    plain_spec,
    spec_of,
)
from adrpo_scale.hub.shapes import config_folder

FRAMES = 4  # of the log-mel spectrogram per token: a convolution and a mean halve them
PER_SECOND = 25  # tokens
LONGEST = 300 * PER_SECOND  # tokens of the feature extractor's window
HEARING = 1.2e-3  # CPU seconds per second of sound, to decode FLAC and compute log-mel; measured


def audio_workload(config: Any, dtype: torch.dtype) -> Workload:
    """The workload of a config of the domain `audio`."""
    folder = config_folder(config.model, "domain.model")
    settings = read_thinker_config(folder, config.model)
    width = settings.text_config.hidden_size
    tokens = min(config.chat.max_prompt_tokens, LONGEST)

    def heard(rows: int) -> dict[str, Tensor]:
        return {"input_features": torch.empty(rows * tokens, width, dtype=dtype)}

    spec = spec_of(thinker_spec(settings, attention_of(config), NO_WEIGHTS, lora_of(config)))
    return tokens_workload(
        config,
        spec,
        vocabulary=settings.text_config.vocab_size,
        inputs=heard,
        frozen=(audio_tower(settings, attention_of(config), dtype, tokens),),
        clips=Clips(
            tokens=tokens,
            seconds=tokens / PER_SECOND,
            bytes=tokens * width * dtype.itemsize,
            kept=int(config.clip_megabytes * 2**20),
            setting="domain.clip_megabytes",
        ),
    )


def audio_tower(settings: Any, attention: str, dtype: torch.dtype, tokens: int) -> Frozen:
    """The audio tower. settings: the thinker's config. tokens: of a clip; one clip per call."""
    from transformers.models.qwen2_5_omni.modeling_qwen2_5_omni import Qwen2_5OmniAudioEncoder

    def build() -> nn.Module:
        return Qwen2_5OmniAudioEncoder._from_config(
            settings.audio_config, attn_implementation=attention
        )

    def encode(model: Any, rows: int) -> list[Tensor]:
        return [_encoded(model, settings.audio_config, tokens) for _ in range(rows)]

    return Frozen(
        name="audio tower",
        spec=plain_spec(build),
        dtype=dtype,
        placement="replicated",
        phase="rollout",
        rows=1,
        call=encode,
        per_clip=True,
        host_seconds=HEARING * tokens / PER_SECOND,
    )


def _encoded(tower: Any, settings: Any, tokens: int) -> Tensor:
    """As `omni.encode_clip`. The indices that the tower computes from the clip's length are passed
    in, because fake tensors have no values to compute them from."""
    frames, piece = FRAMES * tokens, 2 * settings.n_window
    pieces = [min(piece, frames - start) for start in range(0, frames, piece)]
    halved = [(length - 1) // 2 + 1 for length in pieces]

    def indices(count: int) -> Tensor:
        return torch.empty(count, dtype=torch.int64)

    found: Tensor = tower(
        torch.empty(settings.num_mel_bins, frames),
        feature_lens=indices(1),
        padded_feature=torch.empty(len(pieces), settings.num_mel_bins, max(pieces)),
        chunk_lengths=indices(len(pieces)),
        valid_indices=indices(sum(halved)),
        pool_indices=indices(tokens),
        cu_seqlens=np.array([0, *accumulate(halved)]),
    ).last_hidden_state
    return found
