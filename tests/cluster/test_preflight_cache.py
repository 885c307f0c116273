"""What preflight and plan say about prompts and the cache of their embeddings."""

from __future__ import annotations

from pathlib import Path

import pytest

from adrpo_scale.cluster.preflight.cache import CacheNeed, cache_need, check_cache
from adrpo_scale.cluster.preflight.node import FolderFacts
from adrpo_scale.cluster.preflight.run import SKIPPABLE, PreflightOptions, preflight
from adrpo_scale.core.caches import cache_root
from adrpo_scale.core.errors import CacheError
from tests.support.survey import nodes_with, outcome
from tests.support.tiny import CONFIGS, demo_config

IMAGE = CONFIGS / "demo" / "image_adrpo.toml"
ONLY = frozenset(SKIPPABLE) - {"prompts", "cache"}


@pytest.fixture(autouse=True)
def cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    monkeypatch.setenv("ADRPO_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def options(folder: Path, *overrides: str) -> PreflightOptions:
    return PreflightOptions(IMAGE, overrides, folder / "run", skipped=ONLY)


def test_a_cache_that_cannot_be_written_is_a_fault(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("ADRPO_CACHE", str(tmp_path / "file"))
    assert preflight(options(tmp_path)) == 2
    said = capsys.readouterr().out
    assert "cannot be written" in said and "point ADRPO_CACHE at a folder" in said


def test_room_for_embeddings_is_checked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("ADRPO_QUOTA_COMMAND", "echo 5000000")  # embeddings take 5.6 MB
    assert preflight(options(tmp_path)) == 2
    assert "5.0 MB free by the quota" in capsys.readouterr().out
    monkeypatch.setenv("ADRPO_QUOTA_COMMAND", "echo 9000000")
    assert preflight(options(tmp_path)) == 0
    assert "5.6 MB of prompt embeddings" in capsys.readouterr().out


def test_rows_that_cannot_be_read_are_faults(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = tmp_path / "rows.jsonl"
    rows.write_text('{"prompt": "a"}\n{"id": 1}\n{"id": 2}\n')
    assert preflight(options(tmp_path, f"prompts.train={rows}")) == 2
    said = capsys.readouterr().out
    assert "line 2" in said and "line 3" in said


def test_a_node_with_a_cache_of_its_own_is_named(tmp_path: Path) -> None:
    need = CacheNeed(tmp_path, 1000, 3)
    own = FolderFacts("the file that rank 0 wrote is not in it", None)
    shut = FolderFacts(None, "Read-only file system")
    fine = FolderFacts()
    assert outcome(check_cache(nodes_with("cache", [fine, fine]), need, 0)) == (0, [], "fine")
    for facts in (own, shut):
        nodes = nodes_with("cache", [fine, fine, facts])
        assert outcome(check_cache(nodes, need, 0)) == (4, ["n2"], "fault")
    assert outcome(check_cache(nodes_with("cache", [fine]), need, 10**18)) == (2, [], "fault")


def test_what_a_run_adds_is_counted_before_its_model_is_loaded() -> None:
    need = cache_need(demo_config())
    assert need.prompts == 444 and need.bytes == 445 * 4 * (24 * 128 + 96)
    absent = cache_need(demo_config(overrides=["domain.model=nobody/nothing"]))
    assert absent.bytes is None and absent.prompts == 444 and not absent.faults
    (fault,) = cache_need(demo_config(overrides=["prompts.train=nowhere.txt"])).faults
    assert "no such prompt file" in fault


def test_the_folder_of_the_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/someone")
    monkeypatch.setenv("ADRPO_CACHE", "~/own")
    assert cache_root() == Path("/home/someone/own")
    monkeypatch.delenv("ADRPO_CACHE")
    assert cache_root() == Path("/home/someone/.cache/adrpo_scale")

    def homeless() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(Path, "home", homeless)
    with pytest.raises(CacheError, match="there is no home folder"):
        cache_root()
