"""A dry run of a step of `tests.gpu.first_ten_minutes` or `first_two_gpus`, for `run_ranks`.

What the step starts is forked from its process, which has imported the libraries already: a start
takes hundredths of a second instead of six.
"""

from __future__ import annotations

import json
import os
import runpy
import signal
import sys
import time
import traceback
from collections.abc import Mapping, Sequence
from pathlib import Path
from subprocess import TimeoutExpired
from typing import Any
from unittest import mock

from tests.gpu.steps import processes
from tests.gpu.steps.__main__ import main
from tests.support.ranks import launched
from tests.support.shared import CACHE

SECONDS = 2000.0  # of a step that a busy machine makes slow; what hangs is the caller's to end


def dry(rank: int, world: int, table: str, name: str, folder: Path, models: Path) -> dict[str, Any]:
    """The findings of a step, as `first_ten_minutes` reads them."""
    for variable in launched(0, 1, 0):  # a step is not a rank; what it starts may be
        os.environ.pop(variable, None)
    os.environ["ADRPO_CACHE"] = str(CACHE)
    found = folder / "found.json"
    words = [table, name, "--out", str(found), "--models", str(models), "--seconds", str(SECONDS)]
    sys.argv = ["steps", *words, "--dry-run"]
    with mock.patch.object(processes, "Popen", Forked):
        main()
    result: dict[str, Any] = json.loads(found.read_text())
    return result


class Forked:
    """`subprocess.Popen` of `python -m ...`, as far as a step asks of it."""

    def __init__(
        self, words: Sequence[str], env: Mapping[str, str], stdout: Any, **_: object
    ) -> None:
        _, _, *words = words
        self._code: int | None = None
        self.pid = os.fork()
        if self.pid == 0:
            os._exit(_code_of(words, env, stdout.fileno()))

    def wait(self, timeout: float | None = None) -> int:
        end = None if timeout is None else time.monotonic() + timeout
        while self._code is None:
            ended, status = os.waitpid(self.pid, os.WNOHANG)
            if ended:
                self._code = os.waitstatus_to_exitcode(status)
            elif end is not None and time.monotonic() > end:
                raise TimeoutExpired("a forked process", timeout or 0.0)
            else:
                time.sleep(0.02)
        return self._code

    def kill(self) -> None:
        os.kill(self.pid, signal.SIGKILL)


def _code_of(words: Sequence[str], env: Mapping[str, str], output: int) -> int:
    """The exit code of a forked process, which runs a module here."""
    os.dup2(output, 1)
    os.dup2(output, 2)
    os.environ.update(env)
    sys.argv = list(words)
    code: Any = 0
    try:
        runpy.run_module(words[0], run_name="__main__", alter_sys=True)
    except SystemExit as left:
        code = left.code or 0
    except BaseException:
        traceback.print_exc()
        code = 1
    sys.stdout.flush()
    sys.stderr.flush()
    return code if isinstance(code, int) else 1
