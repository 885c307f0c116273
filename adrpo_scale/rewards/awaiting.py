"""Answers that are coroutines: awaited, those of a list at once."""

from __future__ import annotations

import asyncio
import inspect
import os
from concurrent.futures import ThreadPoolExecutor
from typing import Any

_loops: list[tuple[int, asyncio.AbstractEventLoop]] = []  # (process, its loop), at most one


def awaited(answer: Any) -> Any:
    """The answer itself, where it or a member of it is a coroutine or another awaitable.

    One event loop serves all calls: clients that a judge keeps belong to the loop of their first
    call."""
    if not _waits(answer):
        return answer
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return _loop().run_until_complete(_settled(answer))
    with ThreadPoolExecutor(1) as beside:  # called by a coroutine, as in a notebook
        return beside.submit(asyncio.run, _settled(answer)).result()


def _waits(answer: Any) -> bool:
    return inspect.isawaitable(answer) or (
        isinstance(answer, list | tuple) and any(map(_waits, answer))
    )


async def _settled(answer: Any) -> Any:
    if inspect.isawaitable(answer):
        return await _settled(await answer)
    if not _waits(answer):
        return answer
    members = await asyncio.gather(*map(_settled, answer))
    return tuple(members) if isinstance(answer, tuple) else members


def _loop() -> asyncio.AbstractEventLoop:
    if not _loops or _loops[0][0] != os.getpid() or _loops[0][1].is_closed():
        _loops[:] = [(os.getpid(), asyncio.new_event_loop())]
    return _loops[0][1]
