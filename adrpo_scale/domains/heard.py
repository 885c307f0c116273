"""Prompts about clips: which clip, and the conversation that begins with it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from adrpo_scale.core.errors import PromptError
from adrpo_scale.core.types import Prompt
from adrpo_scale.data.clips import SAMPLE_RATE


def example_clip() -> NDArray[np.float32]:
    """A second of noise at 16 kHz."""
    generator = np.random.default_rng(0)
    return 0.1 * generator.standard_normal(SAMPLE_RATE, dtype=np.float32)


def clip_of(prompt: Prompt) -> tuple[str, Path] | None:
    """(reference, folder) of a prompt's clip; None where it has none. PromptError where it has no
    folder."""
    reference, folder = (prompt.metadata.get(key) for key in ("audio", "audio_folder"))
    if reference and not folder:
        raise PromptError(
            f"prompt {prompt.id} {prompt.text[:80]!r} names the clip {reference!r} and no folder; "
            'say "audio_folder" in its row, or write the rows with `adrpo-scale prepare`'
        )
    return (reference, Path(folder)) if reference and folder else None


def with_audio(prompt: Prompt) -> list[Any]:
    """The conversation whose last user message begins with the clip."""
    messages: list[dict[str, Any]] = [dict(message) for message in prompt.conversation]
    users = [n for n, message in enumerate(messages) if message["role"] == "user"]
    if not users:
        raise PromptError(
            f"prompt {prompt.id} {prompt.text[:80]!r} has a clip and no message of the user's, "
            "which it would begin: fix the prompt"
        )
    last = users[-1]
    text = {"type": "text", "text": messages[last]["content"]}
    messages[last]["content"] = [{"type": "audio", "audio": prompt.metadata["audio"]}, text]
    return messages
