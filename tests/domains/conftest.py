"""What the tests of a domain share."""

from __future__ import annotations

import pytest

from tests.support.audio_parts import Parts, shaken
from tests.support.tiny_audio import (
    save_full,
)


@pytest.fixture(scope="module", params=["full", "lora"])
def parts(request, tmp_path_factory):
    made = Parts(save_full(tmp_path_factory.mktemp("omni") / "m"), f"domain.train={request.param}")
    shaken(made.policy)
    made.rows = made.sample()
    return made
