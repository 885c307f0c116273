"""What can go wrong with checkpoints, each with what the user is told and what is left."""

from __future__ import annotations

import errno
import json
import os
import shutil
import signal
import subprocess
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from adrpo_scale.checkpoint.base import _digest
from adrpo_scale.checkpoint.reader import Reader
from adrpo_scale.core.paths import ASSETS
from tests.support import starts
from tests.support.faults import FailingReads, FailingWrites, NoSpaceCheck
from tests.support.ranks import run_ranks
from tests.support.tiny import records

SETTINGS = ["checkpoint.every_iterations=1", "checkpoint.keep_last=3"]
THREE = [*SETTINGS, "iterations=3"]
FOUR = [*SETTINGS, "iterations=4"]


@contextmanager
def mounted(folder, size):
    """A tmpfs of `size` (as in its mount option) at `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    command = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        pytest.skip(f"a small filesystem cannot be mounted here: {done.stderr.strip()}")
    try:
        yield folder
    finally:
        subprocess.run(["umount", str(folder)], check=True)


def run(folder, settings, world=1, code=0, prepare=None, flags=(), **options):
    """A start and what it printed; `code` is what every rank must exit with."""
    start = starts.train(folder, world, settings, *flags, prepare=prepare, **options)
    assert start.wait() == [code] * world, start.text()
    return start.text()


def assert_whole(run_folder, iterations):
    assert starts.committed_iterations(run_folder) == iterations
    for iteration in iterations:
        assert not list(Reader(run_folder / f"checkpoints/step-{iteration:06d}").faults())
    assert not list((run_folder / "checkpoints").glob("*.tmp"))


# ---- while saving ------------------------------------------------------------------------------


def test_a_full_disk_stops_before_the_start_with_what_is_needed(tmp_path):
    with mounted(tmp_path / "run" / "checkpoints", "1m"):
        text = run(tmp_path, THREE, code=2)
    assert "no room for 4 checkpoints of 84" in text and "by the disk" in text
    assert "checkpoint.keep_last" in text and "Traceback" not in text
    assert not (tmp_path / "run" / "metrics.jsonl").exists()


@pytest.mark.parametrize("on_failure", ["continue", "stop"])
def test_a_disk_that_fills_up_costs_one_checkpoint_and_not_the_one_before(tmp_path, on_failure):
    """Real ENOSPC on one rank of two; the check is blind, as when others fill it meanwhile."""
    settings = [*SETTINGS, "iterations=6", "checkpoint.keep_last=1"]
    settings += [f"checkpoint.on_failure={on_failure}"]
    with mounted(tmp_path / "run" / "checkpoints", "1600k"):
        text = run(tmp_path, settings, 2, 2, NoSpaceCheck())
        assert "No space left on device" in text and "rank " in text
        assert_whole(tmp_path / "run", [1])
    done = len(records(tmp_path / "run"))
    assert done == 6 if on_failure == "continue" else done < 6
    if on_failure == "continue":
        assert "the state after iteration 6 was not saved" in text
    else:
        assert 'checkpoint.on_failure = "stop"' in text


def test_a_quota_is_asked_for_bytes_and_files(tmp_path):
    quota = tmp_path / "quota"
    command = [*THREE, f"checkpoint.quota_command=cat {quota}"]
    quota.write_text("1000\n")
    assert "MB, and 1.0 kB are free by the quota" in run(tmp_path, command, code=2)
    quota.write_text("999999999 2\n")
    assert "files, and 2 more are allowed" in run(tmp_path, command, code=2)
    quota.write_text("plenty\n")
    text = run(tmp_path, command, code=2)
    assert "printed 'plenty" in text and "expected the free bytes" in text
    quota.write_text("999999999 999\n")
    run(tmp_path, command)


@pytest.mark.parametrize("code", [errno.EIO, errno.EDQUOT])
def test_a_write_that_fails_on_one_rank_is_reported_by_all(tmp_path, code):
    bad = FailingWrites("step-000002. /rank-001", code, victim=1)
    text = run(tmp_path, THREE, 2, 0, bad)
    for rank in (0, 1):
        log = (tmp_path / "run" / "logs" / f"rank-00{rank}.log").read_text()
        assert f"step-000002 was not written: rank 1: [Errno {code}]" in log
    assert os.strerror(code) in text
    assert_whole(tmp_path / "run", [1, 3])


def test_a_manifest_that_cannot_be_written_is_no_commit(tmp_path):
    text = run(tmp_path, THREE, 2, 0, FailingWrites("step-000002. /manifest"))
    assert "step-000002 was not written" in text
    assert_whole(tmp_path / "run", [1, 3])


def test_what_the_disk_cannot_say_now_condemns_nothing(copy):
    """EIO while the newest checkpoint is read: nothing is set aside, the next start has it."""
    text = run(copy, FOUR, 2, 2, FailingReads("step-000003"))
    assert "cannot be read: rank 1" in text and "Nothing was changed" in text
    assert starts.committed_iterations(copy / "run") == [1, 2, 3]
    run(copy, FOUR, 2)
    assert starts.records_of(copy / "run")[-1]["resumed_from"] == 3


def test_a_read_only_folder_is_one_message(tmp_path):
    with mounted(tmp_path / "runs", "4m") as folder:
        subprocess.run(["mount", "-o", "remount,ro", str(folder)], check=True)
        text = run(tmp_path / "logs", THREE, 1, 2, flags=["--run-dir", str(folder / "mine")])
    assert "Read-only file system" in text and "choose another --run-dir" in text
    assert "Traceback" not in text


# ---- while resuming ----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A run of three iterations on two processes, all three checkpoints kept."""
    folder = tmp_path_factory.mktemp("finished")
    run(folder, THREE, 2)
    return folder


