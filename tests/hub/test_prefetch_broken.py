"""`prefetch` that is interrupted, and weights that exist as pickles alone."""

from __future__ import annotations

import json
import os
import shutil
from dataclasses import replace
from pathlib import Path

import huggingface_hub.constants
import pytest
import torch
from safetensors.torch import load_file

from adrpo_scale.core.errors import ModelNotFoundError, WeightsError
from adrpo_scale.hub import access as hub_access
from adrpo_scale.hub.lock import check, fingerprint, read_lock
from adrpo_scale.hub.needs import HubNeed, joined
from adrpo_scale.hub.pickles import compare, load_tensors, pickled_weights, variants_alone
from adrpo_scale.hub.prefetch import prefetch, require_models
from adrpo_scale.hub.weights import find_model, revision_of
from adrpo_scale.rewards.reward_model import RewardModel
from tests.support.hub import FAILS
from tests.support.published import POLICY, REWARD, bring, config

# ---- interruptions, and incomplete folders -------------------------------------------------------


def test_a_connection_that_breaks_is_taken_up_where_it_broke(hub, monkeypatch):
    monkeypatch.setattr(huggingface_hub.constants, "DOWNLOAD_CHUNK_SIZE", 10_000)
    hub.repos[POLICY].breaks = {"model.safetensors": [30_000]}
    bring()
    assert hub.ranges == ["bytes=30000-"]
    assert check(config().needs_from_hub()) == []


def test_an_interrupted_prefetch_is_not_there_until_it_is_run_again(hub):
    hub.repos[POLICY].breaks = {"model.safetensors": [FAILS]}
    with pytest.raises(ModelNotFoundError, match=r"stopped .*500.*Run the same command again"):
        bring()
    assert not Path("prefetch.lock").exists()
    hub.down = True
    assert "model 'own/policy' is not in the cache" in check(config().needs_from_hub())[0]
    with pytest.raises(ModelNotFoundError, match=r"not in the cache.*adrpo-scale prefetch CONFIG"):
        find_model(config().needs_from_hub()[0])
    hub.down = False
    bring()
    assert check(config().needs_from_hub()) == []


def test_what_killed_downloads_left_is_removed_and_others_downloads_are_not(hub, place):
    blobs = place / "cache" / "models--own--policy" / "blobs"
    blobs.mkdir(parents=True)
    for name in ("old.incomplete", "new.incomplete"):
        (blobs / name).touch()
    os.utime(blobs / "old.incomplete", (0, 0))
    bring()
    assert [path.name for path in blobs.glob("*.incomplete")] == ["new.incomplete"]


def test_what_is_missing_is_named_at_once_and_mended(hub):
    bring()
    lock = read_lock()
    (lock[POLICY].folder / "tokenizer.json").unlink()
    weights = (lock[POLICY].folder / "model.safetensors").resolve()
    weights.write_bytes(weights.read_bytes()[:1000])
    (lock[REWARD].folder / "model.safetensors").write_bytes(b"")
    hub.down = True
    with pytest.raises(ModelNotFoundError) as caught:
        require_models(config().needs_from_hub())
    head, policy, reward, remedy = str(caught.value).splitlines()
    assert head == "2 things that this run reads cannot be found here:"
    assert "tokenizer.json is missing" in policy
    assert "model.safetensors has 1000 bytes instead of" in policy
    assert "own/reward" in reward and "has 0 bytes instead of" in reward
    assert "adrpo-scale prefetch CONFIG" in remedy and "HF_HOME" in remedy
    with pytest.raises(ModelNotFoundError, match=r"incomplete .*adrpo-scale prefetch CONFIG"):
        find_model(config().needs_from_hub()[0])
    hub.down = False
    bring()
    assert check(config().needs_from_hub()) == [] and read_lock() == lock


