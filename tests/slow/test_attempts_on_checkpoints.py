"""Seeded attempts on the folder of a run: names in the way, damage, checkpoints that are gone. Each
ends with what should be there, or with one of our errors; what links lead to is never touched."""

from __future__ import annotations

import os
import random
import shutil
from collections import Counter

import pytest
import torch

from adrpo_scale.checkpoint.base import CheckpointConfig
from adrpo_scale.checkpoint.inspect import inspect
from adrpo_scale.checkpoint.locate import open_checkpoint, pin_origin
from adrpo_scale.checkpoint.reader import Reader
from adrpo_scale.checkpoint.shelf import committed, hash_part, newest_whole, remove_left_overs
from adrpo_scale.checkpoint.store import FULL, Store
from adrpo_scale.checkpoint.whole import require_whole
from adrpo_scale.core import file_hashes
from adrpo_scale.core.errors import AdrpoError, CheckpointError
from adrpo_scale.core.types import FlatRange
from adrpo_scale.run.folder import make_folder
from adrpo_scale.run.recorded import check_may_begin
from tests.support.documents import document
from tests.support.obstacles import OBSTACLES, Precious

ATTEMPTS = 300
SIZE = 64
ENDINGS = ("", ".tmp", ".trash", ".replaced", ".broken", ".0123456789abcdef.tmp")
pytestmark = pytest.mark.slow


def saves(run, iteration, value, keep=3):
    place = FlatRange((SIZE,), 0, SIZE)
    store = Store(run, CheckpointConfig(keep_last=keep))
    sets = {"policy": {"w": (place, torch.full((SIZE,), float(value)))}}
    store.save(FULL, iteration, sets, document(iteration, lora=None))
    store.wait()
    assert store.ended[0].error is None, store.ended


def alone(reader):
    return [hash_part(reader)]


def holds(reader, value):
    return reader.whole("w").tolist() == [float(value)] * SIZE


class Attempt:
    def __init__(self, top, draw):
        self.top, self.draw, self.run = top, draw, top / "run"
        self.precious = Precious(top / "elsewhere")
        for iteration in (1, 2, 3):
            saves(self.run, iteration, iteration)
        (self.run / "config.json").write_text("{}")
        (self.run / "metrics.jsonl").write_text('{"iteration": 3}\n')

    def obstruct(self, place):
        if not os.path.lexists(place):
            place.parent.mkdir(exist_ok=True)
            OBSTACLES[self.draw.choice(list(OBSTACLES))](place, self.precious)


def names_in_the_way(attempt):
    """Before a start: it is refused, or finds the newest checkpoint, and saves."""
    draw, run = attempt.draw, attempt.run
    for _ in range(draw.randint(1, 5)):
        step = f"step-{draw.randint(1, 6):06d}{draw.choice(ENDINGS)}"
        name = draw.choice([step, step, "origin", "origin.tmp", "config.json.00ff.tmp"])
        attempt.obstruct(run / draw.choice(["checkpoints", "trajectory", ""]) / name)
    try:
        make_folder(run)
    except AdrpoError:
        return "refused"
    remove_left_overs(run)
    found = newest_whole(run, alone)
    assert found.iteration == 3 and holds(found, 3)
    saves(run, 4, 4, keep=1)
    assert newest_whole(run, alone).iteration == 4
    return "held"


def names_in_the_way_of_saves(attempt):
    for iteration in range(3, 7):
        for ending in ENDINGS:
            if attempt.draw.random() < 0.4:
                attempt.obstruct(attempt.run / "checkpoints" / f"step-{iteration:06d}{ending}")
        saves(attempt.run, iteration, 10 * iteration, attempt.draw.randint(1, 3))
        there = committed(attempt.run / "checkpoints")
        assert holds(Reader(there[iteration]), 10 * iteration)
    return "held"


def changed(attempt, file, how):
    """Changes a file, and puts its time back."""
    draw, before, data = attempt.draw, file.stat(), bytearray(file.read_bytes())
    at = draw.randrange(len(data))
    if how == "flip":
        data[at] ^= 1 << draw.randrange(8)
    elif how == "cut":
        del data[at:]
    elif how == "grow":
        data += b"x" * draw.randint(1, 9)
    elif how == "overwrite":
        data[at : at + 64] = b"\1" * len(data[at : at + 64])
    else:
        data = (attempt.run / "checkpoints" / "step-000002" / file.name).read_bytes()
    file.write_bytes(data)
    os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))


def damage(attempt):
    """Of the newest checkpoint: every reader refuses it, a resume takes the one before."""
    draw, run = attempt.draw, attempt.run
    folder, name = run / "checkpoints" / "step-000003", f"{run}@3"
    file = folder / draw.choice(["rank-000.safetensors", "manifest.json"])
    if draw.random() < 0.5:
        require_whole(Reader(folder))  # its hashes are remembered
    how = draw.choice(["flip", "cut", "grow", "overwrite", "another's", "obstacle"])
    if how == "obstacle":
        file.unlink()
        attempt.obstruct(file)
    else:
        changed(attempt, file, how)
    for read in (
        lambda: require_whole(open_checkpoint(name)),
        lambda: pin_origin(name, attempt.top / "origin", alone),
        lambda: Reader(folder).whole("w"),
    ):
        with pytest.raises(CheckpointError):
            read()
    assert not inspect(name).is_whole
    found = newest_whole(run, alone)
    assert found.iteration == 2 and holds(found, 2)
    return "refused"


def gone(attempt):
    """`checkpoints/` is not there, empty, or something else: nothing begins."""
    run = attempt.run
    shutil.move(run / "checkpoints", attempt.top / "away")
    if attempt.draw.random() < 0.8:
        attempt.obstruct(run / "checkpoints")
    lines = (run / "metrics.jsonl").read_bytes()
    with pytest.raises(AdrpoError):
        make_folder(run)
        remove_left_overs(run)
        assert newest_whole(run, alone) is None
        check_may_begin(run, fresh=False)
    assert (run / "metrics.jsonl").read_bytes() == lines
    return "refused"


def fork(attempt):
    for name in ("origin", "origin.tmp"):
        if attempt.draw.random() < 0.7:
            attempt.obstruct(attempt.top / name)
    iteration = attempt.draw.randint(1, 3)
    reader = pin_origin(f"{attempt.run}@{iteration}", attempt.top / "origin", alone)
    assert holds(reader, iteration) and not list(Reader(attempt.top / "origin").faults())
    return "held"


KINDS = (names_in_the_way, names_in_the_way_of_saves, damage, gone, fork)


def test_no_attempt_on_a_run_folder_loses_or_takes_what_it_should_not(tmp_path, monkeypatch):
    monkeypatch.setenv("ADRPO_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(file_hashes, "SETTLED", -1.0)
    counts = Counter()
    for number in range(ATTEMPTS):
        top, kind = tmp_path / str(number), KINDS[number % len(KINDS)]
        attempt = Attempt(top, random.Random(1400 + number))
        try:
            counts[f"{kind.__name__}: {kind(attempt)}"] += 1
        except Exception as error:
            raise AssertionError(f"attempt {number}, {kind.__name__}") from error
        assert attempt.precious.is_whole(), (number, kind.__name__)
        shutil.rmtree(top)
    print(f"\n{ATTEMPTS} attempts: {dict(counts)}")