@pytest.fixture
def copy(finished, tmp_path):
    shutil.copytree(finished, tmp_path, dirs_exist_ok=True)
    return tmp_path


def flip(path, place):
    data = bytearray(path.read_bytes())
    data[place] ^= 1
    path.write_bytes(data)


def edit_manifest(folder, change):
    """Changes a manifest and gives it the hash of what it then says."""
    path = folder / "manifest.json"
    body = json.loads(path.read_text())
    body.pop("sha256")
    change(body)
    path.write_text(json.dumps({"sha256": _digest(body), **body}))


def escape(body):
    body["files"][0][0] = "../../lock.json"


def overlap(body):
    next(iter(body["sets"]["policy"].values()))[1].append([1, 3, 0])


def incomplete(body):
    next(iter(body["sets"]["policy"].values()))[1].pop()


BROKEN = {
    "truncated": (lambda f: os.truncate(f / "rank-001.safetensors", 1000), "has 1000 bytes"),
    "bit": (lambda f: flip(f / "rank-000.safetensors", -5), "SHA-256 is not the manifest's"),
    "manifest bit": (lambda f: flip(f / "manifest.json", 200), "is damaged"),
    "missing": (lambda f: (f / "rank-000.safetensors").unlink(), "is missing"),
    "no manifest": (lambda f: (f / "manifest.json").unlink(), "is not a committed checkpoint"),
    "empty manifest": (lambda f: (f / "manifest.json").write_text(""), "is damaged"),
    "path": (lambda f: edit_manifest(f, escape), "not a plain name in its own folder"),
    "overlap": (lambda f: edit_manifest(f, overlap), "overlap at element"),
    "incomplete": (lambda f: edit_manifest(f, incomplete), "the shape"),
}


