"""Qwen2.5-Omni-7B's thinker by its shape on one GPU: an iteration of GRPO with adapters."""

from __future__ import annotations

import json
import math

import pytest
import torch

from benchmarks.omni_7b import measure, parser

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]


@pytest.mark.timeout(900)
def test_adapters_of_the_7b_thinker_train_on_clips_in_48_gb() -> None:
    figures = measure(parser().parse_args([]))
    print(json.dumps(figures, indent=2))
    assert figures["parameters"] > 7.6e9 and figures["peak_gib"] < figures["cap_gib"]
    assert figures["clip_tokens"] == 250 and figures["completion_tokens"] > 200
    assert 0 < figures["grad_norm"] < math.inf
