"""`prefetch` and its lock, over a real HTTP hub of small models in the real layouts."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import huggingface_hub.constants
import pytest
import torch

from adrpo_scale.core.errors import ModelNotFoundError
from adrpo_scale.core.paths import resolve_path
from adrpo_scale.data.prompts import build_prompts
from adrpo_scale.domains.flow import FlowDomain
from adrpo_scale.hub import lock as prefetch_lock
from adrpo_scale.hub.lock import check, read_lock
from adrpo_scale.hub.needs import joined
from adrpo_scale.hub.prefetch import require_models
from adrpo_scale.hub.weights import find_model, revision_of
from adrpo_scale.rewards.image import ClipReward
from adrpo_scale.run.load import load_config
from tests.rewards.test_rewards import write_open_clip
from tests.support.hub import TOKEN
from tests.support.published import POLICY, PROMPTS, REWARD, bring, bring_of, config
from tests.support.shipped import RUNS, name_of


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


@pytest.mark.parametrize("path", RUNS, ids=name_of)
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
        ("gated", "hf_of_somebody_else", "the one of HF_TOKEN (`hf auth whoami`)"),
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


# ---- the command, and a cache that belongs to others ---------------------------------------------


def command(place, hub, *words, before=(), run=("-m", "adrpo_scale"), **env):
    """The command, begun in a process of its own."""
    own = {"HF_HUB_CACHE": str(place / "cache"), "HF_ENDPOINT": hub.url, "HF_HUB_DISABLE_XET": "1"}
    own |= {"ADRPO_CACHE": str(place / "own"), "PYTHONPATH": str(Path(__file__).parents[2])}
    return subprocess.Popen(
        [*before, sys.executable, *run, *words],
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
    stated, complaint = train.communicate(timeout=240)
    assert train.returncode == 0, stated + complaint
    assert "iteration 1/1" in stated
    stated, complaint = more.communicate(timeout=240)
    assert more.returncode == 2 and complaint.count("error: ") == 1
    assert f"the cache {cache} cannot be written to: set HF_HOME" in complaint
    assert "Traceback" not in complaint
    assert not [line for line in hub.asked[asked:] if "own/policy" in line or "resolve" in line]


# A signal before the second of the downloads.
STOPPED = """if True:
    from adrpo_scale.cli.main import main
    from tests.support.faults import SignalAt

    SignalAt("adrpo_scale.hub.prefetch:download", 2, slow=0.01)(0)
    main()"""


@pytest.mark.slow
def test_a_signal_ends_a_download_and_what_is_complete_is_kept(hub, place):
    stopped = command(place, hub, "prefetch", "run.toml", run=("-c", STOPPED))
    stated, complaint = stopped.communicate(timeout=240)
    assert stopped.returncode == -signal.SIGTERM, stated + complaint
    asked = list(hub.asked)
    before = [line for line in hub.asked if line.startswith("GET") and "/resolve/" in line]
    again = command(place, hub, "prefetch", "run.toml")
    stated, complaint = again.communicate(timeout=240)
    assert again.returncode == 0, stated + complaint
    assert before and not {*before} & {*hub.asked[len(asked) :]}
