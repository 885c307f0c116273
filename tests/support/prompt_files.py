"""Files of prompts, written for the tests of their readers."""

from __future__ import annotations

from pathlib import Path

from adrpo_scale.core.types import Prompt


def write(folder: Path, name: str, content: str | bytes) -> Path:
    path = folder / name
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def numbered(n: int) -> list[Prompt]:
    return [Prompt(i, f"prompt {i}") for i in range(n)]


def texts(prompts: list[Prompt]) -> list[str]:
    return [prompt.text for prompt in prompts]
