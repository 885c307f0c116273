"""A scorer whose weights are a pickle under a name of its own: prefetched, locked, read offline."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from adrpo_scale.core.errors import DamagedFileError, WeightsError
from adrpo_scale.hub.lock import damaged, read_lock
from adrpo_scale.hub.prefetch import prefetch, require_models
from adrpo_scale.hub.weights import find_model
from adrpo_scale.run.registry import REWARDS
from tests.support.tiny_scorers import CPU, IMAGES, PROMPTS, image_reward_weights, save_bert


@pytest.fixture
def brought(hub, tmp_path):
    """The config of an ImageReward that the hub has, and its weights' repository."""
    for name in ("reward", "bert"):
        (tmp_path / name).mkdir()
    save_bert(tmp_path / "bert")
    torch.save(image_reward_weights()[2], tmp_path / "reward" / "ImageReward.pt")
    torch.save({"w": torch.ones(1)}, tmp_path / "reward" / "another.pt")
    hub.add("their/reward", tmp_path / "reward", licence="apache-2.0")
    hub.add("their/bert", tmp_path / "bert")
    kind = REWARDS["image_reward"]
    return kind.Config(kind="image_reward", model="their/reward", tokenizer="their/bert")


def test_a_pickle_under_its_own_name_is_brought_converted_and_read_offline(hub, brought, tmp_path):
    prefetch(brought.needs_from_hub())
    repo = read_lock()["model", "their/reward"]
    assert list(repo.files) == ["ImageReward.safetensors"] and repo.licence == "apache-2.0"
    assert "another.pt" not in hub.downloads()
    hub.down = True
    asked = len(hub.asked)
    require_models(brought.needs_from_hub())
    found = REWARDS["image_reward"](brought, CPU)(IMAGES, PROMPTS)
    local = brought.model_copy(update={"model": str(tmp_path / "reward")})
    assert torch.equal(found, REWARDS["image_reward"](local, CPU)(IMAGES, PROMPTS))
    prefetch(brought.needs_from_hub())  # nothing is missing
    assert len(hub.asked) == asked
    need = brought.needs_from_hub()[0]
    made = find_model(need) / "ImageReward.safetensors"
    made.write_bytes(made.read_bytes()[:-1] + b"x")  # of the same size
    assert not damaged([need])
    made.write_bytes(b"\xff" * made.stat().st_size)
    (line,) = damaged([need])
    assert line.startswith(f"rewards.model: {made} ")
    with pytest.raises(DamagedFileError):
        require_models([need])


def test_a_pickle_of_the_hub_that_would_run_code_is_refused(hub, brought, tmp_path):
    class Harmful:
        def __reduce__(self):
            return Path.touch, (Path("harm"),)

    torch.save({"model": {"w": Harmful()}}, tmp_path / "reward" / "ImageReward.pt")
    hub.add("their/reward", tmp_path / "reward")
    with pytest.raises(WeightsError, match="is refused"):
        prefetch(brought.needs_from_hub())
    assert not Path("harm").exists() and ("model", "their/reward") not in read_lock()
