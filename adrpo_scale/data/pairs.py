"""Given pairs: prompts whose rows have two answers, `chosen` and `rejected`.

The layouts are those of TRL's preference data sets: an answer is a text, or a list of messages that
ends with the assistant's. Such a list may begin with the prompt's own messages. In data for
pictures both are names of image files.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, TypeVar

from PIL import Image

from adrpo_scale.core.errors import PromptError
from adrpo_scale.core.naming import named
from adrpo_scale.core.types import Prompt
from adrpo_scale.data.lines import all_refused
from adrpo_scale.data.messages import last_answer, turns
from adrpo_scale.data.prompt_files import found

COLUMNS = ("chosen", "rejected")
"""The keys of a pair's answers: those of samples 2p and 2p + 1 of an iteration."""

T = TypeVar("T")


def each_pair(prompts: Iterable[Prompt], read: Callable[[Prompt], T]) -> dict[int, T]:
    """What `read` gives of each prompt, by its id. Raises PromptError that names all prompts for
    which `read` raises one."""
    by_id, faults, count = {}, [], 0
    for prompt in prompts:
        count += 1
        try:
            by_id[prompt.id] = read(prompt)
        except PromptError as fault:
            faults.append(fault)
    if faults:
        raise all_refused(faults, count, what="pairs")
    return by_id


def texts_of(prompt: Prompt) -> tuple[str, str]:
    """The two answers as texts. PromptError, naming prompt and place, where one is none."""
    chosen, rejected = (_text(prompt, key) for key in COLUMNS)
    return chosen, rejected


def _text(prompt: Prompt, key: str) -> str:
    value = _value(prompt, key)
    if isinstance(value, list):
        before, text = last_answer(value)
        if text is None:
            raise _fault(prompt, key, value, "messages of which the last is the assistant's text")
        if before and turns(before) != turns(prompt.conversation):
            raise _fault(prompt, key, value, "the answer alone, or after the prompt's own messages")
        value = text
    if not isinstance(value, str) or not value.strip():
        raise _fault(prompt, key, value, "a text that is not empty, or a list of messages")
    return value


def files_of(prompt: Prompt, folder: Path) -> tuple[Path, Path]:
    """The two image files, named relative to `folder`; `check_file` opens them. PromptError as
    `texts_of`."""
    chosen, rejected = (folder / _name(prompt, key) for key in COLUMNS)
    return chosen, rejected


def _name(prompt: Prompt, key: str) -> str:
    value = _value(prompt, key)
    if not isinstance(value, str) or not value.strip():
        raise _fault(prompt, key, value, "the name of an image file")
    return value


def check_file(prompt: Prompt, key: str, path: Path) -> None:
    """Raises PromptError, naming prompt and place, unless the file is an image by its header."""
    try:
        with Image.open(path):
            pass
    except OSError as error:
        why = error.strerror or "it is no image that Pillow reads"
        raise _fault(prompt, key, str(path), f"an image file ({why})") from None


def folder_of(name: str) -> Path:
    """The folder that names of image files are relative to: that of the prompt file, or the data
    set's own. name: of the prompts, as in the config."""
    path, _ = found(name)
    return path if path.is_dir() else path.parent


def _value(prompt: Prompt, key: str) -> Any:
    value = prompt.metadata.get(key)
    if value is None:
        known = ", ".join(sorted(prompt.metadata)) or "none"
        raise PromptError(
            f"{named(prompt)} has no `{key}`: a row of given pairs has the keys prompt, "
            f"{' and '.join(COLUMNS)} (this one has {known} beside the prompt); add it, or set "
            'algorithm.rollouts = "policy"'
        )
    return value


def _fault(prompt: Prompt, key: str, value: object, expected: str) -> PromptError:
    shown = repr(value)
    shown = shown if len(shown) <= 100 else f"{shown[:97]}..."
    return PromptError(
        f"{named(prompt)}: got {shown} under `{key}`, expected {expected}; fix the row or delete it"
    )
