"""vLLM itself, in its process, on a small model: its weights, its tokens' log-probabilities, the
ban. It runs on a CPU with a build of vLLM for CPUs."""

from __future__ import annotations

import importlib.util
import os
import sys

import pytest
import torch

from adrpo_scale.domains.backend_choice import build_backend
from adrpo_scale.domains.backends import Vllm
from adrpo_scale.domains.text_config import TextConfig
from tests.domains.test_generation import move
from tests.domains.test_text import KEY, Parts
from tests.support.tiny_text import save_tiny

PYTHON = os.environ.get("ADRPO_TEST_VLLM")  # an interpreter that has vLLM
IS_HERE = importlib.util.find_spec("vllm") is not None

needs_vllm = pytest.mark.skipif(
    not (PYTHON or IS_HERE),
    reason="vLLM is not installed here, and ADRPO_TEST_VLLM names no interpreter that has it",
)


@needs_vllm
@pytest.mark.slow
@pytest.mark.parametrize("train", ["full", "lora"])
def test_vllm_draws_from_the_policy_that_it_was_given_last(tmp_path, monkeypatch, train):
    if not torch.cuda.is_available():
        monkeypatch.setenv("VLLM_CPU_KVCACHE_SPACE", "1")
        monkeypatch.setenv("VLLM_CPU_OMP_THREADS_BIND", "nobind")
    # On a CPU vLLM packs a tied output layer once and for all.
    untied = {"tie_word_embeddings": False, "vocab_size": 80}  # from 64 on ids without a token
    save_tiny(tmp_path, head_dim=64, initializer_range=0.1, **untied)
    made = Parts(tmp_path, f"domain.train={train}", "domain.rollout.max_new_tokens=24")
    python = PYTHON or sys.executable
    config = made.config.domain.model_copy(update={"backend": "vllm", "vllm_python": python})
    assert isinstance(config, TextConfig)
    backend = build_backend(config, made.domain.model, made.engine.device, made.engine.dtype)
    assert isinstance(backend, Vllm)
    made.domain._backend = backend
    found = []
    for seed in (1, 2):
        move(made.policy, seed)
        made.domain._backend_checked = False  # the comparison that refuses other weights
        made.domain.begin_rollout(made.policy)
        rows = made.sample()
        assert made.domain._backend_checked
        again = made.domain.sample(
            made.policy, [made.prompts[i] for i in (0, 0, 1, 2, 2, 2)], torch.arange(6), KEY
        )
        assert torch.equal(rows.tensors["lengths"], again.tensors["lengths"])
        made.domain.end_rollout()
        found.append(rows.tensors)
        tokens = rows.tensors["completion"]
        assert int(tokens.max()) < 64
        ended = rows.tensors["finished"].bool()
        lengths = rows.tensors["lengths"]
        last = tokens.gather(1, lengths[:, None] - 1)[:, 0]
        assert torch.equal(last == 2, ended) and torch.equal(
            lengths == 24, ~ended | (lengths == 24)
        )
        drawn = rows.tensors["logp_rollout"]
        off = (made.domain.remember(made.policy, rows).tensors["logp_old"] - drawn).abs().max()
        assert float(off) < (1e-3 if made.engine.device.type == "cpu" else 0.1)
    assert not torch.equal(found[0]["completion"], found[1]["completion"])
    assert backend._process.process.poll() is None
    backend._process.close()
