"""Who reads the weights of a model that every rank holds whole."""

from __future__ import annotations

import pytest
import torch

from adrpo_scale.engines import fsdp2
from tests.support.engine_cases import build, weights_on_disk
from tests.support.ranks import run_ranks


def bytes_read(rank, world, variant, kind, *settings):
    """(elements that this rank has read from the files, whether its parameters are right)."""
    engine, spec = build(variant, kind, *settings)
    read = []
    real = fsdp2.first_values

    def counted(*arguments):
        values = real(*arguments)
        read.append(values.numel())
        return values

    fsdp2.first_values = counted
    model = engine.build_policy(spec)
    expected = weights_on_disk()
    with engine.sampling(model):
        found = {n.replace(".base_layer", ""): p for n, p in model.named_parameters()}
        are_equal = [
            torch.equal(found[name].detach(), value.to(found[name].dtype))
            for name, value in expected.items()
            if name in found
        ]
    return sum(read), all(are_equal) and len(are_equal) > 5


@pytest.mark.parametrize("settings", [(), ("engine.dtype=bfloat16",)])
def test_a_replicated_model_is_read_once_and_sent_to_the_others(settings):
    (first, is_right), (second, is_right_too) = run_ranks(
        bytes_read, 2, "fsdp2-1", "full", *settings
    )
    assert first > 0 and second == 0 and is_right and is_right_too


def test_shards_are_read_by_the_ranks_that_hold_them():
    (first, _), (second, _) = run_ranks(bytes_read, 2, "fsdp2-all", "lora")
    assert second > 0 and abs(first - second) < first / 2
