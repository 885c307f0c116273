"""Code of others may not end the process of a run, whichever way it tries."""

from __future__ import annotations

import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import pytest

from adrpo_scale.core.exits import leave, no_exit, not_left


@pytest.mark.parametrize("way", [lambda: sys.exit(0), lambda: os._exit(0), lambda: os._exit(3)])
def test_an_end_that_code_asks_for_is_an_error(way):
    asked = r"asked for the end of its process \(SystemExit"
    with pytest.raises(RuntimeError, match=asked), not_left():
        way()
    assert os._exit is leave


def test_forks_and_what_was_taken_inside_may_leave():
    with no_exit():
        with no_exit():
            taken = os._exit
            child = os.fork()
            if not child:
                taken(5)
            assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 5
        with pytest.raises(SystemExit):
            taken(0)
        with ThreadPoolExecutor(1) as judge, pytest.raises(SystemExit):  # it ends alone
            judge.submit(taken, 0).result()
    script = (
        "import os; from adrpo_scale.core.exits import no_exit\n"
        "with no_exit(): taken = os._exit\n"
        "taken(6)"
    )
    assert subprocess.run([sys.executable, "-c", script], check=False).returncode == 6
