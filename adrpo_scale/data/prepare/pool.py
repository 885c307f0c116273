"""Runs tasks in processes; results come in the order of the tasks, for any number of processes.

Decoders are large C libraries that read files from the web, and one may crash its process. That
costs its own clip alone: the pool is started again, and the tasks under way are repeated, the first
of them in a pool of its own.
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
    ends its process. function, tasks and results must be picklable."""
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
    """(the pool, or a new one if it has lost a process; the future of the task)."""
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
    # spawn: a fork would copy locks that other threads of this process hold.
    return ProcessPoolExecutor(workers, get_context("spawn"), initializer=_end_with_parent)


def _end_with_parent() -> None:
    """Ends this process of a pool when its parent ends: it would wait for tasks for ever. Ctrl-C
    and Slurm's USR1, which every process of a job gets, are left to the parent."""
    for number in (signal.SIGINT, signal.SIGUSR1):
        signal.signal(number, signal.SIG_IGN)
    parent = parent_process()
    if parent is not None:
        threading.Thread(target=_wait_and_end, args=(parent.sentinel,), daemon=True).start()


def _wait_and_end(sentinel: int) -> None:
    connection.wait([sentinel])
    os._exit(1)