def test_without_a_lock_the_cache_and_then_the_hub_are_asked_as_ever(hub):
    need, *_ = config().needs_from_hub()
    # The hub answers, so all can still be had.
    assert require_models(config().needs_from_hub()) is None
    folder = find_model(need)
    assert revision_of(folder) == hub.repos[POLICY].main
    hub.down = True
    assert find_model(need) == folder
    (folder / "config.json").unlink()
    with pytest.raises(ModelNotFoundError, match="incomplete"):
        find_model(need)


def test_nobody_is_asked_at_the_start_of_a_life(hub, monkeypatch):
    bring()
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    before = len(hub.asked)
    require_models(config().needs_from_hub())
    hub.add("own/other", Path("."))
    assert len(hub.asked) == before and not hub_access.answers()
    with pytest.raises(ModelNotFoundError, match=r"model 'own/other' is not in the cache"):
        require_models(config("domain.model=own/other").needs_from_hub())


def test_one_rank_of_each_node_says_what_is_missing(place, monkeypatch):
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    for rank, is_silent in (("8", False), ("9", True)):
        local = {"RANK": rank, "LOCAL_RANK": str(int(rank) % 8), "LOCAL_WORLD_SIZE": "8"}
        for name, value in ({"WORLD_SIZE": "16"} | local).items():
            monkeypatch.setenv(name, value)
        with pytest.raises(ModelNotFoundError) as caught:
            require_models(config().needs_from_hub())
        assert caught.value.agreed == is_silent


def test_nodes_are_told_apart_by_what_they_see(hub):
    bring()
    needs = config().needs_from_hub()
    seen = fingerprint(needs)
    assert seen == fingerprint(list(reversed(needs))) and len(seen) == 16
    file = read_lock()[POLICY].folder / "config.json"
    text = file.read_bytes()
    file.unlink()
    assert fingerprint(needs) != seen
    file.write_bytes(text)
    assert fingerprint(needs) == seen


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("{", "JSONDecodeError"),
        ('{"format": 2}', "its format is 2"),
        ("[]", "list where a JSON object"),
    ],
)
def test_a_lock_that_is_none(place, text, says):
    Path("prefetch.lock").write_text(text)
    with pytest.raises(ModelNotFoundError, match=says):
        find_model("own/policy")


def test_a_lock_that_is_named_must_be_there(place, monkeypatch):
    monkeypatch.setenv("ADRPO_PREFETCH_LOCK", "gone.lock")
    with pytest.raises(ModelNotFoundError, match=r"ADRPO_PREFETCH_LOCK names gone\.lock"):
        find_model("own/policy")


# ---- pickles -------------------------------------------------------------------------------------


def test_pickles_are_converted_once_and_loaded(hub, published):
    bring()
    (_, need, _), repo = config().needs_from_hub(), read_lock()[REWARD]
    folder = find_model(need)
    assert repo.converted and folder == repo.folder and revision_of(folder) == repo.revision
    safe, original = load_file(folder / "model.safetensors"), published / "reward"
    compare(original / "model.safetensors", safe, folder)  # names, shapes and every byte
    RewardModel(config().rewards[0], torch.device("cpu"))
    assert os.readlink(folder / "config.json").startswith("../../../models--own--reward/snapshots/")
    made = (folder / "model.safetensors").stat().st_mtime_ns
    Path("prefetch.lock").unlink()
    (hub_snapshot,) = folder.parents[2].glob("models--own--reward/snapshots/*")
    (hub_snapshot / "pytorch_model.bin").resolve().unlink()  # 's space is wanted
    (hub_snapshot / "pytorch_model.bin").unlink()
    bring()
    assert (folder / "model.safetensors").stat().st_mtime_ns == made
    assert hub.downloads().count("pytorch_model.bin") == 1
    assert read_lock()[REWARD] == repo


