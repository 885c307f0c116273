"""Runs and exports of the image demo, made once for the tests of this folder.

One small run per kind is trained. Its base model lies in a folder of its own, with what a download
brings along, under a name that no export may tell.
"""

from __future__ import annotations

import pytest
import torch

from adrpo_scale.export import verify
from adrpo_scale.export.base import Request
from adrpo_scale.export.exporter import export
from tests.support.exported_pictures import SECRET, make_runs, write_base
from tests.support.ranks import run_ranks
from tests.support.shared import CACHE


@pytest.fixture(scope="package")
def root(tmp_path_factory):
    """Holds base-model/ and runs/ {lora, full (two sharded ranks), still, untrained}."""
    place = tmp_path_factory.mktemp(SECRET)
    write_base(place / "base-model")
    run_ranks(make_runs, 1, place, ["lora", "still", "untrained"])
    run_ranks(make_runs, 2, place, ["full"])
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ADRPO_CACHE", str(CACHE))
        patch.setenv("USER", SECRET)
        yield place


@pytest.fixture(scope="package")
def exports(root):
    """One verified export of each form, by form."""
    to = root / "exports"
    return {
        "adapter": export(str(root / "runs/lora"), Request(to / "adapter", "adapter")),
        "merged": export(str(root / "runs/lora@2"), Request(to / "merged", "merged")),
        "full": export(
            str(root / "runs/full"),
            Request(to / "full", "full", dtype=torch.float32, max_shard_bytes=10**6),
        ),
    }


@pytest.fixture
def without_the_process(monkeypatch):
    """Verification of tensors without `load_check.py`, which takes seconds to start."""
    answer = {"tensors": 0, "versions": {}}
    monkeypatch.setattr(verify, "_run_check", lambda *arguments: answer)
