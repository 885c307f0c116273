"""What counts as waiting between a fault and its message."""

from __future__ import annotations

import json
import threading
import time

import pytest
import torch
import torch.distributed as td

from tests.support.promptness import _Notes, check_prompt


def noted(folder, between):
    notes = _Notes(folder / "notes-0.json")
    notes.add("fault")
    notes.watch()
    between()
    notes.told()
    notes.write()


def joined():
    thread = threading.Thread(target=int)
    thread.start()
    thread.join()


def collective():
    td.init_process_group("gloo", store=td.HashStore(), rank=0, world_size=1)
    td.all_reduce(torch.ones(1))
    td.destroy_process_group()


@pytest.mark.parametrize(
    ("between", "named"),
    [
        (lambda: time.sleep(0), "sleep"),
        (lambda: threading.Event().wait(0), "wait"),
        (joined, "join"),
        (collective, "allreduce"),
    ],
    ids=["sleep", "event", "join", "collective"],
)
def test_what_waits_is_found(tmp_path, between, named):
    noted(tmp_path, between)
    assert named in json.dumps(json.loads((tmp_path / "notes-0.json").read_text())["waits"])
    with pytest.raises(AssertionError):
        check_prompt(tmp_path, 0, is_at_fault=True)


def test_what_works_and_prints_is_none(tmp_path, capsys):
    noted(tmp_path, lambda: print(sum(range(1000))))
    check_prompt(tmp_path, 0, is_at_fault=True)
    with pytest.raises(AssertionError):  # a fault that nobody told of
        check_prompt(tmp_path, 0, is_at_fault=False)