@pytest.mark.parametrize("fault", BROKEN)
def test_a_broken_newest_checkpoint_is_reported_and_the_one_before_is_used(copy, finished, fault):
    damage, message = BROKEN[fault]
    damage(copy / "run" / "checkpoints" / "step-000003")
    text = run(copy, THREE, 2)
    assert "checkpoint step-000003 is broken" in text and message in text
    assert starts.records_of(copy / "run")[-1]["resumed_from"] == 2
    assert starts.differences(copy / "run", finished / "run") == []
    # Set aside, and gone with the next commit.
    assert not list((copy / "run" / "checkpoints").glob("*.broken"))


def test_with_every_checkpoint_broken_nothing_is_changed(copy):
    for folder in (copy / "run" / "checkpoints").iterdir():
        flip(folder / "rank-000.safetensors", -5)
    text = run(copy, FOUR, code=2)
    assert "none of the 3 checkpoints" in text and "Nothing was changed" in text
    assert starts.committed_iterations(copy / "run") == [1, 2, 3]
    assert len(records(copy / "run")) == 3


def test_another_format_version_is_not_skipped(copy):
    change = copy / "run" / "checkpoints" / "step-000003"
    edit_manifest(change, lambda body: body.update(version=2))
    text = run(copy, FOUR, code=2)
    assert "has format version 2, this package reads 1" in text
    assert starts.committed_iterations(copy / "run") == [1, 2, 3]


def test_another_base_model_is_refused(copy):
    model = shutil.copytree(ASSETS / "image", copy / "model")
    moved = [*FOUR, f"domain.model={model}"]
    assert "changed since: domain.model" in run(copy, moved, 2)  # the same weights elsewhere
    weights = model / "transformer" / "diffusion_pytorch_model.safetensors"
    tensors = load_file(weights)
    tensors["proj_out.bias"][0] += 1e-3
    save_file(tensors, weights, {"format": "pt"})
    longer = [*moved, "iterations=5"]
    text = run(copy, longer, 2, code=2)
    assert "was trained on other base weights" in text and "--allow-change base" in text
    run(copy, longer, 2, flags=["--allow-change", "base"])
    scheduler = model / "scheduler" / "scheduler_config.json"
    scheduler.write_text(scheduler.read_text().replace('"shift": 1.0', '"shift": 3.0'))
    text = run(copy, [*moved, "iterations=6"], 2, code=2)
    assert "other files beside the trained weights" in text


def test_other_prompts_are_refused(copy):
    prompts = copy / "prompts.jsonl"
    shutil.copy(ASSETS / "image" / "prompts" / "train.jsonl", prompts)
    moved = [*FOUR, f"prompts.train={prompts}"]
    run(copy, moved)
    prompts.write_text("".join(prompts.read_text().splitlines(keepends=True)[1:]))
    text = run(copy, [*moved, "iterations=5"], code=2)
    assert "other prompts" in text and "--allow-change prompts" in text


def test_settings_that_change_the_maths_are_listed_and_the_others_noted(copy):
    changed = [
        *FOUR,
        "algorithm.beta0=2.5",
        "optimizer.learning_rate=1e-4",
        "logging.pictures_every=7",
    ]
    text = run(copy, changed, code=2)
    assert (
        "algorithm.beta0: 1.0 → 2.5" in text and "optimizer.learning_rate: 0.001 → 0.0001" in text
    )
    assert "logging" not in text.partition("error:")[2]
    some = ["--allow-change", "algorithm"]
    assert "algorithm.beta0" not in run(copy, changed, code=2, flags=some).rpartition("error:")[2]
    both = [*some, "--allow-change", "optimizer.learning_rate"]
    text = run(copy, changed, flags=both)
    assert "logging.pictures_every: 0 → 7 (changes nothing that is learned)" in text
    notes = starts.records_of(copy / "run")[-1]["changed_settings"]
    assert "algorithm.beta0: 1.0 → 2.5 (allowed)" in notes


def test_iterations_are_maths_where_the_learning_rate_depends_on_them(tmp_path):
    cosine = ["optimizer.schedule=cosine"]
    run(tmp_path, [*SETTINGS, "iterations=1", *cosine])
    assert "iterations: 1 → 2" in run(tmp_path, [*SETTINGS, "iterations=2", *cosine], code=2)


