"""Tasks to processes: results in the order of the tasks, however many processes there are.

A decoder that takes its process down with it (they are large C libraries, and files come from the
web) costs the clip that it fell over and nothing else: the pool is started again, and whatever was
under way is done once more, the first of them alone.
"""

from __future__ import annotations

import os
import signal
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from itertools import islice
from multiprocessing import connection, get_context, parent_process
from typing import TypeVar

Task = TypeVar("Task")
Result = TypeVar("Result")
AHEAD = 4  # tasks under way or done and not yet asked for, for each process


def in_order(
    function: Callable[[Task], Result],
    tasks: Iterable[Task],
    workers: int,
    died: Callable[[Task], Result],
) -> Iterator[Result]:
    """`function(task)` of every task, in their order. `died(task)` is the result of a task that
    ends its process. function, tasks and results are pickled: functions of modules, plain data."""
    rest = iter(tasks)
    window: deque[tuple[Task, Future[Result]]] = deque()
    pool = _pool(workers)
    try:
        while True:
            for task in islice(rest, AHEAD * workers - len(window)):
                pool, future = _submit(pool, workers, function, task)
                window.append((task, future))
            if not window:
                return
            task, future = window.popleft()
            try:
                result = future.result()
            except BrokenProcessPool:
                pool.shutdown(cancel_futures=True)
                result = _alone(function, task, died)
                pool = _pool(workers)
                window = deque((t, _again(pool, function, t, f)) for t, f in window)
            yield result
    finally:
        pool.shutdown(wait=False, cancel_futures=True)


def _submit(
    pool: ProcessPoolExecutor, workers: int, function: Callable[[Task], Result], task: Task
) -> tuple[ProcessPoolExecutor, Future[Result]]:
    """The pool, a new one if that has lost a process, and the future of the task."""
    try:
        return pool, pool.submit(function, task)
    except BrokenProcessPool:
        pool.shutdown(wait=False)
        pool = _pool(workers)
        return pool, pool.submit(function, task)


def _again(
    pool: ProcessPoolExecutor,
    function: Callable[[Task], Result],
    task: Task,
    future: Future[Result],
) -> Future[Result]:
    """The future itself where it has its result, otherwise one of the new pool."""
    is_done = future.done() and not future.cancelled() and future.exception() is None
    return future if is_done else pool.submit(function, task)


def _alone(
    function: Callable[[Task], Result], task: Task, died: Callable[[Task], Result]
) -> Result:
    with _pool(1) as pool:
        try:
            return pool.submit(function, task).result()
        except BrokenProcessPool:
            return died(task)


def _pool(workers: int) -> ProcessPoolExecutor:
    # spawn: a fork would take the threads' locks of whatever is loaded here along.
    return ProcessPoolExecutor(workers, get_context("spawn"), initializer=_end_with_parent)


def _end_with_parent() -> None:
    """A process of a pool waits for tasks for ever, and does not notice that nobody gives any.
    Ctrl-C is the parent's to answer."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = parent_process()
    if parent is not None:
        threading.Thread(target=_wait_and_end, args=(parent.sentinel,), daemon=True).start()


def _wait_and_end(sentinel: int) -> None:
    connection.wait([sentinel])
    os._exit(1)
