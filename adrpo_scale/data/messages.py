"""Conversations as rows have them → the messages of a prompt.

Read besides `{"role": ..., "content": ...}`: ShareGPT's `{"from": ..., "value": ...}`, content in
parts of text, an empty system message, an assistant's turn that only calls tools. A conversation
that needed nothing of this stays as it is written, without the other keys of its messages.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

ROLES = {"human": "user", "gpt": "assistant", "chatgpt": "assistant", "model": "assistant"}
ROLES |= {"function_call": "assistant", "observation": "tool", "function_response": "tool"}
_MAY_BE_EMPTY = ("system", "tool", "developer")


def is_answered(value: Any) -> bool:
    """Whether a value is a conversation that ends with an answer, after a message of the user's."""
    if not (isinstance(value, list) and len(value) > 1):
        return False
    return all(isinstance(m, Mapping) for m in value) and _role(value[-1]) == "assistant"


def without_answer(value: Any) -> tuple[Any, str | None]:
    """(a conversation without the answer at its end, that answer); the value itself without one."""
    if not is_answered(value):
        return value, None
    text, _ = _content(value[-1])
    return value[:-1], text


def last_answer(value: Any) -> tuple[Any, str | None]:
    """(the messages before the last one, its text), of a list that ends with the assistant's;
    (the value, None) of anything else."""
    is_list = isinstance(value, list) and value and all(isinstance(m, Mapping) for m in value)
    if not is_list or _role(value[-1]) != "assistant":
        return value, None
    text, fault = _content(value[-1])
    return value[:-1], None if fault else text


def turns(messages: Sequence[Mapping[str, Any]]) -> list[tuple[str | None, str]]:
    """(role, text without blanks around it) of each message, without empty system messages."""
    found = [(_role(message), _content(message)[0].strip()) for message in messages]
    return [turn for turn in found if turn != ("system", "")]


def with_prompt(entry: Mapping[str, Any]) -> Mapping[str, Any]:
    """A row of two conversations, `chosen` and `rejected`, with what both begin with as its
    `prompt`; any other row as it is."""
    pair = [entry.get("chosen"), entry.get("rejected")]
    if "prompt" in entry or not all(is_answered(value) for value in pair):
        return entry
    chosen, rejected = ([dict(message) for message in value] for value in pair if value)
    common = [a for a, b in zip(chosen[:-1], rejected[:-1], strict=False) if a == b]
    is_whole = len(common) == len(chosen) - 1 == len(rejected) - 1
    return {**entry, "prompt": common} if is_whole else entry


def read_messages(value: Any) -> tuple[tuple[dict[str, Any], ...], str | None]:
    """(the messages, None), or ((), the fault)."""
    if not isinstance(value, list) or not value:
        return (), f"{value!r} is no list of messages" if value else "there is no message"
    if all(_is_plain(message) for message in value):
        messages = tuple({"role": m["role"], "content": m["content"]} for m in value)
    else:
        read = [_read(message) for message in value]
        faults = [fault for _, fault in read if fault]
        if faults:
            return (), faults[0]
        messages = tuple(message for message, _ in read)
    if messages[-1]["role"] != "user":
        return (), f"the last message is of the role {messages[-1]['role']!r}"
    return messages, None


def shown(messages: Sequence[Mapping[str, Any]]) -> str:
    """A conversation as one text, for logs and to tell prompts apart."""
    if len(messages) == 1:
        return str(messages[0]["content"])
    return "\n".join(_line(message) for message in messages)


def _line(message: Mapping[str, Any]) -> str:
    calls = message.get("tool_calls")
    text = f"{message['role']}: {message['content']}"
    return f"{text}{json.dumps(calls, sort_keys=True, default=str)}" if calls else text


def called(messages: Sequence[Mapping[str, Any]]) -> list[str]:
    """Names of the functions that the messages call, as far as their calls have the usual form."""
    calls = [call for message in messages for call in message.get("tool_calls", ())]
    functions = [call.get("function") for call in calls if isinstance(call, Mapping)]
    return [str(f["name"]) for f in functions if isinstance(f, Mapping) and f.get("name")]


def ways_to_write(messages: Sequence[Mapping[str, Any]]) -> Iterator[list[dict[str, Any]]]:
    """The messages as chat templates take them, the likeliest way first: templates disagree on
    whether the arguments of a call are an object or JSON. One way where nothing is called."""
    yield [dict(message) for message in messages]
    if any(message.get("tool_calls") for message in messages):
        yield [_with_json(message) for message in messages]


def _with_json(message: Mapping[str, Any]) -> dict[str, Any]:
    if not message.get("tool_calls"):
        return dict(message)
    return {**message, "tool_calls": [_as_json(call) for call in message["tool_calls"]]}


def _as_json(call: Any) -> Any:
    try:
        arguments = json.dumps(call["function"]["arguments"])
    except (TypeError, KeyError):
        return call
    return {**call, "function": {**call["function"], "arguments": arguments}}


def _is_plain(message: Any) -> bool:
    return isinstance(message, dict) and all(
        isinstance(message.get(key), str) and message[key].strip() for key in ("role", "content")
    )


def _role(message: Mapping[str, Any]) -> str | None:
    role = message.get("role", message.get("from"))
    return ROLES.get(role, role) if isinstance(role, str) and role.strip() else None


def _read(message: Any) -> tuple[dict[str, Any], str | None]:
    """(the message, None), or ({}, the fault)."""
    if not isinstance(message, Mapping):
        return {}, f"{message!r} is no message"
    role = _role(message)
    if role is None:
        return {}, f"a message without a role, with the keys {sorted(message)}"
    text, fault = _content(message)
    if fault is not None:
        return {}, fault
    others = {k: message[k] for k in ("tool_call_id", "name") if message.get(k)}
    if message.get("tool_calls"):
        others["tool_calls"] = [_call(call) for call in message["tool_calls"]]
    if not text.strip() and role not in _MAY_BE_EMPTY and "tool_calls" not in others:
        return {}, f"an empty message of the role {role!r}"
    return {"role": role, "content": text, **others}, None


def _call(call: Any) -> Any:
    """A tool call with its arguments as an object: templates would write a text as JSON again."""
    try:
        arguments = json.loads(call["function"]["arguments"])
    except (TypeError, KeyError, ValueError):  # another form: the template's own business
        return call
    return {**call, "function": {**call["function"], "arguments": arguments}}


def _content(message: Mapping[str, Any]) -> tuple[str, str | None]:
    """(the text of a message, None), or ("", the fault)."""
    content = message.get("content", message.get("value"))
    if content is None:
        return "", None
    if isinstance(content, str):
        return content, None
    if not isinstance(content, list):
        return "", f"content of the type {type(content).__name__}, expected text"
    texts = [part if isinstance(part, str) else _part(part) for part in content]
    if None in texts:
        kinds = [part.get("type") if isinstance(part, Mapping) else part for part in content]
        return "", f"content in parts of the types {kinds}, of which only text is read"
    return "".join(str(text) for text in texts), None


def _part(part: Any) -> str | None:
    is_text = isinstance(part, Mapping) and part.get("type", "text") == "text"
    text = part.get("text") if is_text else None
    return text if isinstance(text, str) else None