def test_other_versions_since_the_last_start_are_stated(copy):
    path = sorted((copy / "run" / "lives").glob("*.json"))[-1]
    record = json.loads(path.read_text())
    record["versions"]["torch"] = "2.11.0"
    path.write_text(json.dumps(record))
    text = run(copy, FOUR)
    assert f"torch: 2.11.0 → {version('torch')}" in text
    assert "world_size: 2 → 1" in text


# ---- two writers -------------------------------------------------------------------------------


def test_a_second_writer_is_refused_while_the_first_is_alive(tmp_path):
    first = starts.train(tmp_path, 1, [*SETTINGS, "iterations=500"])
    lock = tmp_path / "run" / "lock.json"
    while not lock.exists():
        assert all(process.is_alive() for process in first.processes)
    second = starts.Started(tmp_path / "second", 1, starts.train_arguments(tmp_path / "run", THREE))
    assert second.wait() == [2]
    assert "is in use by host" in second.text() and "--run-dir" in second.text()
    first.signal(signal.SIGTERM)
    assert first.wait() == [85], first.text()
    assert not lock.exists()


def test_a_stale_lock_is_taken_over(copy):
    """Of another machine, silent for longer than its expiry."""
    lock = copy / "run" / "lock.json"
    lock.write_text(json.dumps({"token": "x", "job_id": "17", "host": "dead-node", "pid": 1}))
    os.utime(lock, (0, 0))
    assert "taken over from job 17, host dead-node" in run(copy, FOUR)
    lock.write_text(json.dumps({"token": "x", "job_id": "17", "restart_count": "0"}))
    requeued = {"SLURM_JOB_ID": "17", "SLURM_RESTART_COUNT": "1"}
    text = run(copy, [*SETTINGS, "iterations=5"], environment=requeued)
    assert "the job was requeued" in text


def refuses_to_commit(rank, world, folder):
    """The lock is lost while the run is at work."""
    from adrpo_scale.checkpoint.base import CheckpointConfig
    from adrpo_scale.checkpoint.store import FULL, Store
    from adrpo_scale.core.folder_lock import RunLock
    from adrpo_scale.core.types import FlatRange

    lock = RunLock(folder)
    if rank == 0:
        folder.mkdir(exist_ok=True)
        lock.acquire()
    store = Store(folder, CheckpointConfig(), lock.check, 60)
    sets = {"policy": {"w": (FlatRange((4,), 0, 4, rank, world), torch.arange(4.0))}}
    store.save(FULL, 1, sets, {})
    store.wait()
    if rank == 0:
        lock.path.write_text(json.dumps({"token": "other", "host": "elsewhere"}))
    store.save(FULL, 2, sets, {})
    store.wait()
    return [saved.error for saved in store.ended]


def test_a_run_that_has_lost_its_folder_ends(tmp_path):
    """Whatever on_failure says: it must not write into another one's run."""
    start = starts.train(tmp_path, 2, [*SETTINGS, "iterations=500"])
    while not (tmp_path / "run" / "checkpoints" / "step-000001").exists():
        assert all(process.is_alive() for process in start.processes)
    (tmp_path / "run" / "lock.json").write_text(json.dumps({"token": "x", "host": "elsewhere"}))
    assert start.wait(30) == [2, 2], start.text()
    assert start.text().count("error: ") == 1
    assert "taken over by another process (host elsewhere)" in start.text()
    assert len(records(tmp_path / "run")) < 500


def test_nobody_commits_after_losing_the_lock(tmp_path):
    folder = Path(tmp_path / "run")
    for first, second in run_ranks(refuses_to_commit, 2, folder):
        assert first is None and "was taken over by another process" in second
    assert starts.committed_iterations(folder) == [1]
