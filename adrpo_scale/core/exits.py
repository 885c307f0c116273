"""Other people's code may not end this process by `os._exit`: a run of days would be over without a
checkpoint, and with the code that they chose, 0 perhaps, which a launcher takes for its end."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NoReturn

leave = os._exit  # for code of this package, also in another thread beside a guarded block

_depth = 0  # guarded blocks that are under way
_owner = 0  # the process that they belong to: a fork may leave as it likes


def _refused(status: int) -> NoReturn:
    if not _depth or os.getpid() != _owner:
        leave(status)
    raise SystemExit(f"os._exit({status})")


@contextmanager
def no_exit() -> Iterator[None]:
    """A block in which `os._exit` raises SystemExit, in this process and not in forks of it."""
    global _depth, _owner
    before, os._exit = os._exit, _refused
    _owner, _depth = os.getpid(), _depth + 1
    try:
        yield
    finally:
        _depth -= 1
        os._exit = before


@contextmanager
def not_left() -> Iterator[None]:
    """A block that ends by RuntimeError where code inside asks for the end of the process: such an
    end would have the code that it asks for, 0 perhaps."""
    with no_exit():
        try:
            yield
        except SystemExit as error:
            raise RuntimeError(
                f"code that this run uses asked for the end of its process ({error!r}); the line "
                "above says where: let it raise an error instead"
            ) from error
