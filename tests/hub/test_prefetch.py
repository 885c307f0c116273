"""`prefetch` and its lock, over a real HTTP hub of small models in the real layouts."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import huggingface_hub.constants
import pytest
import torch
from safetensors.torch import load_file

from adrpo_scale.core.errors import ModelNotFoundError, WeightsError
from adrpo_scale.core.paths import resolve_path
from adrpo_scale.data.prompts import build_prompts
from adrpo_scale.domains.flow import FlowDomain
from adrpo_scale.hub import access as hub_access
from adrpo_scale.hub import lock as prefetch_lock
from adrpo_scale.hub.lock import check, fingerprint, read_lock
from adrpo_scale.hub.needs import HubNeed, joined
from adrpo_scale.hub.pickles import compare, load_tensors, pickled_weights
from adrpo_scale.hub.prefetch import prefetch, require_models
from adrpo_scale.hub.weights import find_model, revision_of
from adrpo_scale.rewards.image import ClipReward
from adrpo_scale.rewards.reward_model import RewardModel
from adrpo_scale.run.load import load_config
from tests.rewards.test_rewards import write_open_clip
from tests.support.hub import FAILS, TOKEN, Hub
from tests.support.tiny import CONFIGS
from tests.support.tiny_text import save_prompts, save_tiny, save_tiny_reward

CONFIG = """
iterations = 1
domain.name = "text"
domain.model = "own/policy"
domain.rollout_chunk = 8
domain.chat.max_prompt_tokens = 16
domain.rollout.max_new_tokens = 12
domain.evaluation.max_new_tokens = 12
algorithm = { name = "grpo", beta0 = 0.04, scale = "group_std" }
rewards = [{ kind = "reward_model", model = "own/reward", dtype = "float32" }]
prompts = { train = "hub:own/prompts", per_iteration = 4, group_size = 4 }
optimizer = { micro_batch = 4 }
evaluation = { every = 0, prompts = 4, samples_per_prompt = 2 }
"""
POLICY, REWARD, PROMPTS = (
    ("model", "own/policy"),
    ("model", "own/reward"),
    ("dataset", "own/prompts"),
)


@pytest.fixture(scope="module")
def published(tmp_path_factory):
    """Folders of a policy, a reward model with pickles beside its safetensors, and prompts."""
    root = tmp_path_factory.mktemp("published")
    save_tiny(root / "policy")
    save_tiny_reward(root / "reward")
    tensors = load_file(root / "reward" / "model.safetensors")
    torch.save(tensors, root / "reward" / "pytorch_model.bin")
    (root / "prompts" / "data").mkdir(parents=True)
    save_prompts(root / "prompts" / "data" / "train.jsonl")
    return root


@pytest.fixture
def place(tmp_path, monkeypatch):
    """An empty working folder with a config, and an empty cache. Tokens of this machine are not
    for the tests' hub."""
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    Path("run.toml").write_text(CONFIG)
    for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "ADRPO_PREFETCH_LOCK"):
        monkeypatch.delenv(name, raising=False)
    constants = huggingface_hub.constants
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "token"))
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    return tmp_path


