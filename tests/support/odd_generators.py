"""Generators that go wrong, in a process of their own; they load no library."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time

from adrpo_scale.domains.generation.generator import Generator

HERE = __name__


def hang() -> None:
    while True:
        time.sleep(1000)


class Odd(Generator):
    """Does at `rest` what `settings` say, or at once where they say so."""

    def __init__(self, settings):
        self._how = settings["how"]
        if settings.get("at_once"):
            self.rest()

    def load(self, weights):
        raise NotImplementedError

    def generate(self, request, tensors):
        raise NotImplementedError

    def rest(self):
        getattr(self, self._how)()

    def nothing(self):
        pass

    def raises(self):
        print("a line of a library", file=sys.stderr)
        raise ValueError("no room for the cache")

    def talks(self):
        print("old\n" * 1000 + "x" * 50_000 + "\n\x1b[2Jthe last", flush=True)
        sys.exit(7)

    def dies(self):
        os.kill(os.getpid(), signal.SIGKILL)

    def hangs(self):
        hang()

    def starts_another(self):
        print(subprocess.Popen(["sleep", "1000"]).pid, flush=True)

    def tells(self):
        names = sorted(name for name in os.environ if name in WANTED)
        told = {name: os.environ[name] for name in names}
        raise RuntimeError(json.dumps([told, sys.path]))


WANTED = {"CUDA_VISIBLE_DEVICES", "RANK", "WORLD_SIZE", "MASTER_ADDR", "SLURM_PROCID", "KEPT"}
