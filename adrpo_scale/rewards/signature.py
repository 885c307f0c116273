"""Whether a function can be called as a reward, seen without a call.

Other libraries call rewards in other ways: with texts and columns by name, with one sample at a
time, with prompts first.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

from adrpo_scale.core.errors import RewardError

EXPECTED = "it is called as reward(artifacts, prompts), two lists of one length"

_row_keys: ContextVar[frozenset[str] | None] = ContextVar("row_keys", default=None)


@contextmanager
def rows_have(keys: Iterable[str]) -> Iterator[None]:
    """A block in which remedies name these keys of the prompts' rows; they are unknown outside."""
    token = _row_keys.set(frozenset(keys))
    try:
        yield
    finally:
        _row_keys.reset(token)


_TRL = (
    "rewards of TRL get texts and columns by name; from a function of your own, `return "
    "{name}(completions=[a.text for a in artifacts], "
    "{column}=[p.metadata[{key}] for p in prompts])`{keys}"
)
_VERL = (
    "scores of verl are of one sample; from a function of your own, `return "
    '[{name}("mine", a.text, p.metadata[{key}]) for a, p in zip(artifacts, prompts)]`{keys}'
)
_ONE = ("solution_str", "ground_truth", "data_source", "completion", "response", "image")


def check_signature(function: Any, label: str, skip: int = 0) -> None:
    """Raises RewardError where a function cannot be called with artifacts and prompts.

    skip: parameters before these (`self`)."""
    name = getattr(function, "__name__", type(function).__name__)
    if isinstance(function, type):
        raise RewardError(
            f"reward {label}: {name} is a class and no function: derive it from adrpo_scale.Reward "
            "and give its import path as kind, or name a function as path"
        )
    if not callable(function):
        raise RewardError(f"reward {label}: a {type(function).__name__} is no function: {EXPECTED}")
    if _is_async_generator(function):
        raise RewardError(
            f"reward {label}: {name} is an async generator, which gives no list; return the list"
        )
    try:
        signature = inspect.signature(function)
    except ValueError:
        return  # of C code, which has none
    given = [*signature.parameters][skip:]
    try:
        signature.bind(*range(skip), [], [])
    except TypeError as error:
        raise RewardError(
            f"reward {label}: {name}{signature} cannot be called: {EXPECTED} ({error})"
            f"{_hint(name, given)}"
        ) from error
    if given and given[0] in ("solution_str", "data_source"):
        raise RewardError(
            f"reward {label}: {name}{signature} is for one sample, but {EXPECTED}"
            f"{_hint(name, given)}"
        )
    if given and given[0] in ("prompts", "prompt"):
        raise RewardError(
            f"reward {label}: the first parameter of {name}{signature} is {given[0]}, but "
            f"{EXPECTED}: exchange them, also where they are used"
        )


def _is_async_generator(function: Any) -> bool:
    while isinstance(function, functools.partial):
        function = function.func
    call = getattr(function, "__call__", None)  # noqa: B004 (of an object, its method)
    return any(inspect.isasyncgenfunction(one) for one in (function, call))


def _hint(name: str, parameters: Sequence[str]) -> str:
    """How a function of another library is called; "" for none that is known."""
    is_of_one = any(parameter in parameters for parameter in _ONE)
    if not is_of_one and "completions" not in parameters:
        return ""
    there = _row_keys.get()
    column = next((one for one in parameters if one in (there or ())), None)
    key, keys = column, ""
    if column is None and "answer" in (there or ()):
        key = "answer"
    elif column is None:
        keys = ", where KEY is one of your rows'"
        if there is not None:
            keys = ", but your rows have no key beside their prompt"
            keys = f", where KEY is {_any_of(sorted(there))}, as your rows have" if there else keys
    shown = "KEY" if key is None else f'"{key}"'
    text = _VERL if is_of_one else _TRL
    return "; " + text.format(name=name, column=column or "answer", key=shown, keys=keys)


def _any_of(names: Sequence[str]) -> str:
    quoted = [repr(name) for name in names[:6]]
    return " or ".join([", ".join(quoted[:-1]), quoted[-1]] if quoted[1:] else quoted)
