"""Exports: loaded with nothing of this package, equal to the policy, complete, and refused in time.

One small run per form is trained once. Its base model lies in a folder of its own, with what a
download brings along, under a name that no export may tell.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import peft
import pytest
import torch
from huggingface_hub import ModelCard
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

from adrpo_scale.checkpoint.locate import ORIGIN, open_checkpoint, pin_origin
from adrpo_scale.checkpoint.reader import Reader
from adrpo_scale.cli import main as cli
from adrpo_scale.core.errors import CheckpointError, DiskSpaceError, ExportError
from adrpo_scale.core.paths import resolve_path
from adrpo_scale.core.seeding import Purpose, normal
from adrpo_scale.core.tensor_files import file_sha256
from adrpo_scale.core.types import DrawKey
from adrpo_scale.evaluation.sample import Source, find_source, sample_to
from adrpo_scale.export import adapter, exporter, folder, load_check, verify
from adrpo_scale.export.base import Request, base_of, parse_request, parse_size
from adrpo_scale.export.copies import is_path, without_paths
from adrpo_scale.export.diffusers_layout import LORA_FILE
from adrpo_scale.export.exporter import UNFINISHED, export
from adrpo_scale.hub.weights import SafetensorsFolder
from adrpo_scale.run.build import build_trainer
from adrpo_scale.run.resume import Start
from tests.support.ranks import FORKSERVER_ENV, run_ranks
from tests.support.shared import CACHE
from tests.support.tiny import FULL, MODEL, demo_config, demo_trainer

SECRET = "ada-lovelace"  # part of every path of this file: no export may tell it
STEPS, SEED, PER_PROMPT = 4, 3, 2
PROMPTS = ["a red ring", "two blue squares", "a green triangle left of a red ring"]
LORA = ["domain.lora.alpha=40", "ema_decay=0.5", "iterations=2", "evaluation.every=1"]
TRAINED = "transformer/diffusion_pytorch_model.safetensors"


# ---- what is exported ------------------------------------------------------------------------


def write_base(to):
    """The demo's pipeline with what a download has beside it."""
    shutil.copytree(resolve_path(MODEL), to)
    (to / "README.md").write_text("---\nlicense: other\nlicense_name: demo-terms\n---\n# Base\n")
    (to / "LICENSE.md").write_text("The terms of the demo model.\n")
    (to / ".gitattributes").write_text("*.bin filter=lfs\n")
    (to / "text_encoder" / "pytorch_model.bin").write_bytes(b"a pickle")
    (to / "vae" / "diffusion_pytorch_model.fp16.safetensors").write_bytes(b"a variant")
    (to / "vae" / "model.safetensors.index.fp16.json").write_text("{}")
    config = to / "text_encoder_2" / "config.json"
    told = json.loads(config.read_text()) | {"_name_or_path": f"/home/{SECRET}/models/clip"}
    config.write_text(json.dumps(told))


def make_runs(rank, world, root, names):
    """Trains the runs of `names` in `root` and saves each."""
    prompts = root / "prompts.jsonl"
    if rank == 0 and not prompts.exists():
        shutil.copy(resolve_path(f"{MODEL}/prompts/train.jsonl"), prompts)
    settings = {
        "lora": LORA,
        "full": [*FULL, "engine.shard=all", "iterations=2"],
        "still": ["optimizer.learning_rate=1e-8"],
        "untrained": [],
    }
    for name in names:
        shared = [
            f"domain.model={root / 'base-model'}",
            f"prompts.train={prompts}",
            "optimizer.learning_rate=1e-2",
            "checkpoint.quota_command=echo 9000000000 # of ada-lovelace@node-17",
            "optimizer.updates=2",
        ]
        config = demo_config(overrides=[*shared, *settings[name]])
        trainer = demo_trainer(root / "runs" / name, config)
        if name != "untrained":
            trainer.train()
        trainer.saver.save_now()


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """Holds base-model/ and runs/ {lora, full (two sharded ranks), still, untrained}."""
    place = tmp_path_factory.mktemp(SECRET)
    write_base(place / "base-model")
    run_ranks(make_runs, 1, place, ["lora", "still", "untrained"], timeout=120)
    run_ranks(make_runs, 2, place, ["full"], timeout=120)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ADRPO_CACHE", str(CACHE))
        patch.setenv("USER", SECRET)
        yield place


