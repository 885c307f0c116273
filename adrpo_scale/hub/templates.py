"""Chat templates that came with a model: programs in Jinja, which need not come to an end.

The sandbox keeps a template from files and code, not from counting to a trillion. Here a rendering
has `SECONDS` of processor time and `LONGEST` characters, and whatever a template raises is one
fault. The time counts in the main thread alone, where Python handles signals; one operation in C
that takes longer (a power of a huge number) is not interrupted.
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from adrpo_scale.core.errors import ConfigError
from adrpo_scale.hub.foreign import first_words

SECONDS = 30.0  # of the processor; a template takes milliseconds
LONGEST = 16_000_000  # characters of a conversation


_REMEDY = "use the template of another version of the model, or domain.chat.template_file"


class TemplateFault(ValueError):
    """A chat template refuses a conversation."""


def rendered(tokenizer: Any, messages: Sequence[Mapping[str, Any]], **options: Any) -> str:
    """The messages as the text that the tokenizer's chat template makes of them. options: of
    `apply_chat_template`. Raises TemplateFault, and ConfigError for a template that has no end."""
    try:
        with _limited():
            text = tokenizer.apply_chat_template(messages, tokenize=False, **options)
        text.encode()  # half of a surrogate pair is nothing that a tokenizer takes
    except ConfigError:
        raise
    except Exception as error:  # of the template's own: a division by zero, a missing key
        raise TemplateFault(first_words(error)) from error
    if len(text) > LONGEST:
        raise ConfigError(
            f"the chat template makes more than {LONGEST:,} characters of one prompt; {_REMEDY}"
        )
    return str(text)


@contextmanager
def _limited() -> Iterator[None]:
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGVTALRM, _too_long)
    signal.setitimer(signal.ITIMER_VIRTUAL, SECONDS)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)
        signal.signal(signal.SIGVTALRM, before)


def _too_long(*_: Any) -> None:
    raise ConfigError(
        f"the chat template takes more than {SECONDS:g} s of the processor for one prompt; "
        f"{_REMEDY}"
    )
