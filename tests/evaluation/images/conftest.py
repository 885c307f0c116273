"""Small random pipelines, written once for all tests of this folder."""

from __future__ import annotations

import pytest

from tests.support.tiny_pipelines import SIZES, save_pipeline


@pytest.fixture(scope="session")
def pipelines(tmp_path_factory):
    """Folder by key of SIZES."""
    place = tmp_path_factory.mktemp("pipelines")
    return {kind: save_pipeline(kind, place / kind) for kind in SIZES}
