"""Exports that are wrong or cannot be made: found, named, and nothing of them left."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from adrpo_scale.checkpoint.locate import open_checkpoint
from adrpo_scale.checkpoint.reader import Reader
from adrpo_scale.core.errors import CheckpointError, DiskSpaceError, ExportError
from adrpo_scale.export import adapter, exporter, folder, tensor_check, values, verify
from adrpo_scale.export.base import Request, parse_request, parse_size
from adrpo_scale.export.exporter import export
from adrpo_scale.export.place import RECORD, UNFINISHED
from tests.support.exported_pictures import TRAINED, quick

# ---- a wrong export does not get through ---------------------------------------------------------


def test_a_lost_alpha_is_found(root, tmp_path, monkeypatch):
    honest = adapter.lora_settings
    monkeypatch.setattr(adapter, "lora_settings", lambda m: honest(m) | {"lora_alpha": 40})
    with pytest.raises(ExportError, match=r"not the policy: outputs differ \(load_lora_weights"):
        export(str(root / "runs/lora"), Request(tmp_path / "a", "adapter"))
    assert names(tmp_path) == ["a.unverified"]


def test_a_wrong_merge_is_found(root, tmp_path, monkeypatch, without_the_process):
    honest = folder.MergedWeights.read

    def wrong(self, name, start=0, stop=None):
        tensor = honest(self, name, start, stop)
        return tensor * 1.01 if name.endswith("0.attn.to_q.weight") else tensor

    monkeypatch.setattr(folder.MergedWeights, "read", wrong)
    with pytest.raises(ExportError, match=r"transformer_blocks\.0\.attn\.to_q\.weight is off by"):
        quick(root, "lora", tmp_path / "a", "merged", verify="tensors")
    assert names(tmp_path) == ["a.unverified"]


def test_a_file_that_changed_after_it_was_written_is_found(root, tmp_path):
    exported = quick(root, "lora", tmp_path / "a", "merged")
    files = {path: facts.sha256 for path, facts in exported.written.files.items()}
    job = {"export": str(exported.folder), "files": files}
    tensor_check.check_hashes(job)
    flip_a_bit(exported.folder / TRAINED)
    with pytest.raises(tensor_check.CheckError, match="has SHA-256"):
        tensor_check.check_hashes(job)


def test_tensors_that_are_not_the_models_are_found(tmp_path):
    def compare(tensors):
        save_file(tensors, tmp_path / "x")
        return tensor_check.compare(tmp_path, ["x"], {"a": (2,)}, {"a": "torch.float32"})

    assert compare({"a": torch.zeros(2)}) == 1
    for wrong in (
        {"b": torch.zeros(2)},
        {"a": torch.zeros(3)},
        {"a": torch.zeros(2, dtype=torch.float16)},
        {"a": torch.tensor([0.0, torch.nan])},
        {},
    ):
        with pytest.raises(tensor_check.CheckError):
            compare(wrong)


def test_a_value_that_is_no_number_is_off():
    found = torch.tensor([1.0, torch.nan, 1.0])
    assert not values._off(found, torch.ones(3).double(), values.NOTHING) <= 1
    assert values._off(torch.ones(3), torch.ones(3).double(), values.NOTHING) == 0


def test_a_missing_tensor_is_found_also_where_python_optimises(tmp_path, monkeypatch):
    source, optimised = Path(tensor_check.__file__), {"__name__": "optimised"}
    exec(compile(source.read_text(), source, "exec", optimize=2), optimised)
    save_file({"a": torch.zeros(2)}, tmp_path / "x")
    shapes = {"a": (2,), "b": (2,)}
    with pytest.raises(optimised["CheckError"], match="missing"):
        optimised["compare"](tmp_path, ["x"], shapes, "torch.float32")
    monkeypatch.setenv("PYTHONOPTIMIZE", "2")
    monkeypatch.setenv("ADRPO_KEPT", "1")
    assert "PYTHONOPTIMIZE" not in verify.environment() and "ADRPO_KEPT" in verify.environment()


@pytest.mark.slow
def test_the_check_finds_a_missing_tensor_where_python_is_told_to_optimise(
    root, tmp_path, monkeypatch
):
    with monkeypatch.context() as patch:
        patch.setattr(exporter, "verify", fail(ExportError("no")))
        with pytest.raises(ExportError, match="kept, unverified"):
            quick(root, "lora", tmp_path / "a", "merged", verify="tensors")
    weights = tmp_path / "a.unverified" / TRAINED
    tensors = load_file(weights)
    del tensors[min(tensors)]
    save_file(tensors, weights, {"format": "pt"})
    monkeypatch.setenv("PYTHONOPTIMIZE", "1")
    with pytest.raises(ExportError, match="cannot be used"):
        quick(root, "lora", tmp_path / "a", "merged", verify="tensors", recheck=True)
    assert names(tmp_path) == ["a.unverified"]


# ---- only the check failed -----------------------------------------------------------------------


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def fail(error):
    def verify(*arguments):
        raise error

    return verify


@pytest.mark.parametrize("error", [ExportError("no memory"), OSError("gone"), KeyboardInterrupt()])
def test_an_export_whose_check_fails_is_kept_and_checked_again(
    root, tmp_path, monkeypatch, without_the_process, error, capsys
):
    settings = {"verify": "tensors"}
    with monkeypatch.context() as patch:
        patch.setattr(exporter, "verify", fail(error))
        kind = KeyboardInterrupt if isinstance(error, KeyboardInterrupt) else ExportError
        with pytest.raises(kind) as raised:
            quick(root, "lora", tmp_path / "a", "adapter", **settings)
        said = str(raised.value) + capsys.readouterr().out.replace("\n", " ")
        assert "kept, unverified, as" in said and "--recheck" in said
    assert names(tmp_path) == ["a.unverified"]
    assert RECORD in names(tmp_path / "a.unverified")
    weights = (tmp_path / "a.unverified" / adapter.PEFT_FILE).stat()
    monkeypatch.setattr(exporter, "write_adapter", fail(AssertionError("exported again")))
    exported = quick(root, "lora", tmp_path / "a", "adapter", recheck=True, **settings)
    assert names(tmp_path) == ["a"] and exported.verdict.level == "tensors"
    assert (tmp_path / "a" / adapter.PEFT_FILE).stat().st_ino == weights.st_ino
    assert "README.md" in names(tmp_path / "a") and RECORD not in names(tmp_path / "a")


def test_a_recheck_does_not_believe_its_record(root, tmp_path, monkeypatch, without_the_process):
    """What the record leaves out would not be compared with the checkpoint."""
    for form in ("merged", "adapter"):
        place = tmp_path / form
        with monkeypatch.context() as patch:
            patch.setattr(exporter, "verify", fail(ExportError("no")))
            with pytest.raises(ExportError, match="kept, unverified"):
                quick(root, "lora", place, form, verify="tensors")
        record = tmp_path / f"{form}.unverified" / RECORD
        stated = json.loads(record.read_text())
        record.write_text(json.dumps(stated | {"files": {}}))
        with pytest.raises(ExportError, match="it was not compared"):
            quick(root, "lora", place, form, verify="tensors", recheck=True)
        record.write_text(json.dumps(stated))
        assert quick(root, "lora", place, form, verify="tensors", recheck=True).verdict


def test_a_recheck_is_of_the_same_export(root, tmp_path, monkeypatch):
    def again(**settings):
        return quick(root, "lora", tmp_path / "a", "adapter", recheck=True, **settings)

    with pytest.raises(ExportError, match="holds no unverified export"):
        again(verify="tensors")
    with monkeypatch.context() as patch:
        patch.setattr(exporter, "verify", fail(ExportError("no")))
        for given in ({}, {"recheck": True}):  # fails twice, and is still there
            with pytest.raises(ExportError, match="kept, unverified"):
                quick(root, "lora", tmp_path / "a", "adapter", verify="tensors", **given)
    with pytest.raises(ExportError, match="--dtype: None there, bfloat16 asked"):
        again(verify="tensors", dtype=torch.bfloat16)
    with pytest.raises(ExportError, match="--recheck with --verify none"):
        parse_request(tmp_path / "a", "adapter", "evaluated", None, "5GB", "none", False, True)
    quick(root, "lora", tmp_path / "a", "adapter")  # another attempt replaces it
    assert names(tmp_path) == ["a"]
    (tmp_path / "b.unverified").mkdir()
    with pytest.raises(ExportError, match="not left over from an export"):
        quick(root, "lora", tmp_path / "b", "adapter")


def flip_a_bit(path):
    data = bytearray(path.read_bytes())
    data[-100] ^= 1
    path.write_bytes(data)


# ---- refused -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("run", "form", "settings", "message"),
    [
        ("lora", "full", {}, "trained LoRA adapters: use --as adapter or --as merged"),
        ("full", "adapter", {}, "trained all parameters: use --as full"),
        ("full", "merged", {}, "trained all parameters: use --as full"),
        ("full", "full", {"weights": "ema"}, "no moving average"),
        ("untrained", "adapter", {}, "none of the 23 trained tensors differs"),
        ("untrained", "merged", {}, "would be the base model itself"),
        ("still", "merged", {}, "use --dtype float32"),
    ],
)
def test_what_cannot_be_exported_is_one_clear_error(root, tmp_path, run, form, settings, message):
    with pytest.raises(ExportError, match=message):
        quick(root, run, tmp_path / "a", form, **settings)
    assert list(tmp_path.iterdir()) == []


def test_a_training_below_half_precision_survives_in_float32(root, tmp_path):
    written = quick(root, "still", tmp_path / "a", "merged", dtype=torch.float32).written
    assert 0 < written.changed <= written.trained


def test_float16_that_overflows_is_refused(root, tmp_path, monkeypatch):
    honest = Reader.read

    def large(self, name, start=0, stop=None, set_name="policy"):
        values = honest(self, name, start, stop, set_name)
        return values + 1e6 if name == "proj_out.bias" else values

    monkeypatch.setattr(Reader, "read", large)
    with pytest.raises(ExportError, match=r"proj_out\.bias has values up to 1e\+06"):
        quick(root, "full", tmp_path / "a", "full", dtype=torch.float16)


def test_another_base_model_is_refused_and_a_moved_one_can_be_named(root, tmp_path):
    request = Request(tmp_path / "a", "merged", verify="none")
    run = str(root / "runs/lora")
    shutil.copytree(root / "base-model", tmp_path / "other")
    flip_a_bit(tmp_path / "other" / TRAINED)
    with pytest.raises(ExportError, match="name its folder with --base"):
        export(run, request, str(tmp_path / "other"))
    shutil.copytree(root / "base-model", tmp_path / "moved")
    assert export(run, request, str(tmp_path / "moved")).folder.is_dir()


def test_a_broken_checkpoint_is_refused(root, tmp_path):
    shutil.copytree(root / "runs/lora", tmp_path / "run")
    newest = open_checkpoint(str(tmp_path / "run")).folder
    flip_a_bit(newest / "rank-000.safetensors")
    with pytest.raises(CheckpointError, match=r"rank-000\.safetensors is damaged"):
        export(str(tmp_path / "run"), Request(tmp_path / "a", "merged"))


def test_the_target_must_be_free(root, tmp_path):
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.tex").write_text("precious")
    with pytest.raises(ExportError, match="new or empty folder"):
        quick(root, "lora", tmp_path / "full", "adapter")
    (tmp_path / "a.tmp").mkdir()
    (tmp_path / "a.tmp" / "thesis.tex").write_text("precious")
    with pytest.raises(ExportError, match="not left over from an export"):
        quick(root, "lora", tmp_path / "a", "adapter")
    assert (tmp_path / "a.tmp" / "thesis.tex").read_text() == "precious"
    (tmp_path / "empty").mkdir()
    assert quick(root, "lora", tmp_path / "empty", "adapter").folder.is_dir()


def test_what_a_killed_export_left_is_replaced(root, tmp_path):
    (tmp_path / "a.tmp" / "transformer").mkdir(parents=True)
    (tmp_path / "a.tmp" / UNFINISHED).touch()
    (tmp_path / "a.tmp" / "transformer" / "half.safetensors").write_bytes(b"0" * 99)
    place = quick(root, "lora", tmp_path / "a", "merged").folder
    assert not (tmp_path / "a.tmp").exists()
    assert not list(place.rglob("half*")) and not (place / UNFINISHED).exists()


@pytest.fixture
def small_disk(tmp_path):
    """A filesystem of 1 MB; the demo's merged folder has 3.2 MB."""
    place = tmp_path / "disk"
    place.mkdir()
    mounted = (
        shutil.which("mount")
        and not subprocess.run(
            ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", place], capture_output=True
        ).returncode
    )
    if not mounted:
        pytest.skip("mounting a small filesystem needs root")
    yield place
    subprocess.run(["umount", place], check=True)


def test_a_full_disk_leaves_nothing(root, small_disk, monkeypatch):
    with pytest.raises(DiskSpaceError, match="no room for the export"):
        quick(root, "lora", small_disk / "a", "merged")
    # Another program fills it in the meantime:
    monkeypatch.setattr(exporter, "_check_room", lambda *arguments: None)
    with pytest.raises(ExportError, match="No space left"):
        quick(root, "lora", small_disk / "a", "merged")
    assert list(small_disk.iterdir()) == []


def test_words_that_are_not_known_are_named():
    def asked(form="merged", dtype=None, size="5GB", verify="none"):
        return parse_request(Path("a"), form, "evaluated", dtype, size, verify, False)

    assert asked(dtype="bf16").dtype == torch.bfloat16
    for wrong in ({"form": "lora"}, {"dtype": "int8"}, {"size": "5"}, {"verify": "all"}):
        with pytest.raises(ExportError, match="expected"):
            asked(**wrong)


def test_sizes_are_decimal():
    assert parse_size("5GB") == 5 * 10**9
    assert parse_size("1.5 mb") == 1_500_000
    for wrong in ("0GB", "-1GB", "GB", "5GiB", ""):
        with pytest.raises(ExportError, match="expected a size"):
            parse_size(wrong)
