"""Processor time of every test, its processes included: `pytest -p tests.support.processor_time`.

Wall time says little on a machine that others use. Counted is what pytest, everything that it
started and everything that those have ended used, by /proc: whichever way the processes start.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import Any

import psutil
import pytest

SHOWN = 60
_spent: Counter[str] = Counter()


def seconds() -> float:
    """Of this process, its descendants and those of them that are gone."""
    me, total = psutil.Process(), 0.0
    for process in [me, *me.children(recursive=True)]:
        try:
            total += sum(process.cpu_times()[:4])
        except psutil.NoSuchProcess:  # counted by its parent once it is reaped
            continue
    return total


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Iterator[Any]:
    before = seconds()
    result = yield
    _spent[item.nodeid] += seconds() - before  # type: ignore[assignment]
    return result


def pytest_terminal_summary(terminalreporter: Any) -> None:
    files: Counter[str] = Counter()
    for name, spent in _spent.items():
        files[name.partition("::")[0]] += spent
    terminalreporter.section(f"processor time: {sum(_spent.values()):.0f} s")
    for spent_on in (files, _spent):
        for name, spent in spent_on.most_common(SHOWN):
            terminalreporter.line(f"{spent:8.2f} s  {name}")
