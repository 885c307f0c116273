"""A signal while a run loads: heard within a step, on every rank, whichever loop it comes into."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest

from adrpo_scale.core.errors import STOPPED
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
    victim = 0 if loop == "hashing" else 1  # rank 0 alone hashes
    at = SignalAt(LOOPS[loop], call=2, signals=(sent,), victim=victim, slow=0.3)
    fresh = {"ADRPO_CACHE": str(tmp_path / "cache")}
    start = starts.train(tmp_path, 2, prepare=at, environment=fresh)
    assert start.wait() == [STOPPED, STOPPED], start.text()
    record = starts.records_of(tmp_path / "run")[-1]
    assert record["outcome"] == f"stopped by {sent.name}" and record["iteration"] == -1
    assert record["seconds_from_signal"] < 30
    assert not list((tmp_path / "run" / "checkpoints").glob("*"))
