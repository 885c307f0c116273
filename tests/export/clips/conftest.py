"""Runs on clips and their exports, made once for the tests of this folder."""

from __future__ import annotations

import json
from types import SimpleNamespace

import pytest
import torch

from adrpo_scale.export import verify
from adrpo_scale.export.base import Request
from adrpo_scale.export.exporter import export
from tests.support.exported_thinkers import (
    FULL,
    LORA,
    SECRET,
    SYSTEM,
    THINKER,
    WHOLE,
    save_base,
    train_run,
)
from tests.support.plain_processes import plain_processes
from tests.support.tiny_audio import save_full, save_thinker


@pytest.fixture(scope="package")
def root(tmp_path_factory):
    """Holds the base models full, bf16 and thinker, and runs/."""
    place = tmp_path_factory.mktemp(SECRET)
    save_full(place / "full")
    save_base(place / "bf16")
    save_thinker(place / "thinker")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ADRPO_CACHE", str(place / "cache"))
        train_run(place, "lora", "full", LORA)
        train_run(place, "all", "bf16", FULL)
        train_run(place, "alone", "thinker", LORA)
        system = f"domain.chat.system={json.dumps(SYSTEM)}"
        train_run(place, "chat", "full", [*LORA, system, "domain.chat.max_prompt_tokens=60"])
        train_run(place, "untrained", "full", LORA, trained=False)
        yield place


@pytest.fixture(scope="package")
def plain(tmp_path_factory):
    """Runs `script arguments…` in a process with transformers and peft, imported before."""
    imports = f"from transformers import Qwen2_5OmniProcessor, {THINKER}, {WHOLE}\n"
    imports += "from transformers import Qwen2VLImageProcessor, Qwen2VLVideoProcessor\n"
    imports += "from transformers import GenerationConfig, WhisperFeatureExtractor"
    with plain_processes(tmp_path_factory.mktemp("plain"), imports) as run:
        yield run


@pytest.fixture(scope="package")
def checked(plain):
    """Verification in forks instead of fresh processes."""
    with pytest.MonkeyPatch.context() as patch:
        run = lambda command, **_: plain(*command[2:])  # noqa: E731
        patch.setattr(verify, "subprocess", SimpleNamespace(run=run))
        yield


@pytest.fixture(scope="package")
def exports(root, checked):
    """Verified exports by name."""

    def made(name, run, form, **settings):
        return export(str(root / "runs" / run), Request(root / "exports" / name, form, **settings))

    tensors, shards = {"verify": "tensors"}, {"max_shard_bytes": 60_000}
    return {
        "adapter": made("adapter", "lora", "adapter"),
        "adapter_alone": made("adapter_alone", "alone", "adapter", **tensors),
        "merged": made("merged", "lora", "merged"),
        "merged_alone": made("merged_alone", "alone", "merged", **tensors),
        "chat": made("chat", "chat", "merged", verify="none"),
        "all": made("all", "all", "full", **shards),
        "whole": made("whole", "lora", "whole", **shards),
        "whole_all": made("whole_all", "all", "whole", dtype=torch.float32, **tensors),
    }
