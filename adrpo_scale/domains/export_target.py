"""A trained model as exports need it: its names in the libraries, its place in its base's folder,
and how an export is tried out. A domain states it (`Domain.export_target`)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from torch import Tensor, nn


@dataclass(frozen=True)
class ChatTarget:
    """How training gave a language model its prompts.

    is_chat: by a chat template, else as plain text. template: the Jinja text, where the tokenizer
    that lies in the base's folder would not do the same. system: put before conversations that have
    no system message. arguments: of `apply_chat_template`. tokenizer: the tokenizer's class.
    example: a prompt; ids: its tokens.
    """

    is_chat: bool
    template: str | None
    system: str | None
    arguments: Mapping[str, Any]
    tokenizer: str
    example: str
    ids: tuple[int, ...]


def same_name(stored: str) -> str | None:
    """`Part.name` where the folder has the model's own names."""
    return stored


@dataclass(frozen=True)
class Part:
    """Where the model lies in the base's folder, and the policy in the model; by default all three
    are one.

    name: a stored tensor's name in the class `ExportTarget.model`; None for one that is not of that
    model. frozen: what the names of the model's tensors that the policy does without begin with.
    config: the model's key in the folder's config.json, "" where all of it is the model's.
    whole: the class of everything in the folder, "" where that is the model alone; attribute: the
    model's name in it. needs: files without which `whole` does not load.
    """

    name: Callable[[str], str | None] = same_name
    frozen: tuple[str, ...] = ()
    config: str = ""
    whole: str = ""
    attribute: str = ""
    needs: tuple[str, ...] = ()


@dataclass(frozen=True)
class ExportTarget:
    """What the trained weights are to the libraries that load an export.

    library: which of them has the classes. model: the model's. component: the model's folder in a
    pipeline, "" where the export is the model; stem: its weight files' name. task: the hub's name
    of what it does. inputs: a small fixed batch of keyword arguments of the model's forward; of a
    model that has a processor, the `clip` that this is given, float32 samples at 16 kHz.
    call: keyword arguments that sample as evaluations do: of the pipeline, whose `steps` are Euler
    steps, or of `generate`.
    pipeline: the pipeline's class; unused: its components that the policy does without.
    chat: of language models. processor: the class that makes a model's inputs, where a tokenizer
    alone does not. part: where it is not the whole of its base.
    build: of the policy on a CPU, where training builds it otherwise; policy_inputs: makes of the
    inputs what it is given, where that is something else.
    """

    library: Literal["diffusers", "transformers"]
    model: str
    component: str
    stem: str
    task: str
    inputs: Mapping[str, Tensor]
    call: Mapping[str, Any]
    pipeline: str = ""
    unused: tuple[str, ...] = ()
    chat: ChatTarget | None = None
    processor: str = ""
    part: Part = Part()
    build: Callable[[], nn.Module] | None = None
    policy_inputs: Callable[[], Mapping[str, Tensor]] | None = None
