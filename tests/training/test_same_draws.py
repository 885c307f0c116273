"""Updates of one iteration on the same draws, with errors of the old policy: in every engine."""

from __future__ import annotations

import pytest
import torch

from adrpo_scale.algorithms.awm import Awm
from tests.support.closeness import drifted
from tests.support.engine_cases import VARIANTS
from tests.support.ranks import run_ranks
from tests.support.tiny import FULL, demo_config, demo_trainer, records

UPDATES, MINIBATCHES, DRAWS = 2, 2, 2
SETTINGS = [
    f"algorithm={{name='{__name__}:Watched', scale='group_std'}}",
    *("reference.kind=ema", "reference.decay=0.3", "reference.base_coefficient=0.003"),
    *(f"optimizer.updates={UPDATES}", f"optimizer.minibatches={MINIBATCHES}"),
    *(f"optimizer.draws_per_sample={DRAWS}", "prompts.per_iteration=2", "domain.rollout.steps=2"),
]
TERMS = 0.1  # the size of what a loss of this demo adds up


class Watched(Awm):
    """Keeps the draws, errors and old errors of every pass."""

    def loss(self, terms, credit):
        SEEN.append([n.detach().clone() for n in (terms.noise_N, terms.error_N, terms.old_error_N)])
        return super().loss(terms, credit)


SEEN: list[list[torch.Tensor]] = []


def trains(rank, world, folder, settings):
    SEEN.clear()
    demo_trainer(folder / f"{world}", demo_config("adrpo", [*SETTINGS, *settings])).train()
    # [update, minibatch, draw, of noise error old, row]
    shape = (UPDATES, MINIBATCHES, DRAWS, 3, -1)
    return torch.stack([torch.stack(each) for each in SEEN]).view(shape)


def check(seen):
    noise, error, old = seen.unbind(3)
    assert noise.unique().numel() == noise[0].numel()
    # Draws and old errors are those of the first update.
    assert torch.equal(noise[1], noise[0]) and torch.equal(old[1], old[0])
    ratio = (old - error).exp()
    assert torch.equal(ratio[0, 0], torch.ones_like(ratio[0, 0]))  # before the first step
    assert (ratio[0, 1] != 1).all() and (ratio[1] != 1).all()


@pytest.mark.parametrize(
    ("variant", "world", "trained"),
    [
        ("fsdp2-1", 1, []),
        *(
            pytest.param(*case, marks=pytest.mark.slow)
            for case in (("fsdp2-all", 2, FULL), ("zero3-all", 2, []), ("zero3-all", 2, FULL))
        ),
    ],
    ids=["lora", "full-fsdp2", "lora-zero3", "full-zero3"],
)
def test_all_updates_have_the_draws_of_the_first_and_ratios_to_the_policy_before(
    tmp_path, variant, world, trained
):
    for seen in run_ranks(trains, world, tmp_path, [*VARIANTS[variant], *trained]):
        check(seen)
    if world > 1:
        run_ranks(trains, 1, tmp_path, trained)
        (alone,), (shared,) = records(tmp_path / "1"), records(tmp_path / f"{world}")
        for name in ("loss", "grad_norm", "divergence"):
            assert shared[name] == drifted(alone[name], UPDATES * MINIBATCHES, TERMS), name
