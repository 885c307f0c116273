"""The format: what is written, what is read back, what is kept."""

from __future__ import annotations

import hashlib
import math
from unittest import mock

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import load_file

from adrpo_scale.checkpoint import store as store_module
from adrpo_scale.checkpoint.base import (
    CheckpointConfig,
    Manifest,
    Piece,
    StoredTensor,
    check_names,
    check_tiling,
    parse_manifest,
)
from adrpo_scale.checkpoint.reader import Reader
from adrpo_scale.checkpoint.retention import kept, values_of
from adrpo_scale.checkpoint.shelf import committed, remove_left_overs
from adrpo_scale.checkpoint.staging import LARGE, SMALL, Stage, parted, share, stored_bytes
from adrpo_scale.checkpoint.store import FULL, WEIGHTS, Store, _Written
from adrpo_scale.core import dist
from adrpo_scale.core.errors import CheckpointError
from adrpo_scale.core.files import remove_folder, replace_json
from adrpo_scale.core.tensor_files import (
    CHUNK,
    FileFacts,
    TensorFileWriter,
    TensorHeader,
    file_sha256,
)
from adrpo_scale.core.types import FlatRange
from tests.support.documents import document
from tests.support.ranks import run_ranks

# ---- files -------------------------------------------------------------------------------------


