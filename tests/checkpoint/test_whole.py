"""No reader takes a tensor from a file that has not the hash of its manifest."""

from __future__ import annotations

import ast
import os
import random
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

import adrpo_scale
from adrpo_scale.checkpoint.base import CheckpointConfig
from adrpo_scale.checkpoint.inspect import inspect
from adrpo_scale.checkpoint.locate import ORIGIN, open_checkpoint
from adrpo_scale.checkpoint.reader import Reader
from adrpo_scale.checkpoint.shelf import committed, hash_part, newest_whole
from adrpo_scale.checkpoint.store import FULL, Store
from adrpo_scale.checkpoint.whole import require_whole
from adrpo_scale.cluster.plan.trial import _loaded
from adrpo_scale.core import dist, file_hashes
from adrpo_scale.core.errors import CheckpointError
from adrpo_scale.core.paths import ASSETS
from adrpo_scale.core.preempt import Signals
from adrpo_scale.core.types import FlatRange, Prompt
from adrpo_scale.domains.decoding import SamplingConfig
from adrpo_scale.evaluation.evaluate import evaluate
from adrpo_scale.evaluation.file import load_evaluation
from adrpo_scale.evaluation.language.writers import WriterModel, writer_of
from adrpo_scale.evaluation.mmau.evaluate import Subject, _evaluate
from adrpo_scale.evaluation.sample import domain_of, find_source, sample_to
from adrpo_scale.export.base import Request
from adrpo_scale.export.exporter import export
from adrpo_scale.run.resume import find_start
from tests.run.test_find_start import config_of
from tests.run.test_old_runs import GOLDEN
from tests.support.documents import document
from tests.support.obstacles import OBSTACLES, Precious
from tests.support.ranks import run_ranks

STEP = Path("checkpoints/step-000002")


@pytest.fixture
def memory(tmp_path, monkeypatch):
    """Hashes are remembered in a cache of the test's own, also of files that are new."""
    monkeypatch.setenv("ADRPO_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(file_hashes, "SETTLED", -1.0)
    return tmp_path / "cache" / "embeddings" / "file-hashes.json"


@pytest.fixture
def run(tmp_path, memory):
    """The folder of a run of two iterations."""
    to = tmp_path / "run"
    shutil.copytree(GOLDEN / "runs" / "image", to, ignore=shutil.ignore_patterns("expected"))
    return to


def flip(path, place=-5, bit=0):
    data = bytearray(path.read_bytes())
    data[place] ^= 1 << bit
    path.write_bytes(data)


def saved(rank, world, folder, size=8):
    place = FlatRange((size * world,), size * rank, size * (rank + 1))
    sets = {"policy": {"w": (place, torch.arange(float(place.start), place.stop))}}
    store = Store(folder, CheckpointConfig(), timeout_seconds=60)
    store.save(FULL, 2, sets, document(2))
    store.wait()
    assert store.ended[0].error is None


def test_no_flipped_bit_is_read(tmp_path, memory):
    saved(0, 1, tmp_path)
    file, draw = tmp_path / STEP / "rank-000.safetensors", random.Random(14)
    content = file.read_bytes()
    assert Reader(tmp_path / STEP).whole("w").tolist() == list(range(8))
    for _ in range(100):
        flip(file, draw.randrange(len(content)), draw.randrange(8))
        with pytest.raises(CheckpointError, match="its SHA-256 is not the manifest's"):
            Reader(tmp_path / STEP).read("w", 0, 1)
        file.write_bytes(content)
    assert Reader(tmp_path / STEP).whole("w").tolist() == list(range(8))


def said_at_a_start(run):
    """The message of a start that finds nothing else."""
    with pytest.raises(CheckpointError, match="none of the 1 checkpoints") as error:
        newest_whole(run, lambda reader: [hash_part(reader)])
    return str(error.value)


@pytest.mark.parametrize("obstacle", OBSTACLES)
def test_no_other_file_is_read_in_its_place(tmp_path, memory, obstacle):
    saved(0, 1, tmp_path)
    file = tmp_path / STEP / "rank-000.safetensors"
    file.unlink()
    OBSTACLES[obstacle](file, Precious(tmp_path / "elsewhere"))
    with pytest.raises(CheckpointError, match=r"is missing|bytes|no regular file|cannot read"):
        require_whole(Reader(tmp_path / STEP))
    with pytest.raises(CheckpointError):
        Reader(tmp_path / STEP).whole("w")
    assert inspect(str(tmp_path / STEP)).facts["faults"]
    assert said_at_a_start(tmp_path)


def test_a_file_is_hashed_once_and_again_when_it_changes_in_any_way(tmp_path, memory):
    saved(0, 1, tmp_path, 1 << 20)
    file = tmp_path / STEP / "rank-000.safetensors"

    def bytes_read():
        begin = read_so_far()
        require_whole(Reader(tmp_path / STEP))
        return read_so_far() - begin

    size = file.stat().st_size
    assert bytes_read() >= size
    assert bytes_read() < size / 10
    before = file.stat()
    flip(file)
    os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))  # bytes and times as before
    with pytest.raises(CheckpointError, match="SHA-256"):
        require_whole(Reader(tmp_path / STEP))
    flip(file)
    assert bytes_read() >= size


