"""One thread per process, here and in processes that tests start: the tests share few cores."""

import os

import torch

os.environ.setdefault("OMP_NUM_THREADS", "1")
torch.set_num_threads(1)