def test_a_written_file_is_what_the_library_reads_with_its_hash(tmp_path):
    """Types, a scalar, an empty tensor, one that is not contiguous and one above a chunk."""
    tensors = {
        "a": torch.randn(3, 5).T,
        "b": torch.arange(7, dtype=torch.int64),
        "c": torch.randn(4, 4).bfloat16(),
        "scalar": torch.tensor(2.5, dtype=torch.float64),
        "empty": torch.empty(0, 3),
        "large": torch.randn(CHUNK // 4 + 17),
        "flags": torch.tensor([True, False]),
        "last": torch.randn(2).half(),
    }
    path = tmp_path / "x.safetensors"
    headers = [TensorHeader(n, t.dtype, tuple(t.shape)) for n, t in tensors.items()]
    with TensorFileWriter(path, headers, {"format": "pt"}) as file:
        for tensor in tensors.values():
            file.write(tensor)
        facts = file.finish()
    read = load_file(path)
    assert all(torch.equal(read[n], t) and read[n].dtype == t.dtype for n, t in tensors.items())
    assert safe_open(path, "pt").metadata() == {"format": "pt"}
    assert facts == FileFacts("x.safetensors", path.stat().st_size, file_sha256(path))
    assert facts.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()


def test_json_is_replaced_whole_and_folders_go_with_all_they_hold(tmp_path):
    path = tmp_path / "x.json"
    replace_json(path, {"a": 1})
    with pytest.raises(ValueError, match="JSON compliant"):
        replace_json(path, {"a": math.nan})
    assert path.read_text() == '{\n  "a": 1\n}\n'
    (tmp_path / "d" / "e").mkdir(parents=True)
    (tmp_path / "d" / "e" / "f").write_text("")
    (tmp_path / "d" / "link").symlink_to(path)
    remove_folder(tmp_path / "d")
    remove_folder(tmp_path / "d")  # not there any more: no error
    assert path.exists() and not (tmp_path / "d").exists()


# ---- who stores what ---------------------------------------------------------------------------


@given(
    size=st.integers(0, 5 * SMALL),
    start=st.integers(0, 1000),
    replicas=st.integers(1, 90),
    number=st.integers(0, 500),
)
def test_replicas_share_a_slice_without_gap_or_overlap(size, start, replicas, number):
    shape = (start + size,)
    shares = [
        share(FlatRange(shape, start, start + size, r, replicas), number) for r in range(replicas)
    ]
    end = start
    for begin, stop in sorted(s for s in shares if s[0] < s[1]):
        assert begin == end
        end = stop
    assert end == start + size
    sizes = [stop - begin for begin, stop in shares]
    assert max(sizes) - min(sizes) <= (1 if size >= SMALL else size)


def test_the_stage_keeps_its_values_when_training_goes_on():
    weight = torch.randn(10)
    sets = {"policy": {"w": (FlatRange((20,), 5, 15), weight)}}
    stage = Stage()
    (piece,) = stage.copy(sets)
    before = weight.clone()
    weight.zero_()
    assert torch.equal(piece.values, before) and (piece.start, piece.stop) == (5, 15)
    assert stored_bytes(sets) == 40
    (again,) = stage.copy(sets)
    assert again.values.data_ptr() == piece.values.data_ptr()  # the memory is used again


def test_what_is_large_goes_into_two_files_of_about_the_same_size():
    stage = Stage()
    place = FlatRange((LARGE // 16,), 0, LARGE // 16)
    sets = {"policy": {str(n): (place, torch.zeros(LARGE // 16)) for n in range(6)}}
    pieces = stage.copy(sets)
    assert [len(part) for part in parted(pieces)] == [3, 3]
    assert [len(part) for part in parted(pieces[:2])] == [2]
    assert parted([]) == []


# ---- reading -----------------------------------------------------------------------------------


def saves(rank, world, folder, shape, cuts):
    """Each rank holds a part of a tensor, cut anywhere; one set is replicated on all."""
    whole = torch.arange(float(math.prod(shape)))
    place = FlatRange(shape, cuts[rank], cuts[rank + 1])
    sets = {
        "policy": {"w": (place, whole[place.start : place.stop])},
        "ema": {"w": (FlatRange(shape, 0, len(whole), rank, world), whole + 0.5)},
    }
    store = Store(folder, CheckpointConfig(), timeout_seconds=60)
    store.save(FULL, 7, sets, document(7, note="äöü"))
    store.wait()
    assert store.ended[0].error is None
    return stored_bytes(sets)


def test_any_range_is_read_from_whoever_wrote_it(tmp_path):
    """Three ranks, one with nothing; 5 x 7 elements cut in the middle of rows."""
    shape, cuts = (5, 7), [0, 16, 16, 35]
    assert sum(run_ranks(saves, 3, tmp_path, shape, cuts)) == 2 * 35 * 4
    reader = Reader(committed(tmp_path / "checkpoints")[7])
    assert reader.iteration == 7 and reader.manifest.document["note"] == "äöü"
    whole = torch.arange(35.0)
    for start in range(36):
        for stop in range(start, 36):
            assert torch.equal(reader.read("w", start, stop), whole[start:stop])
    assert torch.equal(reader.whole("w", "ema"), (whole + 0.5).view(shape))
    with pytest.raises(CheckpointError, match="has no exp_avg; it has ema, policy"):
        reader.names("exp_avg")


def forgets(rank, world, folder):
    """Rank 1 does not hold what it should."""
    stop = 10 if rank == 0 else 19
    place = FlatRange((20,), 10 * rank, stop)
    sets = {"policy": {"w": (place, torch.zeros(stop - 10 * rank))}}
    store = Store(folder, CheckpointConfig(), timeout_seconds=60)
    store.save(FULL, 1, sets, document(1))
    store.wait()
    return store.ended[0].error


def test_a_save_that_misses_an_element_is_not_committed(tmp_path):
    errors = run_ranks(forgets, 2, tmp_path)
    assert all("end at element 19, the shape [20] has 20" in error for error in errors)
    assert committed(tmp_path / "checkpoints") == {}
    assert list((tmp_path / "checkpoints").iterdir()) == []


def counts_pieces(rank, world, folder):
    """How many ranks' pieces this rank is told."""
    told, real = [], dist.unpacked

    def watched(data):
        value = real(data)
        told.extend([value] if isinstance(value, _Written) else [])
        return value

    with mock.patch.object(dist, "unpacked", watched):
        saves(rank, world, folder, (5, 7), [0, 16, 16, 35])
    return len(told)


def test_rank_zero_alone_is_told_who_wrote_what(tmp_path):
    """The pieces grow like the ranks, and so would what every rank reads."""
    assert run_ranks(counts_pieces, 3, tmp_path) == [3, 0, 0]


def finds_its_disk_full(rank, world, folder):
    def full(*_):
        raise OSError(28, "No space left on device", "rank-001.safetensors")

    place = FlatRange((20,), 10 * rank, 10 * rank + 10)
    store = Store(folder, CheckpointConfig(), timeout_seconds=60)
    with mock.patch.object(store_module, "_write_file", full if rank else store_module._write_file):
        store.save(FULL, 1, {"policy": {"w": (place, torch.zeros(10))}}, document(1))
        store.wait()
    (ended,) = store.ended
    return ended.error, ended.is_final


def test_every_rank_hears_whose_disk_was_full_and_the_folder_is_gone(tmp_path):
    told = run_ranks(finds_its_disk_full, 2, tmp_path)
    text = "rank 1: [Errno 28] No space left on device: 'rank-001.safetensors'"
    assert told == [(text, False)] * 2
    assert list((tmp_path / "checkpoints").iterdir()) == []


# ---- manifests ---------------------------------------------------------------------------------


def manifest(pieces, shape=(2, 5)):
    files = (FileFacts("rank-000.safetensors", 10, "0" * 64),)
    stored = StoredTensor(shape, tuple(Piece(a, b, files[0].name) for a, b in pieces))
    return Manifest("full", 3, files, {"policy": {"w": stored}}, document(3, large=2**60))


def test_a_manifest_says_the_same_when_it_is_read_back(tmp_path):
    one = manifest([(0, 4), (4, 10)])
    assert parse_manifest(one.to_text(), tmp_path) == one


@pytest.mark.parametrize(
    ("pieces", "message"),
    [
        ([(0, 4), (5, 10)], "leave a gap at element 4"),
        ([(0, 4), (3, 10)], "overlap at element 4"),
        ([(0, 4), (4, 9)], "end at element 9"),
        ([(0, 4), (4, 11)], "end at element 11"),
        ([(0, 4), (4, 4), (4, 10)], "leave a gap"),
        ([], "end at element 0"),
    ],
)
def test_ranges_must_tile(tmp_path, pieces, message):
    with pytest.raises(CheckpointError, match=message):
        check_tiling(manifest(pieces).sets, tmp_path)


def test_every_bit_of_a_manifest_counts(tmp_path):
    text = manifest([(0, 10)]).to_text()
    raw = text.rstrip("\n").encode()
    for place in range(0, 8 * len(raw), 5):
        bad = bytearray(raw)
        bad[place // 8] ^= 1 << (place % 8)
        with pytest.raises(CheckpointError):
            parse_manifest(bad.decode(errors="replace"), tmp_path)


@pytest.mark.parametrize("name", ["../x", "/etc/passwd", "a/b", "..", "", ".x", "a\n"])
def test_file_names_stay_in_their_folder(tmp_path, name):
    with pytest.raises(CheckpointError, match="not a plain name"):
        check_names([name], tmp_path)


# ---- what is kept ------------------------------------------------------------------------------


def test_retention():
    iterations = list(range(1, 11))
    config = CheckpointConfig(keep_last=2, keep_every=4, keep_best=2)
    values = {2: 0.5, 3: 0.9, 7: 0.7, 11: 5.0}
    assert kept(iterations, values, config) == {9, 10, 4, 8, 3, 7}
    lowest = config.model_copy(update={"best_mode": "min"})
    assert kept(iterations, values, lowest) == {9, 10, 4, 8, 2, 7}
    assert kept([], {}, config) == set()


def test_values_are_those_of_one_metric_on_one_split():
    rows = [
        {"iteration": 1, "metric": "reward", "split": "held_out", "value": 2},
        {"iteration": 1, "metric": "reward", "split": "train", "value": 3.0},
        {"iteration": 2, "metric": "reward", "split": "held_out", "value": None},
        {"iteration": 3, "metric": "checker", "split": "held_out", "value": 9.0},
    ]
    assert values_of(rows, "reward", "held_out") == {1: 2.0}


def test_left_overs_are_those_of_saves_and_removals_alone(tmp_path):
    parent = tmp_path / "checkpoints"
    for name in ("step-000001", "step-000002.tmp", "step-000003.trash", "step-9.tmp", "mine"):
        (parent / name).mkdir(parents=True)
    assert remove_left_overs(tmp_path) == ["step-000002.tmp", "step-000003.trash"]
    assert sorted(p.name for p in parent.iterdir()) == ["mine", "step-000001", "step-9.tmp"]


def test_trajectories_are_not_rotated(tmp_path):
    store = Store(tmp_path, CheckpointConfig(keep_last=1))
    sets = {"policy": {"w": (FlatRange((3,), 0, 3), torch.ones(3))}}
    for iteration in (1, 2, 3):
        store.save(WEIGHTS, iteration, sets, document(iteration))
        store.save(FULL, iteration, sets, document(iteration))
    store.wait()
    assert sorted(committed(tmp_path / "trajectory")) == [1, 2, 3]
    assert sorted(committed(tmp_path / "checkpoints")) == [3]
