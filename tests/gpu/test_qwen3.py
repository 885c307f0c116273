"""Qwen3-0.6B's shape on one GPU: an iteration of GRPO with all parameters trained."""

from __future__ import annotations

import json

import pytest
import torch

from benchmarks.qwen3_0_6b import measure, parser

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]


@pytest.mark.timeout(900)
def test_full_training_of_0_6_b_parameters_fits_in_48_gb() -> None:
    figures = measure(parser().parse_args(["--trl"]))
    print(json.dumps(figures, indent=2))
    assert figures["ours"]["peak_gib"] < 48
    assert figures["ours"]["completion_tokens"] > 500  # an end is drawn now and then
