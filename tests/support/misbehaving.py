"""Rewards that do what other people's code does to a run; each obeys the text of its samples.

It imports little: a reward's own process begins with it.
"""

from __future__ import annotations

import ctypes
import gc
import io
import logging
import os
import signal
import sys
import time


def obeys(completions, prompts):
    """`give N`, `sleep SECONDS`, `stuck` (in C, with Python's lock, forever), `die`, `exit`,
    `raise`, `abstain`."""
    return [_obey(*completion.text.split()) for completion in completions]


def _obey(what, number="1"):
    if what == "sleep":
        time.sleep(float(number))
    elif what == "stuck":
        stuck()
    elif what == "die":
        ctypes.CDLL(None)._exit(3)  # which nothing in Python can prevent
    elif what == "exit":
        os._exit(3)
    elif what == "raise":
        raise ValueError("cannot be read")
    return None if what == "abstain" else float(number)


def stuck():
    lock = ctypes.create_string_buffer(64)
    for _ in range(2):  # the second waits for the first, and no signal interrupts that
        ctypes.PyDLL(None).pthread_mutex_lock(lock)


def slow_on_rank_0(images, prompts):
    """Longer than a watch of ten seconds allows, on one rank of several."""
    if os.environ.get("RANK") == "0":
        time.sleep(14)
    return [float(image.mean()) for image in images]


def writes(images, prompts):
    """In place, as normalising and drawing code does, and into the rows of prompts."""
    found = [float(image.mean()) for image in images]
    for image, prompt in zip(images, prompts, strict=True):
        image[:] = 0
        prompt.metadata.pop("answer", None)
        prompt.metadata["words"].clear()
    images.clear()
    return found


def looks(images, prompts):
    return [
        image.mean() + len(p.metadata["words"]) + (p.metadata["answer"] == "4")
        for image, p in zip(images, prompts, strict=True)
    ]


def meddles(completions, prompts):
    """Changes whatever of its process a reward may change."""
    import numpy as np
    import torch

    os.chdir("/")
    os.umask(0o077)
    os.environ["RANK"] = "7"
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    signal.signal(signal.SIGUSR1, lambda *_: None)
    signal.alarm(1)
    sys.stdout = sys.stderr = io.StringIO()
    logging.disable(logging.CRITICAL)
    logging.root.handlers.clear()
    logging.getLogger("adrpo_scale.rewards.calls").disabled = True
    torch.set_grad_enabled(False)
    torch.set_default_dtype(torch.float64)
    torch.set_default_device("meta")
    torch.set_num_threads(3)
    torch.set_float32_matmul_precision("medium")
    torch.use_deterministic_algorithms(True)
    torch.backends.cudnn.benchmark = True
    np.seterr(all="raise")
    gc.disable()
    return [1.0] * len(completions)


def leaves(completions, prompts):
    sys.exit("no judge here")


def ends(completions, prompts):
    """One after another: as a library for several processes does, from a child first."""
    child = os.fork()
    if not child:
        os._exit(7)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7
    os._exit(0)


def waits(completions, prompts):
    time.sleep(600)