def read_so_far():
    """Bytes that this process has read from files."""
    return int(Path("/proc/self/io").read_text().split()[1])


def test_a_file_that_changed_a_moment_ago_is_hashed_again(tmp_path, memory, monkeypatch):
    monkeypatch.setattr(file_hashes, "SETTLED", 1000.0)
    saved(0, 1, tmp_path)
    require_whole(Reader(tmp_path / STEP))
    assert not memory.exists()


@pytest.mark.parametrize("content", ["", "[1]", "{", "null", '{"a": 1}', "other"])
def test_a_damaged_memory_neither_condemns_nor_absolves(tmp_path, memory, content):
    saved(0, 1, tmp_path)
    require_whole(Reader(tmp_path / STEP))
    if content == "other":
        content = memory.read_text().replace("a", "b")
    memory.write_text(content)
    require_whole(Reader(tmp_path / STEP))
    flip(tmp_path / STEP / "rank-000.safetensors")
    with pytest.raises(CheckpointError, match="SHA-256"):
        require_whole(Reader(tmp_path / STEP))


def test_without_a_memory_everything_is_hashed(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("ADRPO_CACHE", str(tmp_path / "file"))
    monkeypatch.setattr(file_hashes, "SETTLED", -1.0)
    saved(0, 1, tmp_path)
    require_whole(Reader(tmp_path / STEP))


def finds_out(rank, world, folder):
    saved(rank, world, folder)
    if rank == 0:
        flip(folder / STEP / "rank-001.safetensors")
    try:
        dist.barrier()
        require_whole(Reader(folder / STEP))
    except CheckpointError as error:
        return str(error), error.agreed
    return None


def test_every_rank_hashes_a_part_and_all_end_with_the_same_error(tmp_path):
    first, second = run_ranks(finds_out, 2, tmp_path)
    assert first == second and first[1]
    assert "rank-001.safetensors is damaged" in first[0] and "Name another" in first[0]


# ---- commands ------------------------------------------------------------------------------------


def samples(run, to):
    source = find_source(str(run))
    prompts = to / "prompts.txt"
    prompts.write_text("a red circle\n")
    sample_to(source, prompts, to / "out", per_prompt=1, seed=0, weights="raw")


def evaluates(run, to):
    subject = Subject("x", find_source(str(run)), {}, to / "out")
    benchmark = SimpleNamespace(revision="", sha256="", questions=())
    _evaluate(SimpleNamespace(), benchmark, (), subject, to / "out", SimpleNamespace())


def judges(run, to):
    table = f"""
    benchmark = "images"
    to = "{to / "out"}"
    prompts = {{ file = "demo:image/prompts/held_out.jsonl" }}
    scorers = [{{ kind = "clip", model = "demo:image/reward_clip" }}]
    models.ours.run = "{run}"
    """
    (to / "table.toml").write_text(table)
    evaluate(load_evaluation(to / "table.toml"), to / "out")


def writes(run, to):
    text = shutil.copytree(GOLDEN / "runs" / "text_rm", to / "text")
    flip(text / STEP / "rank-000.safetensors")
    writer = writer_of(
        WriterModel(run=str(text)), SamplingConfig(max_new_tokens=8), torch.device("cpu")
    )
    writer.prepare([Prompt(0, "x")])


def tries(run, to):
    with Signals() as signals:
        _loaded(config_of(f"init_from={run}"), to / "out", signals)


def forks(run, to):
    (to / "out").mkdir()
    try:
        find_start(config_of(f"init_from={run}"), to / "out", allowed=["init_from"])
    finally:
        assert not list((to / "out").iterdir())
        (to / "out").rmdir()


def exports(run, to):
    export(str(run), Request(to / "out", "adapter"))


def inspects(run, to):
    inspection = inspect(str(run))
    assert not inspection.is_whole
    raise CheckpointError(inspection.facts["faults"][0])


CASES = {
    "evaluation/sample.py": samples,
    "evaluation/mmau/local.py": evaluates,
    "evaluation/rows.py": judges,
    "evaluation/language/writers.py": writes,
    "cluster/plan/trial.py": tries,
    "checkpoint/locate.py": forks,
    "export/exporter.py": exports,
    "checkpoint/inspect.py": inspects,
}


@pytest.mark.parametrize("module", CASES)
def test_a_command_refuses_a_damaged_checkpoint_before_it_begins(run, tmp_path, module):
    flip(run / STEP / "rank-000.safetensors")
    (tmp_path / "work").mkdir()
    with pytest.raises(CheckpointError, match="its SHA-256 is not the manifest's"):
        CASES[module](run, tmp_path / "work")
    assert not (tmp_path / "work" / "out").exists()


def test_every_module_that_opens_checkpoints_is_among_the_cases():
    root, opening, mapping = Path(adrpo_scale.__file__).parent, set(), set()
    for path in sorted(root.rglob("*.py")):
        module = path.relative_to(root).as_posix()
        for call in ast.walk(ast.parse(path.read_text())):
            name = ast.unparse(call.func) if isinstance(call, ast.Call) else ""
            opening |= {module} if name == "open_checkpoint" else set()
            mapping |= {module} if name == "safe_open" and "checkpoint" in module else set()
    assert opening == CASES.keys()
    assert mapping == {"checkpoint/reader.py"}  # which hashes a file before it maps it


def test_adapters_are_added_to_the_weights_that_they_were_trained_on(run, tmp_path):
    model = shutil.copytree(ASSETS / "image", tmp_path / "model")
    source = find_source(str(run), [f"domain.model={model}"])
    domain_of(source)  # the same weights elsewhere
    flip(model / "transformer" / "diffusion_pytorch_model.safetensors")
    with pytest.raises(CheckpointError, match="restore that model"):
        domain_of(source)


def test_a_damaged_source_leaves_the_origin_of_before(run, tmp_path):
    fork = tmp_path / "fork"
    shutil.copytree(run / STEP, fork / ORIGIN)
    flip(run / STEP / "rank-000.safetensors")
    with pytest.raises(CheckpointError, match="SHA-256"):
        find_start(config_of(f"init_from={run}"), fork, allowed=["init_from"])
    assert not list(Reader(fork / ORIGIN).faults()) and os.listdir(fork) == [ORIGIN]
    shutil.rmtree(run)
    start = find_start(config_of(f"init_from={run}"), fork, allowed=["init_from"])
    assert start.origin.iteration == 2


def test_the_remedy_names_the_other_checkpoints(run):
    other = shutil.copytree(run / STEP, run / "trajectory" / "step-000002")
    other.rename(other.with_name("step-000001"))
    flip(run / STEP / "rank-000.safetensors")
    with pytest.raises(CheckpointError, match=rf"Name another checkpoint: {run}@1$"):
        require_whole(open_checkpoint(str(run)))
    assert sorted(committed(run / "trajectory")) == [1]
