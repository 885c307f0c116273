"""Long loops: alive for the watchdogs, stopped by signals on every rank alike, and said."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable
from typing import Any

import pytest

from adrpo_scale.core import dist, pace, watchdog
from adrpo_scale.core.errors import StopRequested
from adrpo_scale.core.pace import Pace, paced, stepping
from adrpo_scale.core.signals import Signals, stoppable
from tests.support.ranks import run_ranks
from tests.support.waiting import wait_until


def ring() -> None:
    os.kill(os.getpid(), signal.SIGTERM)


def test_a_long_call_of_a_library_is_progress_and_may_be_left(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(watchdog, "_last", 0.0)

    def until_seen() -> int:
        wait_until(lambda: watchdog._last > 0, "a step")
        return 3

    assert stepping(until_seen) == 3
    with pytest.raises(KeyError):
        stepping(lambda: {}["missing"])
    never = threading.Event()
    with Signals(), stoppable(), pytest.raises(StopRequested):
        ring()
        stepping(never.wait)
    never.set()


# ---- one process ---------------------------------------------------------------------------------


def test_a_step_stops_a_loop_that_may_be_stopped() -> None:
    steps = Pace("counting", 9, "things")
    with Signals():
        ring()
        steps.step()  # nothing says that this work may be left
        with stoppable():
            other = threading.Thread(target=steps.step)  # e.g. a save in the background
            other.start()
            other.join()
            with pytest.raises(StopRequested) as stopped:
                steps.step()
        assert not stopped.value.saveable
        steps.step()
    with stoppable():
        steps.step()  # no signals are caught


def test_a_step_is_progress_for_the_watchdog(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watchdog, "_last", 0.0)
    assert list(paced([1, 2], "counting", "things")) == [1, 2]
    assert time.monotonic() - watchdog._last < 5


def test_a_line_comes_now_and_then_and_not_on_standard_output(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    steps = Pace("reading", 4_000_000)
    steps.step(1_000_000)
    assert capsys.readouterr().err == ""
    monkeypatch.setattr(pace, "LINE_EVERY", 0.0)
    steps.step(1_000_000)
    said = capsys.readouterr()
    assert said.err == "reading: 2.0 MB of 4.0 MB, 0 s\n" and said.out == ""
    list(paced([1], "counting", "things"))
    assert capsys.readouterr().err == "counting: 1 of 1 things, 0 s\n"


# ---- several processes ---------------------------------------------------------------------------


def _stopped(work: Callable[[], Any]) -> bool:
    try:
        with Signals(), stoppable():
            work()
    except StopRequested:
        return True
    return False


def _long_work(rank: int, world: int) -> tuple[str, float]:
    """Work of rank 0 that takes longer than the group's timeout, while the other rank waits."""
    dist._TELL_EVERY = 0.1
    group = dist.new_group(1.0)
    watchdog._last = begin = time.monotonic()

    def build() -> str:
        for _ in paced(range(25), "working", "parts"):
            time.sleep(0.1)
        return "done"

    return dist.run_on_main(build, group), watchdog._last - begin


def test_ranks_that_wait_for_rank_0_neither_time_out_nor_hang() -> None:
    for result, progress in run_ranks(_long_work, 2):
        assert result == "done" and progress > 2.0


def _rung_while_waiting(rank: int, world: int) -> bool:
    """Rank 1 alone gets a signal, while rank 0 works for both."""
    dist._TELL_EVERY = 0.0

    def build() -> None:
        for _ in paced(range(600), "working", "parts"):
            time.sleep(0.1)

    def work() -> None:
        if rank == 1:
            ring()
        dist.run_on_main(build)

    return _stopped(work)


def _rung_together(rank: int, world: int) -> bool:
    def work() -> None:
        for k in paced(range(40), "working", "parts", together=True, stride=4):
            assert k < 8
            if (rank, k) == (1, 3):
                ring()

    return _stopped(work)


@pytest.mark.parametrize("work", [_rung_while_waiting, _rung_together])
def test_a_signal_at_one_rank_stops_all(work: Callable[..., Any]) -> None:
    assert run_ranks(work, 2, timeout=60) == [True, True]