@pytest.fixture
def hub(place, published, monkeypatch):
    """The hub with the three of them, the reward model as a pickle alone."""
    with Hub() as hub:
        template = hub.url + "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", hub.url)
        monkeypatch.setattr(huggingface_hub.constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        hub.add("own/policy", published / "policy", licence="apache-2.0")
        hub.add("own/reward", published / "reward", licence="mit", leave_out=".safetensors")
        hub.add("own/prompts", published / "prompts", type="dataset")
        yield hub


def bring_of(path, settings, **options):
    config = load_config(path, settings).config
    prefetch(config.needs_from_hub(), config.checkpoint.quota_command, **options)


def bring(*settings, **options):
    bring_of(Path("run.toml"), settings, **options)


def config(*settings):
    return load_config(Path("run.toml"), settings).config


def refusal(*settings, **options):
    """What prefetch says where it downloads nothing."""
    with pytest.raises(ModelNotFoundError) as caught:
        bring(*settings, **options)
    return str(caught.value)


# ---- what is brought, and pinned -----------------------------------------------------------------


def test_everything_is_brought_at_one_revision_and_the_hub_is_not_asked_again(hub, place):
    bring()
    lock = read_lock()
    assert {key: repo.revision for key, repo in lock.items()} == {
        key: hub.repos[key].main for key in (POLICY, REWARD, PROMPTS)
    }
    assert (lock[POLICY].licence, lock[PROMPTS].licence) == ("apache-2.0", None)
    hub.add("own/policy", place / "work")  # another commit, which somebody else brings
    others = Path(huggingface_hub.snapshot_download("own/policy"))
    hub.down = True
    asked = len(hub.asked)
    bring()
    need, *_ = config().needs_from_hub()
    assert revision_of(find_model(need)) == lock[POLICY].revision != revision_of(others)
    train, _ = build_prompts(config().prompts)
    assert len(train) == 6
    needs = config().needs_from_hub()
    assert check(needs) == [] and require_models(needs) is None
    assert len(hub.asked) == asked
    assert read_lock() == lock


def test_the_lock_is_for_people_and_has_the_same_bytes_every_time(hub):
    bring()
    text = Path("prefetch.lock").read_bytes()
    entry = json.loads(text)["repos"][0]
    assert entry["id"] == "own/policy" and len(entry["revision"]) == 40
    assert entry["bytes"] == sum(entry["files"].values()) and entry["number_of_files"] == 6
    prefetch_lock.write_lock(Path("prefetch.lock"), reversed(read_lock().values()))
    assert Path("prefetch.lock").read_bytes() == text


def test_what_is_locked_keeps_its_revision_until_it_is_upgraded(hub, place):
    bring()
    first = read_lock()[POLICY].revision
    Path("prefetch.lock").rename("old.lock")
    hub.repos[POLICY].commit({**hub.repos[POLICY].commits[first], "README.md": b"newer"})
    shutil.rmtree(place / "cache")  # as on another machine
    bring(lock=Path("old.lock"))
    assert read_lock(Path("old.lock"))[POLICY].revision == first
    bring(lock=Path("old.lock"), upgrade=True)
    assert read_lock(Path("old.lock"))[POLICY].revision == hub.repos[POLICY].main
    assert hub.downloads().count("model.safetensors") == 2  # the same content has the same name


def test_another_config_adds_to_the_lock(hub, published):
    bring()
    before = read_lock()
    hub.add("own/other", published / "policy")
    bring("domain.model=own/other")
    assert read_lock().items() > before.items()
    assert set(read_lock()) - set(before) == {("model", "own/other")}


def test_a_dry_run_downloads_nothing(hub, place, capsys):
    bring(dry_run=True)
    assert "nothing was downloaded" in capsys.readouterr().out
    assert hub.downloads() == [] and not Path("prefetch.lock").exists()
    assert not (place / "cache").exists()


def test_of_a_pipeline_only_what_is_read_is_brought(hub, place, tmp_path):
    folder = resolve_path("demo:image")
    repo = hub.add("own/pipeline", folder)
    (files,) = repo.commits.values()
    weights = files["vae/diffusion_pytorch_model.safetensors"]
    unread = ["vae/diffusion_pytorch_model.fp16.safetensors", "sd3.safetensors", "vae/model.onnx"]
    repo.commit({**files, **dict.fromkeys(unread, weights)})
    demo = Path(__file__).parents[2] / "configs/demo/image_adrpo.toml"
    settings = ["domain.model=own/pipeline"]
    bring_of(demo, settings)
    assert not set(unread) & set(hub.downloads())
    loaded = load_config(demo, settings).config
    domain, shipped = FlowDomain(loaded.domain), FlowDomain(load_config(demo).config.domain)
    assert revision_of(domain.folder) == repo.main
    names = [path.relative_to(domain.folder) for path in domain.frozen_files()]
    assert names == [path.relative_to(shipped.folder) for path in shipped.frozen_files()]
    assert domain.policy_spec().weights.sha256() == shipped.policy_spec().weights.sha256()
    # Somebody else's download into a shared cache is not this run's.
    (domain.folder / unread[0]).write_bytes(weights)
    assert [path.relative_to(domain.folder) for path in domain.frozen_files()] == names


def test_settings_that_read_other_files_need_another_prefetch(hub, tmp_path):
    hub.add("own/pipeline", resolve_path("demo:image"))
    demo = Path(__file__).parents[2] / "configs/demo/image_adrpo.toml"
    settings = ["domain.model=own/pipeline"]
    bring_of(demo, settings)
    first = read_lock()
    with_t5 = load_config(demo, [*settings, "domain.t5=true"]).config
    assert "prefetched for other settings" in check(with_t5.needs_from_hub())[0]
    bring_of(demo, [*settings, "domain.t5=true"])
    assert check(with_t5.needs_from_hub()) == []
    bring_of(demo, settings)  # and does not forget the other one
    assert check(with_t5.needs_from_hub()) == []
    assert [repo.revision for repo in first.values()] == [r.revision for r in read_lock().values()]


def test_open_clip_reads_the_pinned_revision(hub, tmp_path):
    folder = tmp_path / "clip"
    folder.mkdir()
    write_open_clip(folder)
    (folder / "model.safetensors").write_bytes(b"the same for transformers")
    revision = hub.add("own/clip", folder).main
    model = "rewards.0={kind='clip', model='hf-hub:own/clip', backend='open_clip'}"
    demo = Path(__file__).parents[2] / "configs/demo/image_adrpo.toml"
    bring_of(demo, [model])
    assert "model.safetensors" not in hub.downloads()
    (folder / "open_clip_model.safetensors").write_bytes(b"of another commit")
    hub.add("own/clip", folder)
    huggingface_hub.snapshot_download("own/clip")
    hub.down = True
    ClipReward(load_config(demo, [model]).config.rewards[0], torch.device("cpu"))
    assert read_lock()["model", "own/clip"].revision == revision


RUNS = [path for path in CONFIGS.glob("*/*.toml") if path.stem != "mmau"]  # that one is no run's


@pytest.mark.parametrize("path", sorted(RUNS))
def test_every_shipped_config_says_what_it_reads(path):
    """A component that loads a model and does not declare it would be missed by prefetch."""
    needs = joined(load_config(path).config.needs_from_hub())
    named = {line.split('"')[1] for line in path.read_text().splitlines() if "model = " in line}
    named |= {
        line.split('"hub:')[1].split('"')[0]
        for line in path.read_text().splitlines()
        if '"hub:' in line
    }
    assert {need.name for need in needs} == named
    on_hub = {need.name for need in needs if need.is_hub_id}
    assert on_hub == {name for name in named if not name.startswith("demo:")}


# ---- what stands in the way ----------------------------------------------------------------------


def test_all_problems_of_all_repositories_are_told_at_once(hub):
    hub.repos[POLICY].access, hub.repos[PROMPTS].access = "gated", "private"
    stated = refusal("rewards.0.model=own/rewrad")
    assert stated.startswith("3 things in the way, and nothing was downloaded:")
    policy, reward, prompts = stated.splitlines()[1:]
    assert "domain.model: model 'own/policy' is gated" in policy
    assert "https://huggingface.co/own/policy" in policy and "hf auth login" in policy
    assert "'own/rewrad' is not on the hub" in reward and "did you mean 'own/reward'?" in reward
    assert "https://huggingface.co/datasets/own/prompts" in prompts
    assert hub.downloads() == [] and not Path("prefetch.lock").exists()


@pytest.mark.parametrize(
    ("access", "token", "says"),
    [
        ("gated", None, "there is no token yet"),
        ("gated", "hf_of_somebody_else", "the one of HF_TOKEN; `hf auth whoami`"),
        ("gated", TOKEN, None),
        ("private", "hf_of_somebody_else", "is private"),
        ("private", TOKEN, None),
    ],
)
def test_access_is_that_of_the_token(hub, monkeypatch, access, token, says):
    hub.repos[POLICY].access = access
    if token is not None:
        monkeypatch.setenv("HF_TOKEN", token)
    if says is None:
        bring()
        assert check(config().needs_from_hub()) == []
    else:
        assert says in refusal()


def test_nobody_to_ask_means_this_is_no_login_node(hub, monkeypatch):
    hub.down = True
    assert "answers with 503" in refusal()
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", "http://127.0.0.1:9")
    stated = refusal()
    assert "one thing in the way" in stated and "on a login node" in stated
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    assert "HF_HUB_OFFLINE is set" in refusal()


def test_too_little_room_is_found_before_anything_is_downloaded(hub):
    stated = refusal("checkpoint.quota_command=echo 100000 50")
    assert "no room in the cache" in stated and "100.0 kB are free by the quota" in stated
    assert "hf cache rm" in stated
    stated = refusal("checkpoint.quota_command=echo 100000000 3")
    assert "3 more are allowed" in stated
    assert hub.downloads() == []
    bring("checkpoint.quota_command=echo 100000000 500")


def test_a_lock_that_cannot_be_written_is_found_before_anything_is_downloaded(hub):
    assert "the lock nowhere/run.lock cannot be written" in refusal(lock=Path("nowhere/run.lock"))


def test_folders_and_demo_names_are_looked_for_alike(hub):
    stated = refusal("domain.model=./nowhere", "rewards.0.model=demo:texd")
    assert "'./nowhere' is not there" in stated and "demo:texd: no such demo asset" in stated


def test_a_repository_of_another_kind(hub, published):
    hub.add("own/music", published / "prompts")
    assert "none of the files that are needed" in refusal("domain.model=own/music")


# ---- interruptions, and what is half there -------------------------------------------------------


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
    assert head == "2 things that this run reads cannot be had here:"
    assert "tokenizer.json is missing" in policy
    assert "model.safetensors has 1000 bytes instead of" in policy
    assert "own/reward" in reward and "has 0 bytes instead of" in reward
    assert "adrpo-scale prefetch CONFIG" in remedy and "HF_HOME" in remedy
    with pytest.raises(ModelNotFoundError, match=r"half there .*adrpo-scale prefetch CONFIG"):
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
    with pytest.raises(ModelNotFoundError, match="half there"):
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
    [("{", "JSONDecodeError"), ('{"format": 2}', "its format is 2"), ("[]", "TypeError")],
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
    ],
)
def test_which_weights_exist_as_pickles_alone(files, pickles):
    need = HubNeed("a/b", allow=("*.safetensors", "vae/*"), ignore=("old/*", "*.bin"))
    assert [file for found in pickled_weights(need, files) for file in found.files] == pickles


