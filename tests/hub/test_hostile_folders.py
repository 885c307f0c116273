"""Folders of other people that want more than to be read: code, pickles, files elsewhere."""

from __future__ import annotations

import builtins
import json
import os
import pickle
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModel, AutoTokenizer, CLIPModel

from adrpo_scale.core.errors import AdrpoError, DamagedFileError, ModelNotFoundError, WeightsError
from adrpo_scale.core.paths import resolve_path
from adrpo_scale.domains.sd3_encoders import encoders_of
from adrpo_scale.hub.access import ask
from adrpo_scale.hub.loaders import load_settings, load_weights
from adrpo_scale.hub.needs import HubNeed
from adrpo_scale.hub.pickles import as_safetensors
from adrpo_scale.hub.weight_files import weight_files
from tests.rewards.test_rewards import IMAGES, PROMPTS, clip, write_open_clip
from tests.support.tiny import MODEL

CLIP = "demo:image/reward_clip"
CODE = """
from pathlib import Path
Path({mark!r}).touch()
from transformers import PretrainedConfig
class Own(PretrainedConfig):
    model_type = "own"
"""


@pytest.fixture
def mark(tmp_path, monkeypatch):
    """A file that code of a model would write. Whoever asks on the terminal is told yes."""
    monkeypatch.setattr(builtins, "input", lambda *_: "y")
    monkeypatch.setenv("HF_MODULES_CACHE", str(tmp_path / "modules"))
    return tmp_path / "code-ran"


def with_code(folder, mark, **files):
    """A folder whose config, or tokenizer, names a module beside it."""
    folder.mkdir(exist_ok=True)
    (folder / "own.py").write_text(CODE.format(mark=str(mark)))
    for name, content in files.items():
        (folder / f"{name}.json").write_text(json.dumps(content))
    return folder


@pytest.mark.parametrize("kind", [AutoConfig, AutoTokenizer])
def test_code_that_comes_with_a_model_is_not_run_and_nobody_is_asked(kind, tmp_path, mark):
    named = {"AutoConfig": "own.Own", "AutoTokenizer": ["own.Own", "own.Own"]}
    config = {"model_type": "own", "auto_map": named}
    folder = with_code(tmp_path / "a", mark, config=config, tokenizer_config={"auto_map": named})
    with pytest.raises(ModelNotFoundError, match="code that comes with a model is never run"):
        load_settings(kind, folder, "tokenizer")
    assert not mark.exists()


def test_code_that_comes_with_weights_is_not_run(tmp_path, mark):
    folder = tmp_path / "clip"
    shutil.copytree(resolve_path(CLIP), folder)
    named = {"AutoConfig": "own.Own", "AutoModel": "own.Own"}
    with_code(folder, mark, config={"model_type": "own", "auto_map": named})
    with pytest.raises(ModelNotFoundError, match="code that comes with a model is never run"):
        load_weights(AutoModel, folder, "model")
    assert not mark.exists()


@pytest.mark.parametrize(
    "file",
    ["pytorch_model.bin", "../x.safetensors", "..", "/etc/hosts", "a/b.safetensors", "x.pt", ""],
)
def test_an_index_names_safetensors_beside_it_alone(tmp_path, file):
    index = {"metadata": {}, "weight_map": {"a": file}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    torch.save({"a": torch.zeros(1)}, tmp_path / "pytorch_model.bin")
    save_file({"a": torch.zeros(1)}, tmp_path.parent / "x.safetensors")
    with pytest.raises(
        DamagedFileError, match=r"which is no file beside it|safetensors files only"
    ):
        weight_files(tmp_path, "model")


@pytest.mark.parametrize(
    "stated",
    [
        {"attn_implementation": "own/kernels"},
        {"_attn_implementation": "own/kernels:attention"},
        {"text_config": {"attn_implementation": {"": "kernels-community/flash-attn3"}}},
        {"vision_config": {"attn_implementation": ["a", "own/kernels"]}},
        {"experts_implementation": "own/kernels"},
    ],
)
def test_code_of_a_repository_is_not_brought_for_attention(tmp_path, stated):
    folder = tmp_path / "clip"
    shutil.copytree(resolve_path(CLIP), folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | stated))
    for load in (
        lambda: load_settings(AutoConfig, folder),
        lambda: load_weights(CLIPModel, folder, "model"),
    ):
        with pytest.raises(ModelNotFoundError, match="never run here"):
            load()


class Bomb:
    def __init__(self, mark):
        self.mark = mark

    def __reduce__(self):
        return os.mknod, (str(self.mark),)


