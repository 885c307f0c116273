"""One thread per process, here and in processes that tests start: the tests share few cores."""

import os

import torch
from hypothesis import settings

from tests.support import rounding, shared
from tests.support.schedule import pytest_collection_modifyitems, pytest_xdist_make_scheduler

__all__ = ["pytest_collection_modifyitems", "pytest_xdist_make_scheduler"]  # hooks

os.environ.setdefault("OMP_NUM_THREADS", "1")
torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
rounding.install()
assert shared.SHARED  # made before workers of pytest-xdist start, which inherit it
# A busy core is no failure: no test here is about time.
settings.register_profile("adrpo_scale", deadline=None)
settings.load_profile("adrpo_scale")