def test_a_model_in_shards_with_tied_weights(hub, published, tmp_path):
    """Every name of the pickle is in the result; what is tied may be a view of something larger."""
    tensors = load_file(published / "policy" / "model.safetensors")
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"]
    tensors["view"] = torch.arange(24.0).view(4, 6)[1:3, ::2]
    tensors["nothing"], tensors["number"] = torch.empty(0, 3), torch.tensor(torch.nan)
    names = sorted(tensors)
    halves = [{n: tensors[n] for n in names[:9]}, {n: tensors[n] for n in names[9:]}]
    files = {f"pytorch_model-0000{k}-of-00002.bin": half for k, half in enumerate(halves, 1)}
    folder = tmp_path / "sharded"
    folder.mkdir()
    (folder / "config.json").write_bytes((published / "policy" / "config.json").read_bytes())
    for name, half in files.items():
        torch.save(half, folder / name)
    index = {"metadata": {}, "weight_map": {n: f for f, half in files.items() for n in half}}
    (folder / "pytorch_model.bin.index.json").write_text(json.dumps(index))
    hub.add("own/sharded", folder)
    bring("domain.model=own/sharded")
    found = read_lock()["model", "own/sharded"].folder
    made = json.loads((found / "model.safetensors.index.json").read_text())["weight_map"]
    assert set(made) == set(tensors) and "pytorch_model.bin.index.json" not in os.listdir(found)
    for file in set(made.values()):
        compare(found / file, {n: tensors[n] for n in names if made[n] == file}, folder)
    del index["weight_map"]["view"]
    (folder / "pytorch_model.bin.index.json").write_text(json.dumps(index))
    hub.add("own/sharded", folder)
    with pytest.raises(WeightsError, match=r"differ in 1 tensors, 'view' first"):
        bring("domain.model=own/sharded", upgrade=True)


class Harmful:
    def __reduce__(self):
        return os.system, ("touch harm",)


def test_a_pickle_that_would_run_code_is_refused(hub, published, tmp_path):
    folder = tmp_path / "harmful"
    folder.mkdir()
    torch.save({"weight": torch.ones(2), "harm": Harmful()}, folder / "pytorch_model.bin")
    (folder / "config.json").write_text("{}")
    hub.add("own/harmful", folder)
    with pytest.raises(WeightsError, match=r"is refused \(GLOBAL posix\.system\)"):
        bring("rewards.0.model=own/harmful")
    assert not Path("harm").exists()
    assert POLICY in read_lock() and ("model", "own/harmful") not in read_lock()
    assert not list((tmp_path / "cache").glob("adrpo_scale/own--harmful/[0-9a-f]*[0-9a-f]"))


def test_pickles_that_are_no_weights(tmp_path):
    torch.save(
        {"weight": torch.ones(2)}, tmp_path / "old.bin", _use_new_zipfile_serialization=False
    )
    assert list(load_tensors(tmp_path / "old.bin")) == ["weight"]
    torch.save({"state_dict": {"weight": torch.ones(2)}, "epoch": 3}, tmp_path / "nested.bin")
    assert list(load_tensors(tmp_path / "nested.bin")) == ["weight"]
    inner = {"state_dict": {"weight": torch.ones(2)}, "lr": 0.1}
    torch.save({"model": inner, "optimizer": {"state": {}}}, tmp_path / "deeper.pth")
    assert list(load_tensors(tmp_path / "deeper.pth")) == ["weight"]
    inner = {"lr": 0.1}
    inner["model"] = inner
    torch.save(inner, tmp_path / "itself.pt")
    with pytest.raises(WeightsError, match="'lr': float where tensors"):
        load_tensors(tmp_path / "itself.pt")
    torch.save({"weight": torch.ones(2), "epoch": 3}, tmp_path / "mixed.bin")
    with pytest.raises(WeightsError, match=r"'epoch': int where tensors by name are expected"):
        load_tensors(tmp_path / "mixed.bin")
    torch.save({"weight": torch.ones(2, dtype=torch.complex64)}, tmp_path / "complex.bin")
    with pytest.raises(WeightsError, match=r"complex64"):
        load_tensors(tmp_path / "complex.bin")
    (tmp_path / "half.bin").write_bytes((tmp_path / "mixed.bin").read_bytes()[:500])
    with pytest.raises(WeightsError, match="cannot be read as weights"):
        load_tensors(tmp_path / "half.bin")


