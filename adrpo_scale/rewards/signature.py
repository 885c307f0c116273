"""Whether a function can be called as a reward, seen without a call.

Other libraries call rewards in other ways: with texts and columns by name, with one sample at a
time, with prompts first, as coroutines.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Sequence
from typing import Any

from adrpo_scale.core.errors import RewardError

EXPECTED = "it is called as reward(artifacts, prompts), two lists of one length"

_TRL = (
    "rewards of TRL get texts and columns by name; from a function of your own, `return "
    "{name}(completions=[a.text for a in artifacts], "
    'answer=[p.metadata["answer"] for p in prompts])`'
)
_VERL = (
    "scores of verl are of one sample; from a function of your own, `return "
    '[{name}("mine", a.text, p.metadata["answer"]) for a, p in zip(artifacts, prompts)]`'
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
    if _is_async(function):
        raise RewardError(
            f"reward {label}: {name} is an async function, whose call gives a coroutine and no "
            "numbers; call asyncio.run inside a function that is not"
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


def _is_async(function: Any) -> bool:
    while isinstance(function, functools.partial):
        function = function.func
    call = getattr(function, "__call__", None)  # noqa: B004 (of an object, its method)
    return any(
        is_(one)
        for one in (function, call)
        for is_ in (inspect.iscoroutinefunction, inspect.isasyncgenfunction)
    )


def _hint(name: str, parameters: Sequence[str]) -> str:
    """How a function of another library is called; "" for none that is known."""
    if any(parameter in parameters for parameter in _ONE):
        return "; " + _VERL.format(name=name)
    return "; " + _TRL.format(name=name) if "completions" in parameters else ""
