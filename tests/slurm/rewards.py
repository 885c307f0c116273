"""A reward that can be slowed down, hung, or made to fill a disk, by files and variables.

Importable in the ranks of a job, which run in the checkout: `path = "tests.slurm.rewards:bright"`.
"""

from __future__ import annotations

import os
import time
from pathlib import Path

import numpy as np


def bright(images, prompts):
    """The mean of red. PAUSE: seconds that a call takes. HANG: while this file is there, rank 1
    never answers. FILL: file to fill the disk with, once `FILL.now` is there."""
    time.sleep(float(os.environ.get("PAUSE", 0)))
    hang = os.environ.get("HANG")
    while hang and os.environ.get("RANK") == "1" and Path(hang).exists():
        time.sleep(0.2)
    fill = os.environ.get("FILL")
    if fill and Path(f"{fill}.now").exists():
        _fill(Path(fill))
    return [float(np.asarray(image)[..., 0].mean()) for image in images]


def _fill(path: Path) -> None:
    with path.open("ab", buffering=0) as file:
        for size in (1 << 16, 1 << 12, 1):
            try:
                while True:
                    file.write(bytes(size))
            except OSError:
                continue
