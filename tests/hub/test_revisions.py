"""A need that names a commit: brought, pinned, found offline, and never mixed with another one."""

from __future__ import annotations

import pytest

from adrpo_scale.core.errors import ConfigError, ModelNotFoundError
from adrpo_scale.hub.lock import read_lock
from adrpo_scale.hub.needs import HubNeed, joined
from adrpo_scale.hub.prefetch import prefetch
from adrpo_scale.hub.weights import find_model, revision_of
from tests.support.published import POLICY


@pytest.fixture
def commits(hub, place):
    """The commits of own/policy, the older one first; the newer has a file more."""
    older = hub.repos[POLICY].main
    (place / "work" / "NOTE.txt").write_text("newer")
    return older, hub.add("own/policy", place / "work").main


def need(revision):
    return HubNeed("own/policy", "pipeline", ("*",), revision=revision)


def test_a_commit_is_brought_and_found_offline_beside_a_newer_one(hub, commits):
    older, newer = commits
    assert revision_of(find_model(need(None))) == newer
    assert revision_of(find_model(need(older))) == older
    hub.down = True
    assert [revision_of(find_model(need(c))) for c in commits] == [older, newer]


def test_a_commit_is_pinned_and_another_is_refused(hub, commits):
    older, newer = commits
    prefetch([need(older)])
    assert read_lock()[POLICY].revision == older
    hub.down = True
    assert revision_of(find_model(need(older))) == revision_of(find_model(need(None))) == older
    hub.down = False
    for ask in (lambda: find_model(need(newer)), lambda: prefetch([need(newer)])):
        with pytest.raises(ModelNotFoundError, match=f"and revision {newer} is asked for: take"):
            ask()
    prefetch([need(newer)], upgrade=True)
    assert read_lock()[POLICY].revision == newer


def test_a_repository_is_needed_at_one_commit(commits):
    older, newer = commits
    assert joined([need(None), need(older)])[0].revision == older
    with pytest.raises(ConfigError, match="is needed at the revisions"):
        joined([need(older), need(newer)])
