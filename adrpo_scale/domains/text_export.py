"""The prompts and sampling settings that an export of a language model records."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from adrpo_scale.core.types import Prompt
from adrpo_scale.domains.chat import ChatConfig
from adrpo_scale.domains.decoding import SamplingConfig
from adrpo_scale.domains.export_target import ChatTarget


def generate_arguments(
    sampling: SamplingConfig, ends: Sequence[int], banned: Sequence[int]
) -> dict[str, Any]:
    """Arguments of transformers' `generate`. Each is stated, because the model's
    generation_config.json may have another value. ends: tokens that end a completion. banned:
    tokens that are never generated."""
    found: dict[str, Any] = {"max_new_tokens": sampling.max_new_tokens, "do_sample": False}
    if sampling.temperature > 0:
        names = ("temperature", "top_p", "top_k")
        found |= {"do_sample": True} | {name: getattr(sampling, name) for name in names}
    found |= {"repetition_penalty": 1.0, "eos_token_id": ends}
    return found | ({"suppress_tokens": list(banned)} if banned else {})


def chat_target(
    tokenizer: Any, chat: ChatConfig, example: Prompt, ids: Sequence[int]
) -> ChatTarget:
    """The `ChatTarget` of a training. ids: the example's tokens there."""
    differs = chat.template_file is not None or chat.system is not None
    thinking = {} if chat.thinking is None else {"enable_thinking": chat.thinking}
    return ChatTarget(
        is_chat=chat.template == "chat",
        template=tokenizer.get_chat_template() if differs else None,
        system=chat.system,
        arguments=thinking,
        tokenizer=type(tokenizer).__name__,
        example=example.text,
        ids=tuple(ids),
    )
