"""What other people's code changes of the process is put back."""

from __future__ import annotations

import gc
import logging
import os
import signal
import sys
import time

import numpy as np
import torch

from adrpo_scale.core.components import imported
from adrpo_scale.core.keeping import kept
from tests.support.misbehaving import meddles


def state():
    handlers = [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGUSR1)]
    umask = os.umask(0)
    os.umask(umask)
    threads, precision = torch.get_num_threads(), torch.get_float32_matmul_precision()
    modes = [torch.is_grad_enabled(), torch.get_default_dtype(), torch.get_default_device()]
    modes += [threads, precision, torch.are_deterministic_algorithms_enabled()]
    modes += [torch.backends.cudnn.benchmark, np.geterr(), gc.isenabled()]
    loggers = [logging.root.manager.disable, list(logging.root.handlers)]
    loggers += [logging.getLogger("adrpo_scale.rewards.calls").disabled]
    streams = [sys.stdout, sys.stderr]
    return [os.getcwd(), umask, os.environ.get("RANK"), *handlers, *modes, *loggers, *streams]


def test_nothing_stays_changed_and_each_change_is_told_once(caplog):
    caplog.set_level(logging.WARNING)
    before = state()
    for _ in range(2):
        with kept("reward mine"):
            meddles([], [])
        assert state() == before
    assert (
        torch.zeros(1).device.type == "cpu" and torch.zeros(1).requires_grad_().sum().requires_grad
    )
    told = [message for message in caplog.messages if message.startswith("reward mine changed ")]
    assert len(told) == len(set(told)) == 10
    assert "reward mine changed the working directory, which is as before again" in told
    time.sleep(1.2)  # the alarm that was left set would end this process


def test_the_state_is_put_back_after_an_exception_too(tmp_path):
    before = os.getcwd()
    try:
        with kept("reward other"):
            os.chdir(tmp_path)
            raise ValueError
    except ValueError:
        assert os.getcwd() == before


def test_what_changes_nothing_is_not_told_of(caplog):
    with kept("reward good"):
        os.environ["A_KEY_OF_THE_JUDGE"] = "stays"
        torch.manual_seed(7)
        np.random.seed(7)
    assert caplog.messages == [] and os.environ.pop("A_KEY_OF_THE_JUDGE") == "stays"


def test_a_module_that_changes_the_folder_while_it_is_imported(tmp_path, monkeypatch):
    (tmp_path / "moves_away.py").write_text(f"import os\nos.chdir({str(tmp_path)!r})\nvalue = 3\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    before = os.getcwd()
    assert imported("moves_away:value") == 3
    assert os.getcwd() == before