def test_a_converted_file_is_compared_with_its_source(published):
    path = published / "policy" / "model.safetensors"
    tensors = load_file(path)
    compare(path, tensors, path)
    name = min(tensors)
    changed = tensors[name].clone()
    changed.view(-1)[-1] += 1e-3
    for other in (changed, changed.to(torch.bfloat16), changed[:-1]):
        with pytest.raises(WeightsError, match=f"'{name}' is not what"):
            compare(path, tensors | {name: other}, path)
    with pytest.raises(WeightsError, match="other names"):
        compare(path, {name: tensors[name]}, path)


@pytest.mark.parametrize(
    ("files", "pickles"),
    [
        (["model.safetensors", "pytorch_model.bin"], []),
        (["model-00001-of-00002.safetensors", "pytorch_model.bin"], []),
        (["pytorch_model.bin", "pytorch_model-00001-of-00002.bin"], ["pytorch_model.bin"]),
        (["optimizer.bin", "training_args.bin"], []),
        (["open_clip_pytorch_model.bin"], ["open_clip_pytorch_model.bin"]),
        (["model.safetensors", "old/pytorch_model.bin"], []),  # of a folder that is not read
        (["vae/diffusion_pytorch_model.bin"], ["vae/diffusion_pytorch_model.bin"]),
        (["My.pt", "other.pt", "README.md"], ["My.pt"]),  # the need names My.safetensors
        (["My.pt", "My.safetensors"], []),
        (["My.v2.pt", "my.pt", "in/My.pt"], []),
    ],
)
def test_which_weights_exist_as_pickles_alone(files, pickles):
    allow = ("*.safetensors", "vae/*", "My.safetensors")
    need = HubNeed("a/b", allow=allow, ignore=("old/*", "*.bin"))
    assert [file for found in pickled_weights(need, files) for file in found.files] == pickles


@pytest.mark.parametrize(
    ("files", "variants"),
    [
        (["vae/config.json", "vae/diffusion_pytorch_model.fp16.safetensors"], 1),
        (["vae/diffusion_pytorch_model.fp16.safetensors", "vae/diffusion_pytorch_model.bin"], 0),
        (
            [f"vae/diffusion_pytorch_model{x}.safetensors" for x in ("", ".fp16", ".non_ema")],
            0,
        ),
        (["model.fp16-00001-of-00002.safetensors", "model.fp16-00002-of-00002.safetensors"], 2),
        (["model.safetensors", "fp16/model.fp16.safetensors"], 0),  # of a folder that is not read
    ],
)
def test_which_weights_exist_as_variants_alone(files, variants):
    need = HubNeed("a/b", allow=("*.safetensors", "vae/*"), ignore=("*.fp16*",))
    assert len(variants_alone(need, files)) == variants


def test_a_repository_with_variants_alone_is_refused_before_a_download(hub, published, tmp_path):
    folder = shutil.copytree(published / "policy", tmp_path / "variant")
    (folder / "model.safetensors").rename(folder / "model.fp16.safetensors")
    hub.add("own/variant", folder)
    with pytest.raises(ModelNotFoundError, match=r"a variant alone \(model\.fp16\.safetensors\)"):
        prefetch([HubNeed("own/variant", "domain.model", ("*.json", "*.safetensors"))])


def test_needs_of_one_repository_are_joined():
    a = HubNeed("a/b", "domain.model", ("*.json", "vae/*"), ("*.bin", "*.fp16*"))
    b = replace(a, what="rewards.model", allow=("*.json", "*.txt"), ignore=("*.bin",))
    (both,) = joined([a, b])
    assert both.allow == ("*.json", "vae/*", "*.txt") and both.ignore == ("*.bin",)
    assert all(both.covers(name) for name in ("config.json", "vae/x.fp16.safetensors"))
    assert not both.covers("vae/model.bin")