def test_needs_of_one_repository_are_joined():
    a = HubNeed("a/b", "domain.model", ("*.json", "vae/*"), ("*.bin", "*.fp16*"))
    b = replace(a, what="rewards.model", allow=("*.json", "*.txt"), ignore=("*.bin",))
    (both,) = joined([a, b])
    assert both.allow == ("*.json", "vae/*", "*.txt") and both.ignore == ("*.bin",)
    assert all(both.covers(name) for name in ("config.json", "vae/x.fp16.safetensors"))
    assert not both.covers("vae/model.bin")


# ---- the command, and a cache that belongs to others ---------------------------------------------


def command(place, hub, *words, before=(), **env):
    """The command, begun in a process of its own."""
    own = {"HF_HUB_CACHE": str(place / "cache"), "HF_ENDPOINT": hub.url, "HF_HUB_DISABLE_XET": "1"}
    own |= {"ADRPO_CACHE": str(place / "own"), "PYTHONPATH": str(Path(__file__).parents[2])}
    return subprocess.Popen(
        [*before, sys.executable, "-m", "adrpo_scale", *words],
        env=os.environ | own | env,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def test_train_from_a_read_only_cache_without_the_hub(hub, place, published):
    bring()
    hub.add("own/new", published / "policy")
    cache = place / "cache"
    mount = f"mount -o bind {cache} {cache} && mount -o remount,ro,bind {cache}"
    inside = ["unshare", "--mount", "sh", "-c", f'{mount} && ! touch {cache}/x && exec "$@"', "sh"]
    if subprocess.run([*inside, "true"], capture_output=True).returncode:
        pytest.skip("no mount of one's own can be made here")
    asked = len(hub.asked)
    train = command(place, hub, "train", "run.toml", before=inside, HF_HUB_OFFLINE="1")
    other = ["--set", "domain.model=own/new"]
    more = command(place, hub, "prefetch", "run.toml", *other, before=inside)
    stated, complaint = train.communicate(timeout=200)
    assert train.returncode == 0, stated + complaint
    assert "iteration 1/1" in stated
    stated, complaint = more.communicate(timeout=200)
    assert more.returncode == 2 and complaint.count("error: ") == 1
    assert f"the cache {cache} cannot be written to: set HF_HOME" in complaint
    assert "Traceback" not in complaint
    assert not [line for line in hub.asked[asked:] if "own/policy" in line or "resolve" in line]
