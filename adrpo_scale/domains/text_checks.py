"""Settings of a text domain that do not fit its model."""

from __future__ import annotations

from typing import Any

from adrpo_scale.core.errors import ConfigError
from adrpo_scale.domains.step_masks import takes_masks
from adrpo_scale.domains.text_config import TextConfig

# Output layers and embeddings as families name them. Log-probabilities and the exact KL take the
# output layer's own weights, which policy and reference share.
OUTER = {"lm_head", "embed_out", "embed_tokens", "embed_in", "wte"}


def check_settings(config: TextConfig, model: Any) -> None:
    """Raises ConfigError where the settings do not fit. model: the language model's config."""
    longest = max(config.rollout.max_new_tokens, config.evaluation.max_new_tokens)
    longest += config.chat.max_prompt_tokens
    limit = getattr(model, "max_position_embeddings", None)
    if limit is not None and longest > limit:
        raise ConfigError(
            f"domain.chat.max_prompt_tokens + max_new_tokens = {longest}, but {config.model} "
            f"takes {limit} tokens: lower one of them"
        )
    if config.decoding == "graph" and not takes_masks(model):
        raise ConfigError(
            f'domain.decoding = "graph": {config.model} ({model.model_type}) has layers of another '
            "attention than full, whose cache has no fixed length; set "
            'domain.decoding = "eager"'
        )
    targets = config.lora.targets if config.lora is not None else []
    if OUTER & {target.rpartition(".")[2] for target in targets}:
        raise ConfigError(
            f"domain.lora.targets = {targets}: adapters on the output layer or the embeddings "
            "are not supported; name linear layers of the blocks"
        )
