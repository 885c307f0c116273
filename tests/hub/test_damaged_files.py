"""Files of a model that are cut off, empty or not the file itself: named, with what helps, before
anything is loaded; by `train`, by `preflight`, and by every loader that meets one alone."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch

from adrpo_scale.cluster.preflight.checks import check_models
from adrpo_scale.cluster.preflight.node import ModelFacts
from adrpo_scale.core.errors import DamagedFileError, ModelNotFoundError
from adrpo_scale.core.paths import resolve_path
from adrpo_scale.domains.flow_workload import flow_workload
from adrpo_scale.domains.pipelines import load_encoder, load_vae
from adrpo_scale.evaluation.sample import stands_for
from adrpo_scale.export.base import Copy
from adrpo_scale.export.copies import write_copies
from adrpo_scale.hub.foreign import open_tensors, read_json
from adrpo_scale.hub.lock import check, damaged
from adrpo_scale.hub.needs import HubNeed
from adrpo_scale.hub.prefetch import require_models
from adrpo_scale.rewards.image import ClipReward, ClipRewardConfig
from adrpo_scale.rewards.reward_model import RewardModel, RewardModelConfig
from adrpo_scale.run.build import build_domain
from tests.support.survey import nodes_with
from tests.support.tiny import demo_config
from tests.support.tiny_text import save_tiny, save_tiny_reward, text_config

POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:abc\nsize 123\n"
CPU = torch.device("cpu")


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-7])


def cut_header(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:40])


def emptied(path: Path) -> None:
    path.write_bytes(b"")


def pointer(path: Path) -> None:
    path.write_bytes(POINTER)


def page(path: Path) -> None:
    path.write_text("<!DOCTYPE html><html>Sign in to the network</html>")


def null(path: Path) -> None:
    path.write_text("null")


def zeros(path: Path) -> None:
    path.write_bytes(bytes(len(path.read_bytes())))


def linked(path: Path) -> None:
    path.unlink()
    path.symlink_to("gone")


@pytest.mark.parametrize(
    ("name", "damage", "said"),
    [
        ("model.safetensors", cut, r"is cut off: it has \d+ of \d+ bytes; delete it and bring it"),
        ("model.safetensors", cut_header, r"is cut off: it has 40 bytes, its header alone \d+"),
        ("model.safetensors", emptied, "is empty"),
        ("model.safetensors", pointer, "is a pointer of Git LFS.*; run `git lfs pull` in"),
        ("model.safetensors", page, "is a web page"),
        ("model.safetensors", zeros, "is not whole"),
        ("model.safetensors", linked, "is a broken link"),
        ("config.json", cut, "is not whole"),
        ("generation_config.json", emptied, "is empty"),
        ("generation_config.json", null, "holds null where a JSON object is expected"),
        ("tokenizer.json", pointer, "is a pointer of Git LFS"),
        ("tokenizer.json", cut, "is not whole"),
        ("tokenizer_config.json", zeros, "holds zeros alone"),
        ("chat_template.jinja", pointer, "is a pointer of Git LFS"),  # a template by itself
        ("merges.txt", emptied, "is empty"),
    ],
)
def test_a_damaged_file_is_named_before_anything_is_loaded(tmp_path, name, damage, said):
    config = text_config(save_tiny(tmp_path / "m"))
    needs = config.needs_from_hub()
    (tmp_path / "m" / "merges.txt").write_text("#version: 0.2\n")
    require_models(needs)
    damage(tmp_path / "m" / name)
    message = rf"{name} {said}"
    with pytest.raises(DamagedFileError, match=message):
        require_models(needs)
    (line,) = damaged(needs)
    assert check(needs) == []
    facts = ModelFacts((), "f", (line,))
    (finding,) = check_models(nodes_with("models", [facts]), 1).findings
    assert finding.severity == "fault" and name in finding.value
    if name.endswith((".json", ".safetensors")):  # a start that did not ask
        with pytest.raises(DamagedFileError, match=message):
            build_domain(config).policy_spec()


@pytest.mark.parametrize("content", ["{}", '{"weight_map": {"a": "../b"}}', "[1]", "{"])
def test_a_damaged_index_is_named(tmp_path, content):
    folder = save_tiny(tmp_path / "m")
    (folder / "model.safetensors").rename(folder / "model-00001-of-00001.safetensors")
    (folder / "model.safetensors.index.json").write_text(content)
    with pytest.raises(DamagedFileError, match=r"model\.safetensors\.index\.json "):
        require_models(text_config(folder).needs_from_hub())


def test_files_that_nobody_reads_may_be_anything(tmp_path):
    folder = save_tiny(tmp_path / "m")
    (folder / "checkpoint-5").mkdir()
    for name in ("trainer.json", "model.fp16.safetensors", "checkpoint-5/config.json"):
        (folder / name).write_text("{")
    require_models(text_config(folder).needs_from_hub())


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory):
    to = tmp_path_factory.mktemp("sd3") / "m"
    shutil.copytree(resolve_path("demo:image"), to)
    return to


@pytest.mark.parametrize(
    "name",
    [
        "model_index.json",
        "vae/config.json",
        "scheduler/scheduler_config.json",
        "transformer/diffusion_pytorch_model.safetensors",
        "text_encoder/model.safetensors",
        "tokenizer_2/tokenizer_config.json",
    ],
)
def test_so_is_one_of_a_pipeline_s_component(pipeline, name):
    needs = demo_config(overrides=[f"domain.model={pipeline}"]).needs_from_hub()
    whole = (pipeline / name).read_bytes()
    try:
        cut(pipeline / name)
        with pytest.raises(DamagedFileError, match=name):
            require_models(needs)
    finally:
        (pipeline / name).write_bytes(whole)
    require_models(needs)


@pytest.mark.parametrize("part", ["transformer", "vae"])
def test_the_config_of_another_model_is_named(tmp_path, pipeline, part):
    folder = shutil.copytree(pipeline, tmp_path / "m")
    (folder / part / "config.json").write_text("{}")
    config = demo_config(overrides=[f"domain.model={folder}"])
    message = rf"{part}/config\.json does not state (in_channels|block_out_channels)"
    with pytest.raises(ModelNotFoundError, match=message):
        build_domain(config)


@pytest.mark.parametrize("content", ["[1]", "", "null", '{"model_type": 5}'])
def test_a_folder_is_no_model_by_a_damaged_config(tmp_path, content):
    (tmp_path / "config.json").write_text(content)
    assert stands_for(str(tmp_path)) == "run"


def damaged_copy(source, name, to):
    shutil.copytree(source, to)
    cut(to / name)
    return to


def test_every_loader_names_the_file_itself(tmp_path, pipeline):
    """Met after the checks: a file that was cut while the job waited."""
    clip, reward = pipeline / "reward_clip", save_tiny_reward(tmp_path / "rm")

    def named(name, load):
        with pytest.raises(DamagedFileError, match=name):
            load()

    for name in ("config.json", "diffusion_pytorch_model.safetensors"):
        folder = damaged_copy(pipeline / "vae", name, tmp_path / f"vae-{name}")
        named(name, lambda folder=folder: load_vae(folder, torch.float32))
    for name in ("config.json", "model.safetensors"):
        folder = damaged_copy(pipeline / "text_encoder", name, tmp_path / f"text-{name}")
        named(name, lambda folder=folder: load_encoder(folder, torch.float32))
        folder = damaged_copy(clip, name, tmp_path / f"clip-{name}")
        config = ClipRewardConfig(kind="clip", model=str(folder))
        named(name, lambda config=config: ClipReward(config, CPU))
    for name in ("config.json", "tokenizer.json", "model.safetensors"):
        folder = damaged_copy(reward, name, tmp_path / f"rm-{name}")
        config = RewardModelConfig(kind="reward_model", model=str(folder))
        named(name, lambda config=config: RewardModel(config, CPU))
    config = demo_config(overrides=["domain.t5=true"]).domain
    folder = damaged_copy(pipeline, "text_encoder_2/config.json", tmp_path / "plan")
    named("text_encoder_2/config.json", lambda: flow_workload(config, folder, (3, 8, 8), CPU))
    (tmp_path / "out").mkdir()
    copies = [Copy(folder / "text_encoder_2" / "config.json", "config.json")]
    named("config.json", lambda: write_copies(copies, {}, tmp_path / "out", False))


def test_random_weights_of_an_encoder_are_refused(tmp_path, pipeline):
    """transformers only warns that it has begun them at random."""
    from safetensors.torch import load_file, save_file

    from adrpo_scale.core.errors import WeightsError

    folder = shutil.copytree(pipeline / "text_encoder", tmp_path / "text_encoder")
    file = folder / "model.safetensors"
    tensors = load_file(file)
    lost = next(name for name in tensors if name.endswith("fc1.weight"))
    save_file({n: t for n, t in tensors.items() if n != lost}, file, {"format": "pt"})
    with pytest.raises(WeightsError, match=r"1 missing .*fc1\.weight"):
        load_encoder(folder, torch.float32)
    save_file(tensors | {lost: tensors[lost] * torch.nan}, file, {"format": "pt"})
    with pytest.raises(WeightsError, match=r"fc1\.weight holds NaN"):
        load_encoder(folder, torch.float32)
    folder = shutil.copytree(pipeline / "vae", tmp_path / "vae")
    file = folder / "diffusion_pytorch_model.safetensors"
    tensors = load_file(file)
    lost = min(tensors)
    save_file({n: t for n, t in tensors.items() if n != lost}, file, {"format": "pt"})
    with pytest.raises((WeightsError, DamagedFileError), match=lost):
        load_vae(folder, torch.float32)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ('{"model_type": "not-known-yet"}', "a version of the library that knows it"),
        ("{}", "bring the folder again"),
    ],
)
def test_a_library_that_cannot_load_a_whole_file_says_so(tmp_path, content, words):
    folder = save_tiny(tmp_path / "m")
    (folder / "config.json").write_text(content)
    with pytest.raises(DamagedFileError, match=rf"its config\.json cannot be loaded .*; .*{words}"):
        build_domain(text_config(folder))


def test_readers_return_what_is_whole(tmp_path):
    (tmp_path / "a.json").write_text(json.dumps({"é": 1}), encoding="utf-8")
    assert read_json(tmp_path / "a.json") == {"é": 1}
    with open_tensors(save_tiny(tmp_path / "m") / "model.safetensors") as file:
        assert "model.norm.weight" in file.keys()  # noqa: SIM118
    with pytest.raises(DamagedFileError, match="is missing"):
        read_json(tmp_path / "b.json")


def test_data_sets_are_not_looked_into(tmp_path):
    (tmp_path / "config.json").write_text("{")
    assert damaged([HubNeed(str(tmp_path), type="dataset")]) == []
