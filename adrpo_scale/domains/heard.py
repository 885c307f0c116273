"""Prompts about clips: the clip of a prompt, and the conversation that contains it."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from adrpo_scale.core.errors import PromptError
from adrpo_scale.core.naming import named
from adrpo_scale.core.types import Prompt
from adrpo_scale.data.clips import SAMPLE_RATE


def example_clip() -> NDArray[np.float32]:
    """A second of noise at 16 kHz."""
    generator = np.random.default_rng(0)
    return 0.1 * generator.standard_normal(SAMPLE_RATE, dtype=np.float32)


def with_audio(prompt: Prompt) -> list[Any]:
    """The prompt's conversation, its last user message beginning with the clip.

    PromptError where it has no user message.
    """
    messages: list[dict[str, Any]] = [dict(message) for message in prompt.conversation]
    users = [n for n, message in enumerate(messages) if message["role"] == "user"]
    if not users:
        raise PromptError(f"{named(prompt)} has a clip and no user message to put it in: add one")
    last = users[-1]
    text = {"type": "text", "text": messages[last]["content"]}
    messages[last]["content"] = [{"type": "audio", "audio": prompt.metadata["audio"]}, text]
    return messages
