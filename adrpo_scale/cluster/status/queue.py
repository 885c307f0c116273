"""Jobs in Slurm's queue, where there is one. No answer is no news: `status` goes without.

squeue is asked once for all jobs. The fields are asked for by name rather than as JSON, which
squeue writes only where it was built with that plug-in.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterable

from adrpo_scale.cluster.status.base import QueueEntry

SECONDS = 5.0  # a controller that does not answer must not keep anybody waiting
# A job's own id (of an array's element too), state, reason, start, time left, nodes, name: the
# name last, because it may hold anything.
FORMAT = "%A|%T|%r|%S|%L|%N|%j"
_NOTHING = ("", "N/A", "None", "(null)", "NOT_SET", "INVALID", "UNLIMITED", "Unknown")


def ask(jobs: Iterable[str]) -> dict[str, QueueEntry]:
    """Job id → entry, of those that the queue knows; {} without Slurm or without an answer."""
    ids = sorted(set(jobs))
    command = shutil.which("squeue")
    if command is None or not ids:
        return {}
    try:
        done = subprocess.run(
            [command, "--noheader", "--format", FORMAT, "--jobs", ",".join(ids)],
            capture_output=True,
            text=True,
            errors="replace",
            timeout=SECONDS,
            env={**os.environ, "SLURM_TIME_FORMAT": "standard", "LC_ALL": "C"},
        )
    except (OSError, subprocess.SubprocessError):
        return {}
    return parse(done.stdout)  # with a message and nothing here, where no job is known any more


def parse(text: str) -> dict[str, QueueEntry]:
    """Lines of squeue in FORMAT; others are passed over."""
    found = {}
    for line in text.splitlines():
        fields = line.strip().split("|", 6)
        if len(fields) == 7 and fields[0].isdigit():
            job, state, reason, start, left, nodes, name = fields
            stated = [None if field in _NOTHING else field for field in (reason, start, left)]
            found[job] = QueueEntry(job, name, state, stated[0] or "", stated[1], stated[2], nodes)
    return found
