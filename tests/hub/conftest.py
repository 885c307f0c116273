"""What the tests of `prefetch` share: published models and a place to bring them to."""

from __future__ import annotations

from pathlib import Path

import huggingface_hub.constants
import pytest
import torch
from safetensors.torch import load_file

from tests.support.hub import Hub
from tests.support.published import CONFIG
from tests.support.tiny_text import save_prompts, save_tiny, save_tiny_reward


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
