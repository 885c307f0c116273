"""The rows of prompt files: a row before it is checked, and the shapes of rows in public sets.

The first row that can be read decides the shape of its file:

    own             `prompt` (text or conversation), `context_messages` or `messages`
    text            `question`, `problem`, `instruction` (with `input`), `query` or `caption`, and
                    `prompt` in another case
    conversation    one that ends with an answer, and ShareGPT's `conversations` (`from`, `value`)
    pair            `chosen` and `rejected`, two conversations that differ in their last message

The reference answer becomes `metadata["answer"]` unless the row has one. Where it was taken from a
longer text (after ####, in \\boxed{}), that text stays as `answer_text`. `[prompts] column`,
`answer` and `answer_form` state the same for other files.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from adrpo_scale.core.errors import PromptError
from adrpo_scale.data.messages import is_answered, with_prompt, without_answer

MESSAGES = ("context_messages", "messages", "prompt")
TEXTS = ("prompt", "prompts", "question", "problem", "instruction", "query", "caption")
CHATS = ("conversations", "conversation", *MESSAGES)
TRUTHS = ("final_answer", "expected_answer", "ground_truth", "reward_model.ground_truth")
ANSWERS = ("answer", *TRUTHS, "solution", "output", "response")
Form = Literal["auto", "text", "hashes", "boxed"]
_HASHES, _BOXED = "####", "\\boxed{"


@dataclass(frozen=True)
class Row:
    """One row before it is checked. where: "line 7" or "entry 7"; prompt: its value, None if there
    is none; messages: the value of a key that holds a conversation, None if there is none; derived:
    keys of the metadata that were added to the file's own; note: how the row was read, "" for
    own keys; fault: the error of a row that cannot be read."""

    where: str
    prompt: Any = None
    metadata: Mapping[str, Any] = field(default_factory=dict)
    messages: Any = None
    derived: tuple[str, ...] = ()
    note: str = ""
    fault: PromptError | None = None


@dataclass(frozen=True)
class Reading:
    """What [prompts] says about the columns of its files. column, answer: keys, with dots for those
    inside; None decides by the first row. form: where in its text the answer stands."""

    column: str | None = None
    answer: str | None = None
    form: Form = "auto"


AUTO = Reading()


@dataclass(frozen=True)
class Shape:
    """The keys of a file's rows. texts: joined by line ends to the prompt; chat: of a conversation;
    is_answered: it ends with an answer, which is left out; answer: of the reference answer (that of
    the conversation for the answer at its end), with its form; is_own: own keys, which each row may
    choose among."""

    texts: tuple[str, ...] = ()
    chat: str | None = None
    is_answered: bool = False
    answer: str | None = None
    form: Form = "text"
    is_own: bool = False

    @property
    def note(self) -> str:
        """How rows of this shape are read, as one line; "" where nothing is to be said."""
        if self.is_own and self.answer is None:
            return ""
        keys = " and ".join(f"`{name}`" for name in self.texts) or f"`{self.chat}`"
        without = " without its last message" if self.is_answered else ""
        return f"prompt from {keys}{without}, {self._answer_note}"

    @property
    def _answer_note(self) -> str:
        if self.answer is None:
            return "no answer found"
        if self.answer == self.chat:
            return "which is the answer"
        named = f" of `{self.answer}`" if self.answer != "answer" else ""
        forms = {"hashes": f"answer after {_HASHES}{named}"}
        forms["boxed"] = f"answer in \\boxed{{}} of `{self.answer}`"
        return forms.get(self.form, f"answer from `{self.answer}`")


class RowReader:
    """Rows of one file, or of one part of a folder, from their keys and values."""

    def __init__(self, reading: Reading) -> None:
        self._reading = reading
        self._shape: Shape | None = None
        self._is_pair = False

    def row(self, where: str, entry: Mapping[str, Any]) -> Row:
        """The row of an entry; the first call decides the shape of all."""
        if self._shape is None:
            self._shape = find_shape(entry, self._reading)
            has_prompt = any(entry.get(key) is not None for key in MESSAGES)
            self._is_pair = self._shape.is_own and not has_prompt
        if self._is_pair:
            entry = with_prompt(entry)
        shape, said = self._shape, None
        prompt, messages, used = _own(entry) if shape.is_own else _stated(entry, shape)
        if not shape.is_own:
            messages, said = without_answer(messages)
        from_chat = shape.answer is not None and shape.answer == shape.chat
        found = said if from_chat else value_at(entry, shape.answer)
        metadata = {name: value for name, value in entry.items() if name not in used}
        metadata, derived = _with_answer(metadata, found, shape, self._reading)
        return Row(where, prompt, metadata, messages, derived, shape.note)


def find_shape(entry: Mapping[str, Any], reading: Reading = AUTO) -> Shape:
    """The shape of a file with this first row."""
    shape = _prompt_shape(entry, reading)
    answered = not shape.is_own and is_answered(value_at(entry, shape.chat))
    key = reading.answer or _answer_key(entry, shape, answered)
    form = reading.form
    if form == "auto":
        form = "text" if key is None or key == shape.chat else _form_of(value_at(entry, key))
    return replace(shape, is_answered=answered, answer=key, form=form)


def _answer_key(entry: Mapping[str, Any], shape: Shape, answered: bool) -> str | None:
    if shape.is_own:
        key = None if "answer" in entry else _first(entry, (*TRUTHS, "solution"))
        # A whole solution is no answer that can be compared.
        is_whole = key == "solution" and _form_of(entry[key]) == "text"
        return None if is_whole else key
    if answered:
        return _first(entry, ("answer", *TRUTHS)) or shape.chat
    return _first(entry, ANSWERS)


def _prompt_shape(entry: Mapping[str, Any], reading: Reading) -> Shape:
    """The shape without its answer."""
    if reading.column is not None:
        is_text = not isinstance(value_at(entry, reading.column), list)
        return Shape((reading.column,)) if is_text else Shape(chat=reading.column)
    own = next((key for key in MESSAGES if entry.get(key) is not None), None)
    if isinstance(entry.get("prompt"), str):
        return Shape(("prompt",), is_own=True)
    if own is not None and not is_answered(entry[own]):
        return Shape(chat=own, is_own=True)
    spelt = {name.lower(): name for name in reversed([*entry])}
    for name in TEXTS:
        key = spelt.get(name)
        if key is not None and isinstance(entry[key], str):
            more = (spelt["input"],) if name == "instruction" and "input" in spelt else ()
            return Shape((key, *more))
    chats = [spelt[name] for name in CHATS if isinstance(entry.get(spelt.get(name, "")), list)]
    return Shape(chat=chats[0]) if chats else Shape(is_own=True)


def _own(entry: Mapping[str, Any]) -> tuple[Any, Any, tuple[str, ...]]:
    """(prompt, messages, keys used) by own keys."""
    key = "prompt"
    if not isinstance(entry.get("prompt"), str):
        key = next((k for k in MESSAGES if entry.get(k) is not None), "prompt")
    value = entry.get(key)
    is_text = key == "prompt" and not isinstance(value, list)
    return (value, None, (key,)) if is_text else (None, value, (key,))


def _stated(entry: Mapping[str, Any], shape: Shape) -> tuple[Any, Any, tuple[str, ...]]:
    """(prompt, messages, keys used) by the keys of a shape."""
    if shape.chat is not None:
        return None, value_at(entry, shape.chat), (shape.chat,)
    first, *others = (value_at(entry, name) for name in shape.texts)
    more = [text for text in others if isinstance(text, str) and text.strip()]
    is_text = isinstance(first, str) and first.strip()
    return "\n".join([first, *more]) if is_text else first, None, shape.texts


def value_at(entry: Mapping[str, Any], key: str | None) -> Any:
    """The value under a key, where dots lead inside; None where there is none."""
    if key is None:
        return None
    if key in entry:
        return entry[key]
    outer, dot, inner = key.partition(".")
    inside = entry.get(outer)
    return value_at(inside, inner) if dot and isinstance(inside, Mapping) else None


def _first(entry: Mapping[str, Any], keys: tuple[str, ...]) -> str | None:
    """The first of the keys that has a value, as it is spelt in the row."""
    spelt = {name.lower(): name for name in reversed([*entry])}
    named = [spelt.get(key, key) for key in keys]
    return next((key for key in named if value_at(entry, key) is not None), None)


# ---- answers -------------------------------------------------------------------------------------


def _form_of(value: Any) -> Form:
    if not isinstance(value, str):
        return "text"
    return "hashes" if _HASHES in value else "boxed" if _BOXED in value else "text"


def answer_in(value: Any, form: Form) -> Any:
    """The answer inside a value; None where it has not the form. Values that are no text stay."""
    if form == "auto":
        form = _form_of(value)
    if not isinstance(value, str) or form == "text":
        return value.strip() if isinstance(value, str) else value
    if form == "hashes":
        return value.rpartition(_HASHES)[2].strip() if _HASHES in value else None
    return _in_box(value)


def _in_box(text: str) -> str | None:
    """The content of the last \\boxed{}, whose braces may be nested; None without a whole one."""
    begin = text.rfind(_BOXED)
    if begin < 0:
        return None
    depth = 1
    inside = text[begin + len(_BOXED) :]
    for place, letter in enumerate(inside):
        depth += (letter == "{") - (letter == "}")
        if depth == 0:
            return inside[:place].strip()
    return None


def _with_answer(
    metadata: dict[str, Any], found: Any, shape: Shape, reading: Reading
) -> tuple[dict[str, Any], tuple[str, ...]]:
    """(the metadata with the row's answer, the keys that were added). A row whose text has not the
    form has no answer: a reward that needs one names it."""
    if found is None or (shape.is_own and reading.answer is None and "answer" in metadata):
        return metadata, ()
    answer, had_one = answer_in(found, shape.form), "answer" in metadata
    rest = {name: value for name, value in metadata.items() if name != "answer"}
    if had_one and answer != metadata["answer"]:
        rest["answer_text"] = metadata["answer"]
    if answer is None:
        return rest, ()
    return rest | {"answer": answer}, () if had_one else ("answer",)
