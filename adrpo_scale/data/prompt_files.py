"""Prompt files: `load_prompts` over the readers of `formats`.

Contract: the order of the file is kept, and a prompt's id is its place among the prompts of the
file, so ids are the same on every rank, at every start and at any number of processes. Only blank
lines are dropped; equal prompts stay, each with its own id. The other fields of a row go into
`Prompt.metadata`.

A prompt may be a conversation: `[{"role": "user", "content": ...}, ...]` under `context_messages`,
`messages` or `prompt`, in JSON lines or in parquet. It ends with a message of the user.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from adrpo_scale.core.errors import PromptError
from adrpo_scale.core.paths import resolve_path
from adrpo_scale.core.types import Prompt
from adrpo_scale.data.formats import DATA_FILES, READERS, Row, guess_format
from adrpo_scale.data.lines import row_error
from adrpo_scale.hub.needs import HubNeed
from adrpo_scale.hub.weights import find_model

HUB = "hub:"


def load_prompts(path: str | Path, format: str = "auto") -> list[Prompt]:
    """Every prompt of the file, in its order, with ids 0 .. n-1.

    path: a Path, a name as `resolve_path` takes it, or `hub:OWNER/DATASET`. format: a key of
    `READERS`, or "auto" to decide by the suffix and the first row. Raises PromptError if the file
    is missing, empty, not text, or has a row that is not a prompt of that format.
    """
    if isinstance(path, str):
        needs = needs_from_hub(path, "the prompt file")
        path = find_model(*needs) if needs else resolve_path(path)
    if format == "auto":
        format = guess_format(path)
    if format not in READERS:
        raise PromptError(
            f"{path}: unknown prompt format {format!r}; set format to one of "
            f"{', '.join(['auto', *READERS])}"
        )
    prompts = [_prompt(path, index, row) for index, row in enumerate(READERS[format](path))]
    if not prompts:
        raise PromptError(
            f"{path}: the file holds no prompt, expected at least one; was it copied completely?"
        )
    return prompts


def needs_from_hub(name: str, what: str) -> list[HubNeed]:
    """The dataset on the hub that `load_prompts` reads for `name`, if it is one. what: the setting
    of the name."""
    if not name.startswith(HUB):
        return []
    return [HubNeed(name.removeprefix(HUB), what, DATA_FILES, type="dataset")]


def _prompt(path: Path, index: int, row: Row) -> Prompt:
    if row.messages is None:
        return Prompt(index, _prompt_text(path, row), row.metadata)
    messages = _checked_messages(path, row)
    return Prompt(index, shown(messages), row.metadata, messages)


def _checked_messages(path: Path, row: Row) -> tuple[dict[str, str], ...]:
    expected = 'a list of {"role": ..., "content": ...}, the last one of the user\'s'
    messages = row.messages
    if not (isinstance(messages, list) and messages and all(_is_message(m) for m in messages)):
        raise row_error(path, row.where, messages, expected, "fix the row or delete it")
    if messages[-1]["role"] != "user":
        remedy = "delete that message: the model writes the answer"
        raise row_error(path, row.where, messages[-1], expected, remedy)
    return tuple({"role": m["role"], "content": m["content"]} for m in messages)


def _is_message(entry: Any) -> bool:
    return isinstance(entry, dict) and all(
        isinstance(entry.get(key), str) and entry[key].strip() for key in ("role", "content")
    )


def shown(messages: Sequence[Mapping[str, str]]) -> str:
    """A conversation as one text, for logs and to tell prompts apart."""
    if len(messages) == 1:
        return messages[0]["content"]
    return "\n".join(f"{m['role']}: {m['content']}" for m in messages)


def _prompt_text(path: Path, row: Row) -> str:
    if not isinstance(row.prompt, str) or not row.prompt.strip():
        value = row.metadata if row.prompt is None else row.prompt
        expected = "a row with a prompt that is a non-empty string"
        raise row_error(path, row.where, value, expected, "add the prompt or delete the row")
    return row.prompt.strip()
