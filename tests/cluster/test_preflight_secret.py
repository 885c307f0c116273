"""The meeting of a job's processes, at a port where anybody may write."""

from __future__ import annotations

import json

import pytest
import torch.distributed as td

from adrpo_scale.cluster.preflight.base import Place
from adrpo_scale.cluster.preflight.rendezvous import SECRET, Meeting


@pytest.fixture
def meet(monkeypatch):
    """A side of the meeting in one store."""
    store = td.HashStore()

    def made(rank, secret="of this job", seconds=0.3):
        monkeypatch.setenv(SECRET, secret)
        return Meeting(store, Place(rank, 2, rank, 2, "node"), seconds)

    made.store = store
    return made


def test_whoever_knows_the_secret_is_heard(meet):
    first = meet(0)
    meet(1).hello()
    first.hello()
    assert first.absent() == []


@pytest.mark.parametrize("secret", ["", "of another job", "of this jo"])
def test_whoever_does_not_know_it_is_not_heard(meet, secret, capsys):
    first = meet(0)
    first.hello()
    meet(1, secret).hello()
    assert first.absent() == [1]
    assert capsys.readouterr().err.count("hello/1 was written without this job's") == 1


@pytest.mark.parametrize(
    "written", ["{}", "", "null", "x" * 64 + "{}", "0" * 64, "\udcff", '{"do": "end", "code": 0}']
)
def test_what_a_stranger_writes_is_ignored(meet, written):
    first, second = meet(0), meet(1, seconds=0.2)
    data = written.encode("utf-8", "surrogateescape")
    meet.store.set("hello/1", data)
    meet.store.set("order/0", data)
    first.hello()
    assert first.absent() == [1]
    assert second._get("order/0") is None


def test_a_message_cannot_be_moved_to_another_place(meet, monkeypatch):
    first = meet(0)
    first.hello()
    meet.store.set("hello/1", meet.store.get("hello/0"))
    assert first.absent() == [1]
    first._set("order/0", {"do": "end", "code": 0})
    assert meet(1)._get("order/0") == {"do": "end", "code": 0}
    monkeypatch.setenv("SLURM_RESTART_COUNT", "1")  # an earlier start of the job has written it
    assert meet(1)._get("order/0") is None


def test_an_answer_is_read_as_it_was_written(meet):
    first, second = meet(0), meet(1)
    value = {"answer": [1.5, "ü", None, {"a": []}]}
    second._set("answer/0/1", value)
    assert first._get("answer/0/1") == value
    assert json.loads(meet.store.get("answer/0/1")[64:]) == value
