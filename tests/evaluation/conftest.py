"""What the tests of MMAU share."""

from __future__ import annotations

import pytest

from tests.support.mmau import KEY, Server


@pytest.fixture
def server(monkeypatch):
    made = Server()
    monkeypatch.setenv("OPENAI_BASE_URL", made.url)
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    yield made
    made.http.shutdown()
    made.http.server_close()