@pytest.fixture(scope="module")
def exports(root):
    """One verified export of each form, by form."""
    to = root / "exports"
    return {
        "adapter": export(str(root / "runs/lora"), Request(to / "adapter", "adapter")),
        "merged": export(str(root / "runs/lora@2"), Request(to / "merged", "merged")),
        "full": export(
            str(root / "runs/full"),
            Request(to / "full", "full", dtype=torch.float32, max_shard_bytes=10**6),
        ),
    }


def quick(root, name, to, form, **settings):
    """An export without its verification."""
    run = str(root / "runs" / name)
    return export(run, Request(to, form, **{"verify": "none", **settings}))


def tensors_of(place):
    """Every tensor of the transformer of a pipeline folder."""
    files = (place / "transformer").glob("*.safetensors")
    return {name: tensor for file in files for name, tensor in load_file(file).items()}


def trained(root, name="lora", part="policy"):
    reader = open_checkpoint(str(root / "runs" / name))
    return {n: reader.whole(n, part) for n in reader.names(part)}


def test_every_export_is_what_the_policy_computes(exports):
    for form, exported in exports.items():
        figures = exported.verdict.figures
        off = [value for name, value in figures.items() if name.endswith("off by")]
        assert len(off) == (2 if form == "adapter" else 1)
        assert max(off) <= 1e-5, figures
        assert figures["training moved outputs by"] > 1e-2
        assert exported.written.changed > 0
        assert exported.folder.is_dir() and not exported.folder.with_suffix(".tmp").exists()


# ---- loaded as a user loads it ---------------------------------------------------------------

PLAIN = """
import json, sys
from pathlib import Path

import numpy as np
import torch
from diffusers import SD3Transformer2DModel, StableDiffusion3Pipeline
from peft import PeftModel
from safetensors.torch import load_file

job = json.loads(sys.argv[1])
latents = load_file(job["latents"])["x0"]
without = {"text_encoder_3": None, "tokenizer_3": None}


def pictures(pipeline):
    pipeline.set_progress_bar_config(disable=True)
    rows = [text for text in job["prompts"] for _ in range(job["per_prompt"])]
    return pipeline(
        rows, latents=latents, sigmas=[1 - i / job["steps"] for i in range(job["steps"])],
        guidance_scale=1.0, height=20, width=20, max_sequence_length=12, output_type="np",
    ).images


def load(folder, **parts):
    return StableDiffusion3Pipeline.from_pretrained(
        folder, dtype=torch.float32, local_files_only=True, **without, **parts
    )


found = {"base": pictures(load(job["base"]))}
pipeline = load(job["base"])
pipeline.load_lora_weights(job["adapter"])
found["load_lora_weights"] = pictures(pipeline)
transformer = SD3Transformer2DModel.from_pretrained(
    job["base"], subfolder="transformer", dtype=torch.float32
)
PeftModel.from_pretrained(transformer, job["adapter"])  # adds the adapters in place
found["peft"] = pictures(load(job["base"], transformer=transformer))
for form in ("merged", "full"):
    found[form] = pictures(load(job[form]))
assert not [name for name in sys.modules if name.split(".")[0] == "adrpo_scale"]
for name, images in found.items():
    np.save(Path(job["to"], name + ".npy"), np.round(images * 255).astype(np.uint8))
"""


