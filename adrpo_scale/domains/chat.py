"""Prompts → token ids, by the model's own chat template, with checks of their length."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

from pydantic import model_validator

from adrpo_scale.core.bounds import TOKENS
from adrpo_scale.core.console import ON_SCREEN
from adrpo_scale.core.errors import ConfigError, ModelNotFoundError, PromptError
from adrpo_scale.core.naming import all_places, named
from adrpo_scale.core.pace import paced
from adrpo_scale.core.paths import read_given, usual_path
from adrpo_scale.core.settings import Section, setting
from adrpo_scale.core.types import Prompt
from adrpo_scale.data.lines import all_refused
from adrpo_scale.data.messages import called, shown, ways_to_write
from adrpo_scale.hub.loaders import load_settings
from adrpo_scale.hub.soundness import loading
from adrpo_scale.hub.templates import TemplateFault, rendered

log = logging.getLogger(__name__)

_TEMPLATE = 1 << 20  # bytes of a template; the longest that is known has 20 KB
VOCABULARIES = ("tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt", "spiece.model")


class ChatConfig(Section):
    """The way from a prompt to the tokens of the model's input."""

    template: Literal["chat", "plain"] = setting(
        "chat", "chat: the tokenizer's chat template; plain: the prompt's text, unchanged"
    )
    template_file: str | None = setting(
        None, "Jinja file to use instead of the tokenizer's own chat template"
    )
    system: str | None = setting(None, "a system message before every prompt that has none")
    thinking: bool | None = setting(
        None, "Qwen3: enable_thinking of its template; null: the template's own default"
    )
    max_prompt_tokens: int = setting(
        1024, "longest prompt; longer ones are never cut, see long_prompts", ge=1, le=TOKENS
    )
    long_prompts: Literal["error", "drop"] = setting(
        "error",
        "prompts above max_prompt_tokens: stop before training, or leave them out, named in logs/",
    )

    @model_validator(mode="after")
    def _plain_has_no_messages(self) -> ChatConfig:
        given = {
            "system": self.system,
            "thinking": self.thinking,
            "template_file": self.template_file,
        }
        named = [name for name, value in given.items() if value is not None]
        if self.template == "plain" and named:
            raise ValueError(
                f'{", ".join(named)} with template = "plain": plain text has no chat template; '
                'remove it or use template = "chat"'
            )
        return self


def load_tokenizer(folder: Path, config: ChatConfig, template: str | None = None) -> Any:
    """The tokenizer in `folder`. template: a chat template that replaces its own.

    Raises ModelNotFoundError where the folder has no tokenizer, and ConfigError where the config
    needs a chat template and there is none.
    """
    from transformers import AutoTokenizer

    if not any((folder / name).is_file() for name in VOCABULARIES):
        # transformers would build an empty tokenizer of the model's family.
        raise ModelNotFoundError(
            f"{folder} has no tokenizer ({', '.join(VOCABULARIES)}: none is there); copy it from "
            "the model that the weights belong to, or download the model again with `hf download`"
        )
    tokenizer = load_settings(AutoTokenizer, folder, "tokenizer")
    with loading(folder, "tokenizer"):  # its settings are used at the first text
        tokenizer("a", add_special_tokens=False)
    if template is not None:
        tokenizer.chat_template = template
    if config.template_file is not None:
        tokenizer.chat_template = _template(config.template_file)
    if config.template == "chat" and not tokenizer.chat_template:
        raise ConfigError(
            f"the tokenizer in {folder} has no chat template (is it that of a base model?): use "
            'domain.chat.template = "plain", or give a Jinja file as domain.chat.template_file'
        )
    return tokenizer


def _template(name: str) -> str:
    """The text of a template's file. Raises ConfigError."""
    path = usual_path(name)
    try:
        return read_given(path, _TEMPLATE).decode()
    except FileNotFoundError as error:
        raise ConfigError(
            f"domain.chat.template_file = {str(path)!r}: no such file; name a Jinja file"
        ) from error
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"domain.chat.template_file = {str(path)!r} cannot be read ({error}); name a Jinja "
            "file, text in UTF-8"
        ) from error


def tokenizing(prompts: Sequence[Prompt]) -> Iterator[Prompt]:
    """The prompts of a loop that tokenizes them, the same on every rank."""
    return paced(prompts, "tokenizing prompts", "prompts", together=True, stride=500)


def encode_all(
    tokenizer: Any, prompts: Sequence[Prompt], config: ChatConfig
) -> dict[int, list[int]]:
    """Token ids of the prompts, by id. PromptError that names those that `encode` refuses."""
    found, faults = {}, []
    for prompt in tokenizing(prompts):
        try:
            found[prompt.id] = encode(tokenizer, prompt, config)
        except PromptError as fault:
            faults.append(fault)
    if faults:
        raise all_refused(faults, len(prompts), what="prompts")
    return found


