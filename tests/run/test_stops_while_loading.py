"""A signal while a run loads: heard within a step, on every rank, whichever loop it comes into."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest

from adrpo_scale.core.errors import STOPPED
from adrpo_scale.core.folder_lock import LOCK
from tests.support import starts
from tests.support.faults import SignalAt

# Loop → (the function that it calls at each step, steps that the run needs of it at least).
LOOPS = {
    "embedding": "adrpo_scale.domains.embeddings:_add",
    "hashing": "adrpo_scale.core.file_hashes:file_sha256",
    "weights": "adrpo_scale.engines.fsdp2:first_values",
}


@pytest.mark.parametrize(
    ("loop", "sent"),
    [
        ("embedding", signal.SIGTERM),
        pytest.param("embedding", signal.SIGINT, marks=pytest.mark.slow),
        pytest.param("hashing", signal.SIGTERM, marks=pytest.mark.slow),
        pytest.param("weights", signal.SIGTERM, marks=pytest.mark.slow),
    ],
)
def test_a_signal_at_one_rank_stops_the_loading(
    tmp_path: Path, loop: str, sent: signal.Signals
) -> None:
    victim = 1 if loop == "embedding" else 0  # rank 0 alone hashes, and reads what all hold
    at = SignalAt(LOOPS[loop], call=2, signals=(sent,), victim=victim, slow=0.3)
    fresh = {"ADRPO_CACHE": str(tmp_path / "cache")}
    patient = ["checkpoint.grace_seconds=1000"]  # however slow the machine is
    start = starts.train(tmp_path, 2, patient, prepare=at, environment=fresh)
    assert start.wait() == [STOPPED, STOPPED], start.text()
    record = starts.records_of(tmp_path / "run")[-1]
    assert record["outcome"] == f"stopped by {sent.name}" and record["iteration"] == -1
    assert record["seconds_from_signal"] < 30
    assert not list((tmp_path / "run" / "checkpoints").glob("*"))


def test_a_step_that_takes_for_ever_is_not_waited_for(tmp_path: Path) -> None:
    """A library that imports, or a file server that does not answer."""
    at = SignalAt(LOOPS["weights"], call=1, slow=600.0)
    start = starts.train(tmp_path, 1, ["checkpoint.grace_seconds=8"], prepare=at)
    assert start.wait() == [STOPPED], start.text()
    record = starts.records_of(tmp_path / "run")[-1]
    assert record["outcome"] == "stopped by SIGTERM" and record["iteration"] == -1
    assert 1 <= record["seconds_from_signal"] < 300
    assert not (tmp_path / "run" / LOCK).exists()
