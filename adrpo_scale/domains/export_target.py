"""A trained model as exports need it: its names in the libraries, its place in the folder of its
base, and inputs to verify an export. A domain states it (`Domain.export_target`)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from torch import Tensor, nn


@dataclass(frozen=True)
class ChatTarget:
    """The form in which a language model got its prompts in training.

    is_chat: by a chat template; otherwise as plain text.
    template: the Jinja text, where it differs from the one of the base's tokenizer.
    system: the message put before conversations that have no system message.
    arguments: of `apply_chat_template`. tokenizer: the tokenizer's class.
    example: a prompt. ids: its tokens.
    """

    is_chat: bool
    template: str | None
    system: str | None
    arguments: Mapping[str, Any]
    tokenizer: str
    example: str
    ids: tuple[int, ...]


def same_name(stored: str) -> str | None:
    """`Part.name` of a folder that has the model's own names."""
    return stored


@dataclass(frozen=True)
class Part:
    """The place of the model in its base's folder, and of the policy in the model. By default the
    three have the same tensors.

    name: from a stored tensor's name to its name in the class `ExportTarget.model`; None for a
    tensor of another model.
    frozen: prefixes of the model's tensors that are not in the policy.
    config: the model's key in the folder's config.json; "" where the whole file is the model's.
    whole: the class of everything in the folder; "" where that is the model alone.
    attribute: the model's attribute in `whole`. needs: further files that `whole` loads.
    """

    name: Callable[[str], str | None] = same_name
    frozen: tuple[str, ...] = ()
    config: str = ""
    whole: str = ""
    attribute: str = ""
    needs: tuple[str, ...] = ()


@dataclass(frozen=True)
class ExportTarget:
    """The trained weights, as the library that loads an export sees them.

    library: the library of the classes. model: the model's class.
    component: the model's folder in a pipeline; "" where the export is the model alone.
    stem: the name of its weight files, without the extension. task: the hub's name of its task.
    inputs: a small fixed batch of keyword arguments of the model's forward; for a model with a
    processor, the processor's `clip`, float32 samples at 16 kHz.
    call: keyword arguments that sample as evaluations do: of the pipeline (`steps`: Euler steps)
    or of `generate`.
    pipeline: the pipeline's class. unused: its components that training does not use.
    chat: of language models. processor: the class that prepares inputs, where a tokenizer alone
    does not. part: the model's place in its base.
    build: builds the policy on a CPU, where training builds it differently.
    policy_inputs: the policy's inputs, where they are not `inputs`.
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