def encode(tokenizer: Any, prompt: Prompt, config: ChatConfig) -> list[int]:
    """Token ids of a prompt. PromptError, naming it, where it is too long or empty, or the template
    refuses it."""
    ids = token_ids(tokenizer, prompt, config)
    check_length(prompt, len(ids), config)
    return ids


def check_length(prompt: Prompt, length: int, config: ChatConfig) -> None:
    """Raises PromptError, naming the prompt, where `length` is above max_prompt_tokens."""
    if length > config.max_prompt_tokens:
        raise PromptError(
            f"{named(prompt)} has {length} tokens, "
            f"domain.chat.max_prompt_tokens is {config.max_prompt_tokens}: raise it, take the "
            'prompt out of the file, or set domain.chat.long_prompts = "drop"; prompts are never '
            "cut"
        )


def without_long(
    tokenizer: Any,
    prompts: Sequence[Prompt],
    config: ChatConfig,
    length_of: Callable[[Prompt], int] | None = None,
) -> list[Prompt]:
    """The prompts that are short enough; the log names the others.

    length_of: number of tokens of a prompt; by default that of `token_ids`. PromptError where no
    prompt is short enough.
    """
    if config.long_prompts == "error":
        return list(prompts)  # `encode` raises the error
    length_of = length_of or (lambda prompt: len(token_ids(tokenizer, prompt, config)))
    lengths = [length_of(prompt) for prompt in tokenizing(prompts)]
    pairs = list(zip(prompts, lengths, strict=True))
    for prompt, length in pairs:
        if length > config.max_prompt_tokens:
            log.info("%s has %d tokens: left out", named(prompt), length)
    kept = [prompt for prompt, length in pairs if length <= config.max_prompt_tokens]
    if prompts and not kept:
        raise PromptError(
            f"every one of the {len(prompts)} prompts has more than domain.chat.max_prompt_tokens "
            f"= {config.max_prompt_tokens} tokens (the shortest has {min(lengths)}): raise it"
        )
    if len(kept) < len(prompts):
        log.warning(
            "%d of %d prompts have more than %d tokens and are left out; logs/ names them",
            len(prompts) - len(kept),
            len(prompts),
            config.max_prompt_tokens,
        )
    return kept


def without_empty_system(prompts: Sequence[Prompt]) -> list[Prompt]:
    """The prompts without empty system messages, which are what a data set has in the place of
    none: a chat template would write their frame. The log says how many prompts had one."""
    found = [_without_empty_system(prompt) for prompt in prompts]
    changed = [one for one, before in zip(found, prompts, strict=True) if one is not before]
    if changed:
        log.info(
            "%d of %d prompts have an empty system message, which is left out (%s)",
            len(changed),
            len(prompts),
            all_places(changed),
            extra=ON_SCREEN,
        )
    return found


def _without_empty_system(prompt: Prompt) -> Prompt:
    kept = tuple(m for m in prompt.messages if m["role"] != "system" or not _is_empty(m["content"]))
    if len(kept) == len(prompt.messages):
        return prompt
    return replace(prompt, messages=kept, text=shown(kept))


def _is_empty(content: Any) -> bool:
    return content is None or (isinstance(content, str) and not content.strip())


def token_ids(tokenizer: Any, prompt: Prompt, config: ChatConfig) -> list[int]:
    """Token ids of a prompt of any length. PromptError where there are none, or the template
    refuses it."""
    if config.template == "plain":
        ids = list(tokenizer(prompt.text)["input_ids"])
    else:
        ids = _templated(tokenizer, prompt, config)
    if not ids:
        raise PromptError(f"{named(prompt)} has no token: take it out of the prompts")
    return ids


def _templated(tokenizer: Any, prompt: Prompt, config: ChatConfig) -> list[int]:
    messages: Sequence[Mapping[str, Any]] = prompt.conversation
    if config.system is not None and messages[0]["role"] != "system":
        messages = [{"role": "system", "content": config.system}, *messages]
    thinking = {} if config.thinking is None else {"enable_thinking": config.thinking}
    calls = called(messages)
    fault: Exception = ValueError(f"it leaves out the calls of {', '.join(calls)}")
    for written in ways_to_write(messages):
        try:
            # Text first: some tokenizers would add a second beginning-of-sequence token to its ids.
            text = rendered(tokenizer, written, add_generation_prompt=True, **thinking)
        except TemplateFault as error:
            fault = error
            continue
        if all(name in text for name in calls):
            return list(tokenizer(text, add_special_tokens=False)["input_ids"])
    roles = [message["role"] for message in messages]
    raise PromptError(
        f"{named(prompt)}: the chat template refuses its messages "
        f"with roles {roles} ({fault}); leave out domain.chat.system, or fix the prompt"
    ) from fault
