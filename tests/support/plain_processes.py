"""Processes with the libraries of a user and nothing of this package, forked from one that has
imported them: that import takes seconds.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

SERVER = """
import json, os, runpy, sys, traceback

import peft
import torch
{imports}

torch.set_num_threads(1)
for line in sys.stdin:
    job = json.loads(line)
    child = os.fork()
    if not child:
        log = os.open(job["log"], os.O_WRONLY | os.O_CREAT)
        os.dup2(log, 1), os.dup2(log, 2)
        os.chdir(job["cwd"])
        sys.argv, code = job["argv"], 1
        try:
            runpy.run_path(sys.argv[0], run_name="__main__")
            code = 0
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stdout.flush(), sys.stderr.flush()
            os._exit(code)
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""


@contextmanager
def plain_processes(place: Path, imports: str) -> Iterator[Callable[..., Any]]:
    """Yields a function that runs `script arguments…` and says its returncode and stderr. imports:
    lines of Python. place: an empty folder."""
    command = [sys.executable, "-P", "-c", SERVER.replace("{imports}", imports)]
    server = subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=place
    )
    assert server.stdin is not None and server.stdout is not None
    requests, answers = server.stdin, server.stdout

    def run(*argv: object, cwd: Path = place) -> SimpleNamespace:
        log = place / "log"
        log.unlink(missing_ok=True)
        job = {"argv": list(map(str, argv)), "cwd": str(cwd), "log": str(log)}
        requests.write(json.dumps(job) + "\n")
        requests.flush()
        return SimpleNamespace(returncode=int(answers.readline()), stderr=log.read_text())

    yield run
    server.kill()
    server.wait()
