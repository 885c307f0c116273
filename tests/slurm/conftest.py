"""One virtual cluster for all tests of this folder."""

from __future__ import annotations

import os
import shutil
import tempfile
from pathlib import Path

import pytest

from tests.slurm.cluster import PROGRAMS, Cluster


@pytest.fixture(scope="session")
def cluster():
    path = os.environ["PATH"] + ":/usr/sbin:/sbin"
    missing = [program for program in PROGRAMS if shutil.which(program, path=path) is None]
    if (missing or os.geteuid() != 0) and "ADRPO_REQUIRE_SLURM" not in os.environ:
        pytest.skip(f"needs root and Slurm's daemons (missing: {', '.join(missing) or 'root'})")
    root = Path(tempfile.mkdtemp(prefix="adrpo-slurm-"))
    root.chmod(0o755)  # or munged refuses to let others in
    with Cluster(root) as cluster:
        yield cluster
    shutil.rmtree(root, ignore_errors=True)
