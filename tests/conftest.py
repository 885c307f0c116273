"""One thread per process, here and in processes that tests start: the tests share few cores."""

import os

import torch
from hypothesis import settings

os.environ.setdefault("OMP_NUM_THREADS", "1")
torch.set_num_threads(1)
# A busy core is no failure: no test here is about time.
settings.register_profile("adrpo_scale", deadline=None)
settings.load_profile("adrpo_scale")