@pytest.fixture(scope="module")
def plain_pictures(root, exports, tmp_path_factory):
    """What diffusers and peft paint from the exports, by how they were loaded."""
    place = tmp_path_factory.mktemp("plain")
    samples, latents = list(range(len(PROMPTS) * PER_PROMPT)), place / "latents.safetensors"
    save_file({"x0": normal(DrawKey(SEED, 0), samples, Purpose.EVALUATION, (3, 20, 20))}, latents)
    job = {form: str(exported.folder) for form, exported in exports.items()}
    job |= {"base": str(root / "base-model"), "latents": str(latents), "to": str(place)}
    job |= {"prompts": PROMPTS, "per_prompt": PER_PROMPT, "steps": STEPS}
    done = subprocess.run(
        [sys.executable, "-P", "-c", PLAIN, json.dumps(job)],
        env=os.environ | FORKSERVER_ENV,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    return {path.stem: np.load(path) for path in place.glob("*.npy")}


def our_pictures(root, name, to):
    prompts = to / "prompts.txt"
    prompts.write_text("\n".join(PROMPTS) + "\n")
    newest = open_checkpoint(str(root / "runs" / name)).folder
    source: Source = find_source(str(newest))
    paths = sample_to(
        source, prompts, to / name, per_prompt=PER_PROMPT, seed=SEED, weights="trained"
    )
    return np.stack([np.asarray(Image.open(path)) for path in paths])


@pytest.mark.parametrize(
    ("run", "ways"), [("lora", ["load_lora_weights", "peft", "merged"]), ("full", ["full"])]
)
def test_plain_libraries_paint_our_pictures(root, plain_pictures, tmp_path, run, ways):
    ours = our_pictures(root, run, tmp_path).astype(int)
    for way in ways:
        levels = np.abs(plain_pictures[way].astype(int) - ours)
        # The base of the demo is stored in float16, and so is a merge into it.
        assert levels.max() <= (3 if way == "merged" else 1), way
        assert (levels == 0).mean() > (0.9 if way == "merged" else 0.999), way
    assert np.abs(plain_pictures["base"].astype(int) - ours).max() > 20


# ---- the adapter -----------------------------------------------------------------------------


def test_adapter_keeps_every_value_rank_and_alpha(root, exports):
    place, expected = exports["adapter"].folder, trained(root)
    ours = load_file(place / adapter.PEFT_FILE)
    theirs = load_file(place / LORA_FILE)
    assert len(ours) == len(theirs) == len(expected)
    for name, tensor in expected.items():
        bare = name.replace(".default.", ".")
        assert torch.equal(ours[f"base_model.model.{bare}"], tensor)
        assert torch.equal(theirs[f"transformer.{bare}"], tensor)
    config = peft.LoraConfig.from_pretrained(place)
    assert (config.r, config.lora_alpha) == (16, 40)
    assert config.base_model_name_or_path == "base-model"
    with safe_open(place / LORA_FILE, "pt") as file:
        settings = json.loads(file.metadata()["lora_adapter_metadata"])
    assert settings["transformer.lora_alpha"] == 40
    assert {p.name for p in place.iterdir()} == {
        "README.md",
        "LICENSE.md",
        "adapter_config.json",
        adapter.PEFT_FILE,
        LORA_FILE,
    }


def test_adapter_of_the_moving_average_in_bfloat16(root, tmp_path):
    exported = quick(root, "lora", tmp_path / "a", "adapter", ema=True, dtype=torch.bfloat16)
    found = load_file(exported.folder / adapter.PEFT_FILE)
    for name, tensor in trained(root, part="ema").items():
        written = found["base_model.model." + name.replace(".default.", ".")]
        assert torch.equal(written, tensor.to(torch.bfloat16))
    assert "moving average" in (exported.folder / "README.md").read_text()


def test_the_same_export_twice_has_the_same_bytes(root, exports, tmp_path):
    again = quick(root, "lora", tmp_path / "a", "adapter").folder
    # Not of diffusers' file: safetensors writes two entries of metadata in either order.
    for name in (adapter.PEFT_FILE, "adapter_config.json"):
        assert file_sha256(again / name) == file_sha256(exports["adapter"].folder / name)


# ---- complete folders ------------------------------------------------------------------------


def test_merged_is_the_base_with_scaled_products_added(root, exports):
    weights, adapters = tensors_of(root / "base-model"), trained(root)
    found = tensors_of(exports["merged"].folder)
    assert found.keys() == weights.keys()
    for name, weight in weights.items():
        assert found[name].dtype == weight.dtype == torch.float16
        down, up = (
            adapters.get(f"{name.removesuffix('.weight')}.lora_{x}.default.weight") for x in "AB"
        )
        expected = weight.double()
        if down is not None:
            expected = expected + 40 / 16 * (up.double() @ down.double())
        bound = 2**-11 * expected.abs() + 2**-24
        assert bool(((found[name].double() - expected).abs() <= bound).all()), name


def test_full_of_two_sharded_ranks_in_several_files(root, exports):
    place = exports["full"].folder / "transformer"
    index = json.loads((place / "diffusion_pytorch_model.safetensors.index.json").read_text())
    names = sorted(path.name for path in place.glob("*.safetensors"))
    assert names[0] == f"diffusion_pytorch_model-00001-of-{len(names):05d}.safetensors"
    assert len(names) >= 3 and set(index["weight_map"].values()) == set(names)
    for name in names:
        with safe_open(place / name, "pt") as file:
            assert {index["weight_map"][key] for key in file.keys()} == {name}  # noqa: SIM118
            assert file.metadata() == {"format": "pt"}
        assert (place / name).stat().st_size <= 10**6 + 20_000
    found, weights = tensors_of(exports["full"].folder), trained(root, "full")
    for name, tensor in weights.items():
        assert torch.equal(found[name], tensor)
    assert index["metadata"]["total_size"] == sum(t.numel() * 4 for t in found.values())
    assert found.keys() - weights.keys() == {"pos_embed.pos_embed"}  # a buffer: the base's


def test_a_complete_folder_holds_the_pipeline_and_nothing_else(root, exports):
    place, source = exports["merged"].folder, root / "base-model"
    found = {path.relative_to(place).as_posix() for path in place.rglob("*") if path.is_file()}
    expected = {
        path.relative_to(source).as_posix()
        for path in source.rglob("*")
        if path.is_file() and path.parts[-2] not in ("prompts", "reward_clip")
    }
    left_out = {
        ".gitattributes",
        "text_encoder/pytorch_model.bin",
        "vae/diffusion_pytorch_model.fp16.safetensors",
        "vae/model.safetensors.index.fp16.json",
    }
    assert found == expected - left_out
    for name in found - {TRAINED, "README.md", "text_encoder_2/config.json"}:
        assert file_sha256(place / name) == file_sha256(source / name), name
    told = json.loads((place / "text_encoder_2/config.json").read_text())
    assert told["_name_or_path"] == "clip"


def test_link_shares_what_the_base_has(root, tmp_path):
    place = quick(root, "lora", tmp_path / "a", "merged", link=True).folder
    linked = "text_encoder/model.safetensors"
    assert (place / linked).samefile(root / "base-model" / linked)
    assert not (place / TRAINED).samefile(root / "base-model" / TRAINED)


def test_a_component_that_has_pickles_alone_is_refused(root, tmp_path):
    shutil.copytree(root / "base-model", tmp_path / "base")
    weights = tmp_path / "base/text_encoder/model.safetensors"
    weights.rename(weights.with_suffix(".bin"))
    with pytest.raises(ExportError, match="pickles alone"):
        export(
            str(root / "runs/lora"),
            Request(tmp_path / "a", "merged", verify="none"),
            str(tmp_path / "base"),
        )


def test_tensors_are_verified_without_running_the_model(root, tmp_path):
    run = str(root / "runs/lora")
    shards = {"dtype": torch.bfloat16, "max_shard_bytes": 10**6, "ema": True}
    exported = export(run, Request(tmp_path / "a", "merged", verify="tensors", **shards))
    figures = exported.verdict.figures
    assert figures["tensors compared"] == len(tensors_of(exported.folder))
    assert 0 < figures["largest error / rounding"] <= 1
    assert tensors_of(exported.folder)["proj_out.weight"].dtype == torch.bfloat16


# ---- a wrong export does not get through -----------------------------------------------------


def test_a_lost_alpha_is_found(root, tmp_path, monkeypatch):
    honest = adapter.lora_settings
    monkeypatch.setattr(adapter, "lora_settings", lambda m: honest(m) | {"lora_alpha": 16})
    with pytest.raises(ExportError, match=r"not the policy: outputs differ \(load_lora_weights"):
        export(str(root / "runs/lora"), Request(tmp_path / "a", "adapter"))
    assert list(tmp_path.iterdir()) == []


@pytest.fixture
def without_the_process(monkeypatch):
    """Verification of tensors without `load_check.py`, which takes seconds to start."""
    answer = {"tensors": 0, "versions": {}}
    monkeypatch.setattr(verify, "_run_check", lambda *arguments: answer)


def test_a_wrong_merge_is_found(root, tmp_path, monkeypatch, without_the_process):
    honest = folder.MergedWeights.read

    def wrong(self, name, start=0, stop=None):
        tensor = honest(self, name, start, stop)
        return tensor * 1.01 if name.endswith("0.attn.to_q.weight") else tensor

    monkeypatch.setattr(folder.MergedWeights, "read", wrong)
    with pytest.raises(ExportError, match=r"transformer_blocks\.0\.attn\.to_q\.weight is off by"):
        quick(root, "lora", tmp_path / "a", "merged", verify="tensors")
    assert list(tmp_path.iterdir()) == []


def test_a_file_that_changed_after_it_was_written_is_found(root, tmp_path):
    exported = quick(root, "lora", tmp_path / "a", "merged")
    files = {path: facts.sha256 for path, facts in exported.written.files.items()}
    job = {"export": str(exported.folder), "files": files}
    load_check.check_hashes(job)
    flip_a_bit(exported.folder / TRAINED)
    with pytest.raises(AssertionError, match="has SHA-256"):
        load_check.check_hashes(job)


def test_tensors_that_are_not_the_models_are_found(tmp_path):
    def compare(tensors):
        save_file(tensors, tmp_path / "x")
        return load_check.compare(tmp_path, ["x"], {"a": (2,)}, {"a": "torch.float32"})

    assert compare({"a": torch.zeros(2)}) == 1
    for wrong in (
        {"b": torch.zeros(2)},
        {"a": torch.zeros(3)},
        {"a": torch.zeros(2, dtype=torch.float16)},
        {"a": torch.tensor([0.0, torch.nan])},
        {},
    ):
        with pytest.raises(AssertionError):
            compare(wrong)


def flip_a_bit(path):
    data = bytearray(path.read_bytes())
    data[-100] ^= 1
    path.write_bytes(data)


# ---- refused ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("run", "form", "settings", "message"),
    [
        ("lora", "full", {}, "trained LoRA adapters: use --as adapter or --as merged"),
        ("full", "adapter", {}, "trained all parameters: use --as full"),
        ("full", "merged", {}, "trained all parameters: use --as full"),
        ("full", "full", {"ema": True}, "no moving average"),
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
    with pytest.raises(ExportError, match="not an empty folder"):
        quick(root, "lora", tmp_path / "full", "adapter")
    (tmp_path / "a.tmp").mkdir()
    (tmp_path / "a.tmp" / "thesis.tex").write_text("precious")
    with pytest.raises(ExportError, match="in the way"):
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
        return parse_request(Path("a"), form, False, dtype, size, verify, False)

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


# ---- forks -----------------------------------------------------------------------------------


def make_fork(rank, world, root):
    """A run on a reference that was rebased on the run `lora`."""
    origin, run = open_checkpoint(str(root / "runs/lora")), root / "runs/fork"
    overrides = [f"init_from={root / 'runs/lora'}", "rebase_reference=true"]
    overrides += [f"domain.model={root / 'base-model'}", "optimizer.learning_rate=1e-2"]
    run.mkdir()
    pin_origin(str(origin.folder), run / ORIGIN)
    os.environ["ADRPO_CACHE"] = str(CACHE)
    trainer = build_trainer(demo_config(overrides=overrides), run, Start(origin=origin))
    trainer.train()
    trainer.saver.save_now()


def test_a_rebased_fork_is_merged_on_what_it_started_from(root, tmp_path, without_the_process):
    run_ranks(make_fork, 1, root, timeout=60)
    with pytest.raises(ExportError, match="reference was rebased"):
        quick(root, "fork", tmp_path / "a", "adapter")
    exported = quick(root, "fork", tmp_path / "a", "merged", verify="tensors", dtype=torch.float32)
    name = "transformer_blocks.0.attn.to_q"
    first, second = trained(root), trained(root, "fork")
    products = [
        scaling * (t[f"{name}.lora_B.default.weight"] @ t[f"{name}.lora_A.default.weight"])
        for t, scaling in ((first, 40 / 16), (second, 1))
    ]
    expected = tensors_of(root / "base-model")[f"{name}.weight"] + sum(products)
    found = tensors_of(exported.folder)[f"{name}.weight"]
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-6)
    card = (exported.folder / "README.md").read_text()
    assert "started from iteration 2 of lora" in card


# ---- what an export tells --------------------------------------------------------------------


def test_no_export_tells_paths_hosts_or_users(root, exports):
    secrets = {SECRET, str(root), str(Path.home()), "node-17", "quota_command", os.uname().nodename}
    told = [secret.encode() for secret in secrets if len(secret) > 3 and secret != "/root"]
    for exported in exports.values():
        for path in exported.folder.rglob("*"):
            data = path.read_bytes() if path.is_file() else path.name.encode()
            assert not [secret for secret in told if secret in data], path
            if path.suffix in (".json", ".md"):
                assert not re.search(rb"[\s\"'`(=]/(home|tmp|root|scratch|usr|mnt)/", data), path


def test_the_card_says_what_it_is_and_where_it_comes_from(root, exports):
    document = open_checkpoint(str(root / "runs/lora")).manifest.document
    for form, exported in exports.items():
        card = ModelCard.load(exported.folder / "README.md")
        assert card.data.license == "other" and card.data.license_name == "demo-terms"
        assert card.data.library_name == "diffusers" and card.data.pipeline_tag == "text-to-image"
        assert card.data.base_model is None  # a folder's name is no id of the hub
        for text in ("`base-model`", document["base"]["sha256"], "seed: 0", "algorithm: adrpo"):
            assert text in card.text, (form, text)
        assert 'prompts.train = "prompts.jsonl"' in card.text
        assert "off by" in card.text and "| clip |" in card.text
    adapter_card = (exports["adapter"].folder / "README.md").read_text()
    assert "| reward | held_out |" in adapter_card and "iteration 2 |" in adapter_card
    assert "There was no evaluation" in (exports["full"].folder / "README.md").read_text()


def test_a_checkpoint_without_its_run_can_be_exported(root, tmp_path):
    alone = tmp_path / "somewhere" / "step"
    shutil.copytree(open_checkpoint(str(root / "runs/lora")).folder, alone)
    place = export(str(alone), Request(tmp_path / "a", "adapter", verify="none")).folder
    assert "There was no evaluation" in (place / "README.md").read_text()
    assert "It was not verified" in (place / "README.md").read_text()


RUNNER = """
import os, sys
from pathlib import Path

for folder in sys.argv[1:]:
    os.chdir(folder)
    for block in Path("README.md").read_text().split("```python\\n")[1:]:
        exec(compile(block.split("```")[0], folder, "exec"), {})
    assert Path("sample.png").is_file()
assert not [name for name in sys.modules if name.split(".")[0] == "adrpo_scale"]
"""


def test_the_cards_usage_examples_run_as_they_stand(root, exports, tmp_path):
    places = [shutil.copytree(e.folder, tmp_path / form) for form, e in exports.items()]
    # The base has no id of the hub, so the example says its folder's name.
    (tmp_path / "adapter" / "base-model").symlink_to(root / "base-model")
    done = subprocess.run(
        [sys.executable, "-P", "-c", RUNNER, *places],
        env=os.environ | FORKSERVER_ENV,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    for place in places:
        assert Image.open(place / "sample.png").size == (20, 20)


@pytest.mark.parametrize(
    ("model", "revision", "name", "is_hub_id"),
    [
        ("stabilityai/stable-diffusion-3-medium-diffusers", "f" * 40, None, True),
        ("models/sd3", None, "sd3", False),
        ("/scratch/ada/sd3/", None, "sd3", False),
        ("/home/ada/hub/models--org--sd3/snapshots/ff", "ff", "org/sd3", True),
        ("demo:image", None, "demo:image", False),
    ],
)
def test_a_base_model_is_named_without_its_path(model, revision, name, is_hub_id):
    found = base_of(model, revision, "0" * 64)
    assert (found.name, found.is_hub_id) == (name or model, is_hub_id)


def test_paths_are_told_from_other_strings():
    for text in ("/home/ada/x", "~/models", "C:\\Users\\ada", "../ada/x"):
        assert is_path(text), text
    for text in ("image/png", "/", "a red ring", "https://a/b", "stabilityai/sd3", "</s>", "5/8"):
        assert not is_path(text), text
    before = {"a": ["/home/ada/x", 1], "b": {"c": "/data/ada/model.bin", "d": None}}
    assert without_paths(before) == {"a": ["x", 1], "b": {"c": "model.bin", "d": None}}


# ---- parts -----------------------------------------------------------------------------------


def test_headers_tell_shape_and_type_without_reading(root):
    stored = SafetensorsFolder(root / "base-model" / "transformer", "diffusion_pytorch_model")
    for name, tensor in tensors_of(root / "base-model").items():
        assert (stored.shape(name), stored.dtype(name)) == (tuple(tensor.shape), tensor.dtype)


def test_the_command_exports_and_says_what_it_did(root, tmp_path):
    line = ["export", str(root / "runs/lora"), "--to", str(tmp_path / "a"), "--as", "adapter"]
    answer = CliRunner().invoke(cli.app, [*line, "--verify", "none"])
    assert answer.exit_code == 0, answer.output
    for text in ("trained tensors differ", "not verified", f"export: {tmp_path / 'a'}"):
        assert text in answer.output
    assert (tmp_path / "a" / LORA_FILE).is_file()
    refused = CliRunner().invoke(cli.app, line)
    assert isinstance(refused.exception, ExportError)