def test_a_model_whose_weights_are_pickles_is_not_loaded(tmp_path, mark):
    """By the door itself: what a caller forgets to check is checked there."""
    folder = tmp_path / "clip"
    shutil.copytree(resolve_path(CLIP), folder)
    (folder / "model.safetensors").rename(folder / "kept")
    (folder / "pytorch_model.bin").write_bytes(pickle.dumps({"a": Bomb(mark)}))
    with pytest.raises(ModelNotFoundError, match="safetensors"):
        load_weights(CLIPModel, folder, "model")
    (folder / "kept").rename(folder / "model.safetensors")
    for key, value in {"transformers_weights": "pytorch_model.bin"}.items():
        path = folder / "config.json"
        content = path.read_text()
        path.write_text(json.dumps(json.loads(content) | {key: value}))
        with pytest.raises(ModelNotFoundError, match="transformers_weights"):
            load_weights(CLIPModel, folder, "model")
        path.write_text(content)
    (folder / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", "r": 1}))
    (folder / "adapter_model.bin").write_bytes(pickle.dumps({"a": Bomb(mark)}))
    with pytest.raises(ModelNotFoundError, match="from a pickle"):
        load_weights(CLIPModel, folder, "model")
    assert not mark.exists()


def test_a_tokenizer_is_loaded_as_a_tokenizer_whatever_class_is_named(tmp_path, mark):
    folder = tmp_path / "sd3"
    shutil.copytree(resolve_path(MODEL), folder)
    index = json.loads((folder / "model_index.json").read_text())
    for name in ("tokenizer", "tokenizer_2"):
        index[name] = ["transformers", "CLIPTextModelWithProjection"]
        shutil.copy(folder / "text_encoder/config.json", folder / name)
        (folder / name / "pytorch_model.bin").write_bytes(pickle.dumps({"a": Bomb(mark)}))
    (folder / "model_index.json").write_text(json.dumps(index))
    found = encoders_of(folder, False, 77)
    assert len(next(iter(found[0].tokenize(["a red ring"])))) > 2
    assert not mark.exists()


# ---- open_clip -----------------------------------------------------------------------------------


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A model of open_clip, and an empty cache of the hub."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setenv("ADRPO_CACHE", str(tmp_path / "cache"))
    place = tmp_path / "open_clip"
    place.mkdir()
    write_open_clip(place)
    return place


def judged(name, **settings):
    return clip(model=name, backend="open_clip", **settings)(IMAGES[:2], PROMPTS[:2])


def test_a_pickle_of_open_clip_is_converted_once_and_means_the_same(folder, tmp_path):
    expected = judged(f"local-dir:{folder}")
    file = folder / "open_clip_model.safetensors"
    torch.save({"state_dict": load_file(file), "epoch": 3}, folder / "open_clip_pytorch_model.bin")
    file.unlink()
    assert torch.equal(judged(f"local-dir:{folder}"), expected)
    (made,) = (tmp_path / "hub").rglob("*.safetensors")
    before = made.stat().st_mtime_ns
    assert torch.equal(judged(f"local-dir:{folder}"), expected)
    assert made.stat().st_mtime_ns == before


def test_no_flipped_bit_of_a_converted_pickle_is_used(tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setenv("ADRPO_CACHE", str(tmp_path / "cache"))
    tensors = {"a": torch.randn(5, 3), "b": torch.arange(7), "c": torch.tensor(2.5).bfloat16()}
    torch.save(tensors, tmp_path / "x.bin")
    made = as_safetensors(tmp_path / "x.bin")
    whole, found = made.read_bytes(), 0
    for bit in range(0, 8 * len(whole), 61):
        content = bytearray(whole)
        content[bit // 8] ^= 1 << bit % 8
        made.write_bytes(content)
        read = load_file(as_safetensors(tmp_path / "x.bin"))
        assert read.keys() == tensors.keys(), bit
        assert all(torch.equal(read[name], tensor) for name, tensor in tensors.items()), bit
        found += made.read_bytes() == whole
    assert found > 40


def test_a_pickle_of_open_clip_that_runs_code_is_refused(folder, mark):
    (folder / "open_clip_model.safetensors").unlink()
    for name in ("open_clip_pytorch_model.bin", "x.pth"):
        (folder / name).write_bytes(pickle.dumps({"a": Bomb(mark)}, protocol=2))
        with pytest.raises(WeightsError, match=r"is refused|cannot be read"):
            judged(f"local-dir:{folder}")
        with pytest.raises(WeightsError, match=r"is refused|cannot be read"):
            judged("ViT-B-32", pretrained=str(folder / name))
        (folder / name).unlink()
    assert not mark.exists()


def test_a_config_of_open_clip_cannot_let_its_code_run(folder, mark):
    path = folder / "open_clip_config.json"
    content = json.loads(path.read_text())
    own = {"hf_tokenizer_name": "own", "tokenizer_kwargs": {"trust_remote_code": True}}
    content["model_cfg"]["text_cfg"] |= own
    path.write_text(json.dumps(content))
    named = {"AutoTokenizer": ["own.Own", "own.Own"], "AutoConfig": "own.Own"}
    config = {"model_type": "own", "auto_map": named}
    with_code(folder, mark, config=config, tokenizer_config={"auto_map": named})
    with pytest.raises(AdrpoError):
        judged(f"local-dir:{folder}")
    assert not mark.exists()


# ---- a mirror ------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["../../x.json", "/x.json", "a/../../x.json", "..\\x.json"])
def test_a_mirror_cannot_name_files_outside_of_the_cache(hub, name):
    repo = hub.repos["model", "own/policy"]
    repo.commit({**repo.commits[repo.main], name: b"{}"})
    with pytest.raises(ModelNotFoundError, match="outside of the cache"):
        ask(HubNeed("own/policy"), None)


def test_a_token_that_no_header_takes_is_refused_without_being_shown(hub, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_very\x01secret")
    with pytest.raises(AdrpoError, match="HF_TOKEN holds a character") as error:
        ask(HubNeed("own/policy"), None)
    assert "secret" not in str(error.value) and not hub.asked
