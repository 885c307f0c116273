"""Prompt embeddings on disk: few files, bounded maps, and every rank writes."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from adrpo_scale.core.errors import CacheError, DiskSpaceError, StopRequested
from adrpo_scale.core.host_memory import free_host_memory
from adrpo_scale.core.signals import Signals, stoppable
from adrpo_scale.domains import embedding_ranks, embedding_store, embeddings
from adrpo_scale.domains.embedding_ranks import chosen_ranks
from adrpo_scale.domains.embedding_store import (
    ASIDE,
    StoreReader,
    StoreWriter,
    cache_folder,
    damaged,
    index_of,
    text_hash,
)
from adrpo_scale.domains.embeddings import (
    bytes_to_cache,
    embedding_file,
    encoder_fingerprint,
    load_embeddings,
    row_bytes,
)
from adrpo_scale.hub.weights import find_model
from tests.support.ranks import run_ranks
from tests.support.tiny import MODEL

CPU = torch.device("cpu")
TEXTS = [f"a red ring {number}" for number in range(40)]


@pytest.fixture(autouse=True)
def cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    monkeypatch.setenv("ADRPO_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def load(texts: list[str]) -> embeddings.PromptEmbeddings:
    return load_embeddings(
        find_model(MODEL),
        texts,
        t5=False,
        max_sequence_length=12,
        device=CPU,
        dtype=torch.float32,
    )


def files() -> list[Path]:
    return sorted(cache_folder().glob("*/*.safetensors"))


def rows(found: embeddings.PromptEmbeddings, texts: list[str]) -> torch.Tensor:
    return torch.cat([part.flatten(1) for part in found.batch(texts, CPU)], 1)


# ---- few files -----------------------------------------------------------------------------------


def test_many_prompts_are_one_file_and_more_of_them_are_another(cache: Path) -> None:
    first = rows(load(TEXTS[:30]), TEXTS[:30])
    (before,) = files()
    both = load(TEXTS)
    assert len(files()) == 2 and before in files()
    assert torch.equal(rows(both, TEXTS[:30]), first)
    assert not list(cache.rglob("*.part"))


def test_files_have_a_limit_and_so_has_the_number_that_is_mapped(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    whole = rows(load(TEXTS), TEXTS)
    for path in files():
        path.unlink()
    model = find_model(MODEL)
    monkeypatch.setattr(embedding_store, "FILE_BYTES", 5 * row_bytes(model, 12, torch.float32))
    monkeypatch.setattr(embedding_store, "MAPPED", 2)
    found = load(TEXTS)
    assert len(files()) == 8
    assert torch.equal(rows(found, TEXTS), whole)
    assert torch.equal(rows(found, TEXTS[::-1]), whole.flip(0))
    maps = Path("/proc/self/maps").read_text()
    assert sum(str(path) in maps for path in files()) <= 2


def _loaded(rank: int, world: int, cache: str) -> tuple[int, torch.Tensor]:
    os.environ["ADRPO_CACHE"] = cache
    found = load(TEXTS)
    mine = [path for path in files() if len(index_of([path])) < len(TEXTS)]
    return len(mine), rows(found, TEXTS)


def test_every_rank_writes_its_share_and_the_bits_are_those_of_one_process(cache: Path) -> None:
    alone = rows(load(TEXTS), TEXTS)
    (count, first), (same, second) = run_ranks(_loaded, 2, str(cache / "both"))
    assert count == same == 0  # the shares of both ranks are joined
    assert torch.equal(first, alone) and torch.equal(second, alone)
    assert not list((cache / "both").rglob(f"*{ASIDE}"))


def test_rows_that_a_killed_run_set_aside_are_found(cache: Path) -> None:
    expected = rows(load(TEXTS), TEXTS)
    (path,) = files()
    aside = path.rename(path.with_suffix(ASIDE))
    load(TEXTS[:1])  # it may be another run's, which goes on
    assert aside.is_file()
    os.utime(aside, (0, 0))
    assert torch.equal(rows(load(TEXTS), TEXTS), expected)
    assert not aside.exists() and path.is_file()


def test_what_cannot_be_joined_stays_in_its_files(cache: Path, tmp_path: Path) -> None:
    parts = []
    for number in range(3):
        writer = StoreWriter(cache)
        writer.add(str(number), torch.full((2, 2), float(number)), torch.ones(2))
        parts += writer.set_aside()
    whole = parts[1].read_bytes()
    parts[1].write_bytes(b"damaged")
    kept = index_of(embedding_store.join(cache, parts))
    assert kept.keys() == {text_hash("0"), text_hash("2")}
    parts = [path.rename(path.with_suffix(ASIDE)) for path in sorted(cache.glob("*.safetensors"))]
    next(part for part in parts if part.read_bytes() == b"damaged").write_bytes(whole)
    (joined,) = embedding_store.join(cache, parts)
    assert len(index_of([joined])) == 3 and list(cache.iterdir()) == [joined]


# ---- host memory -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("facts", "chosen"),
    [
        ([("a", 100)] * 8, [0, 1, 2, 3, 4]),  # half of 100 for encoders of 10
        ([("a", 400), ("a", 60)] + [("b", 15)] * 2, [0, 1, 2]),  # one a node at least
        ([("a", None)] * 3, [0, 1, 2]),
    ],
)
def test_as_many_ranks_embed_as_host_memory_takes(
    facts: list[tuple[str, int | None]], chosen: list[int]
) -> None:
    assert chosen_ranks(facts, 10) == chosen


def _short_of_memory(rank: int, world: int, cache: str) -> tuple[bool, torch.Tensor]:
    os.environ["ADRPO_CACHE"] = cache
    built: list[Any] = []
    pipeline = embeddings._pipeline
    embeddings._pipeline = lambda *given: (built.append(1), pipeline(*given))[1]
    embedding_ranks.free_host_memory = lambda: 1
    found = load(TEXTS)
    return bool(built), rows(found, TEXTS)


def test_one_rank_of_a_node_without_room_embeds_for_all(cache: Path) -> None:
    alone = rows(load(TEXTS), TEXTS)
    (first, one), (second, two) = run_ranks(_short_of_memory, 2, str(cache / "both"))
    assert first and not second
    assert torch.equal(one, alone) and torch.equal(two, alone)


def test_bytes_of_the_encoders_are_those_of_the_models() -> None:
    model = find_model(MODEL)
    pipeline = embeddings._pipeline(model, False, CPU, torch.float32)
    encoders = (pipeline.text_encoder, pipeline.text_encoder_2)
    held = sum(p.numel() for encoder in encoders for p in encoder.parameters())
    assert embedding_ranks.encoder_bytes(model, False, torch.bfloat16) == 2 * held
    free = free_host_memory()
    assert free is None or 0 <= free < 1 << 50


# ---- what earlier runs left ----------------------------------------------------------------------


def test_files_of_one_prompt_each_are_taken_over() -> None:
    fingerprint = encoder_fingerprint(find_model(MODEL), False, 12, "torch.float32")
    row = rows(load(TEXTS[:1]), TEXTS[:1])
    files()[0].unlink()
    sequence = torch.full((89, 128), 2.0)
    old = embedding_file(fingerprint, TEXTS[0])
    old.parent.mkdir(parents=True)
    save_file({"sequence": sequence, "pooled": torch.full((96,), 3.0)}, old)
    broken = embedding_file(fingerprint, TEXTS[1])
    broken.parent.mkdir(parents=True, exist_ok=True)
    broken.write_bytes(b"\0")
    found = load(TEXTS[:2])
    taken, pooled = found.batch(TEXTS[:1], CPU)
    assert torch.equal(taken[0], sequence) and bool((pooled == 3).all())
    assert rows(found, TEXTS[1:2]).shape == row.shape


def test_a_damaged_file_is_written_again() -> None:
    row = rows(load(TEXTS[:3]), TEXTS[:3])
    (path,) = files()
    path.write_bytes(path.read_bytes()[:-100])
    assert torch.equal(rows(load(TEXTS[:3]), TEXTS[:3]), row)


def flip(path: Path, bit: int) -> None:
    content = bytearray(path.read_bytes())
    content[bit // 8] ^= 1 << bit % 8
    path.write_bytes(content)


@pytest.mark.parametrize("place", [0.2, 0.5, 0.99])
def test_a_flipped_bit_is_found_and_its_prompt_encoded_anew(
    place: float, caplog: pytest.LogCaptureFixture
) -> None:
    row = rows(load(TEXTS[:9]), TEXTS[:9])
    (path,) = files()
    flip(path, int(place * 8 * path.stat().st_size))
    assert torch.equal(rows(load(TEXTS[:9]), TEXTS[:9]), row)
    said = [line for line in caplog.messages if "is damaged: its prompt embeddings" in line]
    assert len(said) == 1
    caplog.clear()
    assert torch.equal(rows(load(TEXTS[:9]), TEXTS[:9]), row) and caplog.messages == []
    assert len(files()) == 1


def _found(rank: int, world: int, cache: str) -> torch.Tensor:
    os.environ["ADRPO_CACHE"] = cache
    return rows(load(TEXTS), TEXTS)


def test_ranks_share_the_comparison_and_agree_on_what_is_damaged(cache: Path) -> None:
    alone = rows(load(TEXTS), TEXTS)
    (path,) = files()
    flip(path, 8 * (path.stat().st_size - 1))  # in a row of the last rank
    for found in run_ranks(_found, 2, str(cache)):
        assert torch.equal(found, alone)
    assert damaged([*index_of(files()).values()]) == set()


def test_no_flipped_bit_of_a_file_reaches_a_run(tmp_path: Path) -> None:
    writer = StoreWriter(tmp_path)
    parts = {text: (torch.randn(3, 4), torch.randn(5)) for text in TEXTS[:4]}
    for text, (sequence, pooled) in parts.items():
        writer.add(text, sequence, pooled.bfloat16())
    writer.flush()
    (path,) = writer.files
    whole, seen = path.read_bytes(), {"absent": 0, "damaged": 0, "same": 0}
    for bit in range(0, 8 * len(whole), 41):
        flip(path, bit)
        for text, place in index_of([path]).items():
            if damaged([place]):
                seen["damaged"] += 1
                continue
            (known,) = (name for name in parts if text_hash(name) == text)
            sequence, pooled = StoreReader({known: place}).row(known)
            assert torch.equal(sequence, parts[known][0]), bit
            assert torch.equal(pooled, parts[known][1].bfloat16()), bit
            seen["same"] += 1
        seen["absent"] += 4 - len(index_of([path]))
        path.write_bytes(whole)
    assert min(seen.values()) > 0, seen


def test_what_is_no_file_of_ours_counts_as_absent(cache: Path) -> None:
    row = rows(load(TEXTS[:3]), TEXTS[:3])
    (path,) = files()
    folder = path.parent
    tensors = load_file(path)
    os.mkfifo(folder / "a.safetensors")
    (folder / "b.safetensors").mkdir()
    (folder / "c.safetensors").write_bytes(b"")
    (folder / "d.safetensors").symlink_to("nowhere")
    names = [text_hash(text) for text in TEXTS[:3]]
    for k, texts in enumerate((names[:2], 7, [1, 2, 3], "a", [*names, "more"], None, {"a": 1})):
        save_file(tensors, folder / f"e{k}.safetensors", {"texts": json.dumps(texts)})
    save_file({"sequence": torch.ones(3)}, folder / "f.safetensors", {"texts": json.dumps(names)})
    save_file(tensors, folder / "g.safetensors", {"texts": "[" * 9999})
    for other in files():
        os.utime(other, ns=(1, 1), follow_symlinks=False)
    os.utime(path)  # the others come first
    assert torch.equal(rows(load(TEXTS[:3]), TEXTS[:3]), row)
    path.unlink()
    assert torch.equal(rows(load(TEXTS[:3]), TEXTS[:3]), row)


def test_files_of_before_there_were_hashes_are_used() -> None:
    load(TEXTS[:3])
    (path,) = files()
    tensors = load_file(path)
    names = json.dumps([text_hash(text) for text in TEXTS[:3]])
    marked = {name: tensor + 1 for name, tensor in tensors.items()}
    save_file(marked, path, {"texts": names})
    found = load(TEXTS[:3])
    assert torch.equal(found.batch(TEXTS[:3], CPU)[1], marked["pooled"])


HASHES: list[Callable[[str], str]] = [
    lambda text: "",
    lambda text: '{"a": ',
    lambda text: "[]",
    lambda text: "[" * 9999,
    lambda text: "\0" * len(text),
    lambda text: text.replace("0", "1"),  # other hashes of the same files
    lambda text: json.dumps(dict.fromkeys(json.loads(text), None)),
    lambda text: json.dumps({k: v[:-1] for k, v in json.loads(text).items() if k != "sha256"}),
]


@pytest.mark.parametrize("harm", HASHES)
def test_hashes_that_are_damaged_are_made_again(cache: Path, harm: Callable[[str], str]) -> None:
    load(TEXTS[:1])
    memory = cache / "embeddings" / "file-hashes.json"
    before = memory.read_text()
    memory.write_text(harm(before))
    load(TEXTS[:1])
    assert len(files()) == 1  # the encoders are the same ones
    assert json.loads(memory.read_text()) == json.loads(before)


def test_hashes_of_before_there_was_one_over_them_are_taken_over(cache: Path) -> None:
    load(TEXTS[:1])
    memory = cache / "embeddings" / "file-hashes.json"
    known = json.loads(memory.read_text())
    del known["sha256"]
    memory.write_text(json.dumps(known))
    load(TEXTS[:1])
    assert json.loads(memory.read_text()) == known  # nothing was hashed again


# ---- counting ------------------------------------------------------------------------------------


def test_what_is_to_be_written_is_counted(cache: Path) -> None:
    model = find_model(MODEL)
    each = row_bytes(model, 12, torch.float32)

    def counted(texts: list[str], dtype: torch.dtype = torch.float32) -> int:
        return bytes_to_cache(model, texts, False, 12, dtype)

    assert counted([*TEXTS, *TEXTS]) == 40 * each  # before any encoder was hashed
    load(TEXTS)
    assert counted([*TEXTS, "another"]) == each
    assert counted(TEXTS, torch.bfloat16) == 20 * each
    assert files()[0].stat().st_size == pytest.approx(40 * each, rel=0.05)


# ---- errors and stops ----------------------------------------------------------------------------


def test_a_cache_that_cannot_be_written_is_named(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("ADRPO_CACHE", str(tmp_path / "file"))
    with pytest.raises(CacheError, match=r"the cache .* cannot be written .*: point ADRPO_CACHE"):
        load(TEXTS[:1])


def test_room_is_checked_first(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ADRPO_QUOTA_COMMAND", "echo 10")
    monkeypatch.setattr(embeddings, "_pipeline", lambda *_: pytest.fail("encoders were loaded"))
    with pytest.raises(DiskSpaceError, match=r"no room for prompt embeddings in .*ADRPO_CACHE"):
        load(TEXTS)


class _Ringing:
    """A pipeline that gets a signal while it encodes its second batch."""

    def __init__(self, inner: Any) -> None:
        self._inner, self._calls = inner, 0

    def encode_prompt(self, **given: Any) -> Any:
        self._calls += 1
        if self._calls == 2:
            os.kill(os.getpid(), signal.SIGTERM)
        return self._inner.encode_prompt(**given)


def _stopped(rank: int, world: int, cache: str, ringing: int) -> bool:
    os.environ["ADRPO_CACHE"] = cache
    pipeline = embeddings._pipeline
    if rank == ringing:
        embeddings._pipeline = lambda *given: _Ringing(pipeline(*given))
    try:
        with Signals(), stoppable():
            load([f"{text} {k}" for k in range(4) for text in TEXTS])
    except StopRequested:
        return True
    return False


def test_a_signal_stops_every_rank_and_keeps_what_was_encoded(cache: Path) -> None:
    assert run_ranks(_stopped, 2, str(cache), 1) == [True, True]
    kept = index_of(files())
    assert len(kept) == 4 * embeddings.ENCODE_BATCH  # two rounds of two ranks
    assert text_hash(f"{TEXTS[0]} 0") in kept


def test_a_cache_that_is_cleared_does_not_end_a_run(
    cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = load(TEXTS[:3])
    (path,) = files()
    path.unlink()
    assert rows(found, TEXTS[:3]).shape[0] == 3
    load(TEXTS[:3])
    monkeypatch.setattr(embedding_store, "MAPPED", 1)
    both = load([*TEXTS[:3], "another"])
    for path in files():
        path.unlink()
    with pytest.raises(CacheError, match="removed or damaged while this run needs"):
        rows(both, [*TEXTS[:3], "another", TEXTS[0]])
