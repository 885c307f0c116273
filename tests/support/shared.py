"""A folder that all tests of one call of pytest share, also over the workers of pytest-xdist.

For what is found by its content, so that who comes first makes it and the others find it: prompt
embeddings and hashes of model files. A worker inherits the variable from the process that starts
it; that one removes the folder at its end.
"""

from __future__ import annotations

import atexit
import os
import shutil
import tempfile
from pathlib import Path

VARIABLE = "ADRPO_TESTS_SHARED"


def _made() -> Path:
    if VARIABLE not in os.environ:
        folder = tempfile.mkdtemp(prefix="adrpo-tests-")
        os.environ[VARIABLE] = folder
        owner = os.getpid()  # what is forked off inherits the exit function
        atexit.register(lambda: os.getpid() == owner and shutil.rmtree(folder, ignore_errors=True))
    return Path(os.environ[VARIABLE])


SHARED = _made()
CACHE = SHARED / "cache"  # ADRPO_CACHE of runs that are not about the cache
