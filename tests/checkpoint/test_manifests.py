"""Manifests that no save has written: whatever is wrong, the older checkpoint is used."""

from __future__ import annotations

import copy
import json
import logging
import os
import shutil
from pathlib import Path

import pytest
import torch

from adrpo_scale.checkpoint.base import (
    MANIFEST,
    CheckpointConfig,
    OtherVersionError,
    _digest,
    folder_name,
    parse_manifest,
)
from adrpo_scale.checkpoint.form import LARGEST
from adrpo_scale.checkpoint.reader import Reader
from adrpo_scale.checkpoint.shelf import hash_part, newest_whole
from adrpo_scale.checkpoint.store import FULL, Store
from adrpo_scale.core.errors import CheckpointError
from adrpo_scale.core.types import FlatRange
from tests.core.test_json_files import ODD
from tests.support.documents import document

GOLDEN = Path(__file__).parents[1] / "golden" / "runs"
VALUES = (None, True, -1, 1.5, "x", "", [], [1], {}, {"a": 1}, [None], 2**62)
FREE = {  # values that are legal where they stand, by path
    "kind": (),
    "document.run": ("x", ""),
    "document.identity": ("x", ""),
    "document.package": ("x", ""),
    "document.world_size": (2**62,),
    "document.config.seed": (-1, 2**62),
    "document.config.rebase_reference": (True,),
    "document.config.algorithm.name": ("x",),
    "document.config.domain.name": ("x",),
    "document.base.model": ("x",),
    "document.base.revision": (None, "x", ""),
    "document.base.sha256": ("x",),
    "document.base.frozen": (None, "x", ""),
    "document.rules": ({}, {"a": 1}),
    "document.lora": (None,),
    "document.lora.rank": (2**62,),
    "document.lora.alpha": (-1, 1.5, 2**62),
    "document.prompts": ("x",),
    "document.origin": (None,),
    "document.left_out": ([], [1]),
    "document.rewards": ({},),
    "document.rewards.a.count": (2**62,),
    **dict.fromkeys((f"document.rewards.a.{n}" for n in ("mean", "m2")), (-1, 1.5, 2**62)),
    **dict.fromkeys((f"document.rewards.a.{n}" for n in ("min", "max")), (-1, 1.5, 2**62)),
    **dict.fromkeys(
        (f"document.counters.{n}" for n in ("cursor", "step", "nonfinite_in_a_row", "learned")),
        (2**62,),
    ),
    "document.counters.evaluated": (-1, 2**62),
    "document.optimizer_steps.w": (2**62,),
}
MAY_LACK = ("document.base.frozen", "document.rules", "document.left_out")
MAY_LACK += tuple(f"document.counters.{n}" for n in ("learned", "evaluated", "nonfinite_in_a_row"))
MAY_LACK += ("document.rewards.a",)


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A run with checkpoints of iterations 1 and 2."""
    run = tmp_path_factory.mktemp("saved")
    store = Store(run, CheckpointConfig())
    for iteration in (1, 2):
        place = FlatRange((4,), 0, 4)
        sets = {"policy": {"w": (place, torch.ones(4))}, "exp_avg": {"w": (place, torch.ones(4))}}
        rewards = {"a": {"count": 4, "mean": 0.5, "m2": 1.0, "min": 0.0, "max": 1.0}}
        more = {"rewards": rewards, "optimizer_steps": {"w": iteration}}
        store.save(FULL, iteration, sets, document(iteration, **more))
        store.wait()
    assert [end.error for end in store.ended] == [None, None]
    return run


@pytest.fixture
def run(saved, tmp_path):
    return shutil.copytree(saved, tmp_path / "run")


@pytest.fixture(scope="module")
def body(saved):
    found = json.loads((saved / "checkpoints" / folder_name(2) / MANIFEST).read_text())
    found.pop("sha256")
    return found


def sealed(body):
    """The text of a body with the hash that it states."""
    return json.dumps({"sha256": _digest(body), **body})


def paths(value, before=""):
    for name, part in value.items():
        yield f"{before}{name}"
        if isinstance(part, dict):
            yield from paths(part, f"{before}{name}.")


def changed(body, path, *value):
    """A copy with another value at a path; without one, without the field."""
    copied = copy.deepcopy(body)
    *parents, last = path.split(".")
    table = copied
    for name in parents:
        table = table[name]
    table.pop(last)
    table |= dict.fromkeys([last], *value) if value else {}
    return copied


def fields(body):
    """Every field of the document and of the manifest around it, but for what settings may hold."""
    known = {f"document.config.{n}" for n in ("seed", "rebase_reference", "algorithm", "domain")}
    return [
        path
        for path in paths(body)
        if path not in ("format", "version") and not path.startswith(("files", "sets."))
        if not path.startswith("document.config.") or ".".join(path.split(".")[:3]) in known
    ]


def test_every_field_of_a_manifest_has_its_type_and_must_be_there(body, tmp_path):
    parse_manifest(sealed(body), tmp_path / "a" / MANIFEST)
    tried = 0
    for path in fields(body):
        for value in VALUES:
            text = sealed(changed(body, path, value))
            tried += 1
            if any(type(value) is type(free) and value == free for free in FREE.get(path, ())):
                parse_manifest(text, tmp_path / "a" / MANIFEST)
                continue
            with pytest.raises(CheckpointError):
                parse_manifest(text, tmp_path / "a" / MANIFEST)
                pytest.fail(f"{path} = {value!r} was taken")
        if path not in MAY_LACK:
            with pytest.raises(CheckpointError, match="lacks a field"):
                parse_manifest(sealed(changed(body, path)), tmp_path / "a" / MANIFEST)
    assert tried > 300


def piece(body, *stated):
    body["sets"]["policy"]["w"][1][0] = list(stated)


WRONG = {
    "negative file": lambda b: piece(b, 0, 4, -1),
    "file beyond": lambda b: piece(b, 0, 4, 1),
    "start as text": lambda b: piece(b, "0", 4, 0),
    "stop as float": lambda b: piece(b, 0, 4.0, 0),
    "stop is true": lambda b: piece(b, 0, True, 0),
    "shape as text": lambda b: b["sets"]["policy"].update(w=["4", [[0, 4, 0]]]),
    "negative shape": lambda b: b["sets"]["policy"].update(w=[[-2, -2], [[0, 4, 0]]]),
    "no shape": lambda b: b["sets"]["policy"].update(w=[[[0, 4, 0]]]),
    "sets as list": lambda b: b.update(sets=[]),
    "a set as list": lambda b: b["sets"].update(policy=[]),
    "no policy": lambda b: b["sets"].pop("policy"),
    "steps lack a parameter": lambda b: b["document"].update(optimizer_steps={}),
    "other iteration": lambda b: b.update(iteration=3),
    "a file twice": lambda b: b["files"].append(b["files"][0]),
    "file without size": lambda b: b["files"][0].pop(),
    "negative size": lambda b: b["files"][0].__setitem__(1, -1),
    "hash of another length": lambda b: b["files"][0].__setitem__(2, "0" * 63),
    "hash with an end": lambda b: b["files"][0].__setitem__(2, "0" * 64 + "\n"),
    "another counter": lambda b: b["document"]["counters"].update(more=1),
    "counters of a reward": lambda b: b["document"]["rewards"]["a"].pop("m2"),
    "deep settings": lambda b: b["document"]["config"].update(deep=deep(100)),
    "half a pair": lambda b: b["document"]["config"].update(name="\ud800"),
    "version as text": lambda b: b.update(version="1"),
}


def deep(levels):
    value = 1
    for _ in range(levels):
        value = {"a": value}
    return value


@pytest.mark.parametrize("change", WRONG.values(), ids=WRONG)
def test_a_manifest_whose_parts_do_not_fit_is_refused(body, tmp_path, change):
    wrong = copy.deepcopy(body)
    change(wrong)
    with pytest.raises(CheckpointError) as caught:
        parse_manifest(sealed(wrong), tmp_path / "a" / MANIFEST)
    assert not isinstance(caught.value, OtherVersionError)


def test_fields_that_a_later_version_adds_are_passed_over(body, tmp_path):
    later = copy.deepcopy(body)
    later["document"] |= {"more": {"a": [1.5]}}
    later["document"]["base"]["licence"] = "mit"
    found = parse_manifest(sealed(later), tmp_path / "a" / MANIFEST)
    assert found.document["more"] == {"a": [1.5]}


@pytest.mark.parametrize("path", sorted(GOLDEN.glob("*/checkpoints/*")), ids=str)
def test_manifests_of_before_are_read(path):
    assert Reader(path).iteration == 2


TEXTS = {
    **ODD,
    "NaN": b'{"sha256": "x", "format": "adrpo_scale checkpoint", "version": 1, "a": NaN}',
    "infinite": b'{"sha256": "x", "format": "adrpo_scale checkpoint", "version": 1, "a": 1e999}',
    "beyond": b'{"format": "adrpo_scale checkpoint", "version": 1, "a": ' + b"9" * 99 + b"}",
    "nothing": b"{}",
    "deep but read": b'{"format": "adrpo_scale checkpoint", "version": 1, "a": '
    + b"[" * 900
    + b"]" * 900
    + b"}",
}


def text(content):
    return lambda path: path.write_bytes(content)


def sparse(path):
    with path.open("wb") as file:
        file.truncate(LARGEST + 1)


def edited(change):
    def edit(path):
        body = json.loads(path.read_text())
        body.pop("sha256")
        change(body)
        path.write_text(sealed(body))

    return edit


HARM = {
    **{f"text: {name}": text(content) for name, content in TEXTS.items()},
    **{f"edited: {name}": edited(change) for name, change in WRONG.items()},
    "FIFO": os.mkfifo,
    "folder": os.mkdir,
    "endless": lambda path: path.symlink_to("/dev/zero"),
    "loop": lambda path: path.symlink_to(path.name),
    "nowhere": lambda path: path.symlink_to("elsewhere"),
    "sparse": sparse,
}


@pytest.mark.parametrize("harm", HARM.values(), ids=HARM)
def test_whatever_is_wrong_the_older_checkpoint_is_used_and_the_reason_said(run, caplog, harm):
    path = run / "checkpoints" / folder_name(2) / MANIFEST
    if harm in (HARM[name] for name in ("FIFO", "folder", "endless", "loop", "nowhere")):
        path.unlink()
    harm(path)
    with caplog.at_level(logging.WARNING):
        found = newest_whole(run, lambda reader: [hash_part(reader)])
    assert found is not None and found.iteration == 1
    assert any("step-000002 is broken: " in message for message in caplog.messages)
    assert (run / "checkpoints" / "step-000002.broken").exists()


def test_a_checkpoint_in_the_folder_of_another_iteration_is_not_read(run, caplog):
    folder = run / "checkpoints"
    (folder / folder_name(2)).rename(folder / folder_name(9))
    found = newest_whole(run, lambda reader: [hash_part(reader)])
    assert found is not None and found.iteration == 1
    assert "rename the folder to step-000002" in caplog.text


@pytest.mark.parametrize("name", ["fifo", "endless"])
def test_a_file_that_is_none_keeps_nobody_waiting(run, name):
    reader = Reader(run / "checkpoints" / folder_name(2))
    path = reader.folder / "rank-000.safetensors"
    path.unlink()
    os.mkfifo(path) if name == "fifo" else path.symlink_to("/dev/zero")
    assert list(reader.faults()) == [f"{path} is no regular file"]


def test_a_disk_that_does_not_say_condemns_nothing(run, monkeypatch):
    def fails(*_):
        raise OSError(5, os.strerror(5))

    monkeypatch.setattr("adrpo_scale.checkpoint.reader.read_regular", fails)
    with pytest.raises(CheckpointError, match="Nothing was changed"):
        newest_whole(run, lambda reader: [hash_part(reader)])
    assert len(list((run / "checkpoints").iterdir())) == 2
