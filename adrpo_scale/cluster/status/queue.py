"""Jobs in Slurm's queue; without Slurm, or without its answer, there are none.

One call of squeue covers all jobs. It requests fields by name: squeue writes JSON only where it was
built with that plug-in.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterable

from adrpo_scale.cluster.status.base import QueueEntry

SECONDS = 5.0  # time limit: Slurm's controller may not answer
# A job's own id (also of an array's element), state, reason, start, time left, nodes, name. The
# name is the last field, because it may contain the separator.
FORMAT = "%A|%T|%r|%S|%L|%N|%j"
_NOTHING = ("", "N/A", "None", "(null)", "NOT_SET", "INVALID", "UNLIMITED", "Unknown")


def ask(jobs: Iterable[str]) -> dict[str, QueueEntry]:
    """Job id → entry, for known jobs; {} without Slurm or without its answer."""
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
    return parse(done.stdout)  # empty, with an error, where squeue knows none of the jobs


def parse(text: str) -> dict[str, QueueEntry]:
    """Job id → entry from squeue's lines in FORMAT; other lines are ignored."""
    found = {}
    for line in text.splitlines():
        fields = line.strip().split("|", 6)
        if len(fields) == 7 and fields[0].isdigit():
            job, state, reason, start, left, nodes, name = fields
            stated = [None if field in _NOTHING else field for field in (reason, start, left)]
            found[job] = QueueEntry(job, name, state, stated[0] or "", stated[1], stated[2], nodes)
    return found
