"""SD3-medium's shape on one GPU, capped to the 48 GB of an A6000."""

from __future__ import annotations

import json

import pytest
import torch

from benchmarks.sd3_medium import measure, parser

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]


@pytest.mark.timeout(900)
@pytest.mark.parametrize("checkpointing", ["true", "false"])
def test_lora_iterations_fit_in_48_gb(checkpointing: str) -> None:
    flags = ["--set", f"engine.activation_checkpointing={checkpointing}"]
    figures = measure(parser().parse_args(flags))
    print(json.dumps(figures, indent=2))
    assert figures["peak_gib"] < 48
    assert figures["samples_per_second"] > 0
