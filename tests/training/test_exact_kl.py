"""The exact KL's gradient on every engine, number of processes and micro-batch, against a plain
loop.

The plain loop is transformers' model in float64, whole logits of one row at a time and autograd:
nothing of the engines, of chunks, of the head that policy and reference share.
"""

from __future__ import annotations

import functools
import os
import tempfile
from pathlib import Path

import peft
import pytest
import torch
from transformers import Qwen3ForCausalLM

from adrpo_scale.algorithms.terms import ExactLikelihoodTerms
from adrpo_scale.core import dist
from adrpo_scale.core.types import DrawKey, Rows
from adrpo_scale.domains.language_model import LINEAR
from adrpo_scale.run.build import build_trainer
from tests.support.closeness import CANCELLED, EPS, LOGP
from tests.support.engine_cases import PER_NODE, VARIANTS
from tests.support.ranks import run_ranks
from tests.support.tiny import load_whole, whole_tensors
from tests.support.tiny_text import PROMPTS, save_tiny, text_config
from tests.training.test_text_training import KINDS, RANK, chat_ids

ROWS, STEPS, TEMPERATURE, CHUNK = 8, 12, 0.7, 7
MICRO_BATCHES = (1, 2, 4)  # of the four rows that each of two ranks has
HEADS = {"tied": True, "untied": False}


def config(folder, variant, kind, *more):
    settings = [
        *VARIANTS[variant],
        *KINDS[kind],
        f"domain.rollout.temperature={TEMPERATURE}",
        f"domain.head_chunk={CHUNK}",
        'algorithm.kl_estimator="exact"',
        "optimizer.beta1=0",  # Adam's first moment is then the gradient
        "optimizer.max_grad_norm=1e9",
    ]
    return text_config(Path(folder), [*settings, *more])


def completions():
    """(prompt id, completion) of each row; the same everywhere."""
    random = torch.Generator().manual_seed(0)
    lengths = torch.randint(1, STEPS + 1, (ROWS,), generator=random).tolist()
    tokens = torch.randint(3, 64, (ROWS, STEPS), generator=random)
    return [(n // 2, tokens[n, : lengths[n]]) for n in range(ROWS)]


def weights():
    return torch.rand(ROWS, generator=torch.Generator().manual_seed(1)) * 4 - 1


def moved(name, tensor):
    """A trained tensor, visibly away from its start: its noise depends on its name alone."""
    noise = torch.Generator().manual_seed(len(name))
    return tensor + 0.05 * torch.randn(tensor.shape, generator=noise)


# ---- the plain loop ------------------------------------------------------------------------------


def by_all_logits(kind, head, start):
    """(KL of each row's tokens, gradient by name) in float64. start: the trained tensors before
    they are moved."""
    policy = plain_model(kind, head, {name: moved(name, each) for name, each in start.items()})
    parameters = dict(policy.named_parameters())
    divergences = divergences_of(policy, plain_model("full", head))
    loss = sum(w * kl.mean() / ROWS for w, kl in zip(weights().tolist(), divergences, strict=True))
    loss.backward()
    gradients = {name: parameters[name].grad for name in start}
    return torch.cat(divergences).detach(), gradients


def plain_model(kind, head, tensors=None):
    """transformers' model in float64. tensors: trained ones that differ from the folder's."""
    model = Qwen3ForCausalLM.from_pretrained(folder_of(head))
    if kind == "lora":
        adapters = peft.LoraConfig(r=RANK, lora_alpha=RANK, target_modules=list(LINEAR))
        peft.inject_adapter_in_model(adapters, model)
    parameters = dict(model.named_parameters())
    with torch.no_grad():
        for name, tensor in (tensors or {}).items():
            parameters[name].copy_(tensor)
    return model.double()


def divergences_of(policy, reference):
    """The sum over the vocabulary of p log(p / q) at each token of each row."""
    found = []
    for prompt, completion in completions():
        ids = torch.tensor([[*chat_ids(PROMPTS[prompt]), *completion.tolist()]])
        inside = slice(-len(completion) - 1, -1)
        logp, logq = (
            (model(input_ids=ids).logits[0, inside] / TEMPERATURE).log_softmax(-1)
            for model in (policy, reference)
        )
        found.append((logp.exp() * (logp - logq.detach())).sum(-1))
    return found


@functools.cache
def folder_of(head):
    folder = Path(tempfile.mkdtemp()) / "model"
    return save_tiny(folder, tie_word_embeddings=HEADS[head])


# ---- ours ----------------------------------------------------------------------------------------


def rows_of(start, stop):
    chosen = completions()[start:stop]
    tokens = torch.zeros(len(chosen), STEPS, dtype=torch.int64)
    for row, (_, completion) in zip(tokens, chosen, strict=True):
        row[: len(completion)] = completion
    lengths = torch.tensor([len(completion) for _, completion in chosen])
    tensors = {"completion": tokens, "lengths": lengths, "finished": torch.ones_like(lengths)}
    return Rows(torch.arange(start, stop), torch.tensor([p for p, _ in chosen]), tensors)


def whole_gradients(engine):
    """Every trained parameter's gradient of the last step, put together from all ranks."""
    found, places = engine.moments()["exp_avg"], engine.places()
    mine = {n: (places[n].start, t.detach().reshape(-1).clone()) for n, t in found.items()}
    everybodys = dist.gather_objects(mine)
    whole = {}
    for name, place in places.items():
        flat = torch.full((torch.Size(place.shape).numel(),), torch.nan)
        for parts in everybodys:
            start, values = parts[name]
            flat[start : start + len(values)] = values
        whole[name] = flat.view(place.shape)
    return whole


def differentiates(rank, world, folder, variant, kinds, micro_batches):
    """[(start, KL of this rank's tokens, gradients)] of each kind and micro-batch."""
    os.environ["LOCAL_WORLD_SIZE"] = str(min(PER_NODE, world))
    os.environ["LOCAL_RANK"] = str(rank % PER_NODE)
    found = []
    for kind in kinds:
        trainer = build_trainer(config(folder, variant, kind), Path(tempfile.mkdtemp()))
        engine, start = trainer.engine, whole_tensors(trainer.engine)
        load_whole(engine, {name: moved(name, tensor) for name, tensor in start.items()})
        mine = dist.block(ROWS, rank, world)
        for size in micro_batches:
            kl, places = [], range(mine.start, mine.stop, size)
            for place in places:
                rows = rows_of(place, min(place + size, mine.stop))
                terms = trainer.domain.terms(
                    trainer.policy,
                    trainer.reference,
                    rows,
                    rows.sample_ids_N,
                    DrawKey(0, 0),
                    trainer.algorithm.wanted,
                )
                assert type(terms) is ExactLikelihoodTerms
                factors = weights()[place : place + len(rows)]
                loss = (factors * terms.divergence()).sum() / ROWS
                engine.backward(loss, last=place == places[-1])
                kl.append(terms.kl_K.detach())
            engine.step(0.0)
            gradients = whole_gradients(engine)
            found.append((kind, start, torch.cat(kl), gradients if rank == 0 else {}))
    return found


def check(variant, world, kinds, head="tied", micro_batches=MICRO_BATCHES):
    by_rank = run_ranks(differentiates, world, str(folder_of(head)), variant, kinds, micro_batches)
    for place, (kind, start, _, gradients) in enumerate(by_rank[0]):
        kl, expected = by_all_logits(kind, head, start)
        assert float(kl.min()) > 1e-3
        found = torch.cat([each[place][2] for each in by_rank])
        torch.testing.assert_close(found.double(), kl, **LOGP)
        assert gradients.keys() == expected.keys()
        sizes = {n: g.square().mean().sqrt() for n, g in expected.items()}
        of_all = torch.cat([g.flatten() for g in expected.values()]).square().mean().sqrt()
        for name, wanted in expected.items():
            tolerance = CANCELLED * EPS * float(max(sizes[name], of_all))
            off = float((gradients[name].double() - wanted).abs().max())
            assert off <= tolerance, (name, off / tolerance)


@pytest.mark.parametrize("head", HEADS)
def test_the_gradient_on_one_process(head):
    check("fsdp2-1", 1, ["full", "lora"], head, [3, ROWS])


DECAY = 0.25


@pytest.mark.parametrize("kind", KINDS)
def test_the_reference_may_move(kind):
    """The exact KL is that to the moving average, and the base's divergence k3's."""
    moves = ["reference.kind=ema", f"reference.decay={DECAY}"]
    made = config(folder_of("tied"), "fsdp2-1", kind, *moves)
    trainer = build_trainer(made, Path(tempfile.mkdtemp()))
    start = whole_tensors(trainer.engine)
    first = {name: moved(name, tensor) for name, tensor in start.items()}
    second = {name: 2 * tensor - start[name] for name, tensor in first.items()}  # twice as far
    load_whole(trainer.engine, first)
    trainer.references.moving.move(1)
    load_whole(trainer.engine, second)
    rows = rows_of(0, ROWS)
    with torch.no_grad():
        terms = trainer.domain.terms(
            trainer.policy,
            trainer.reference,
            rows,
            rows.sample_ids_N,
            DrawKey(0, 0),
            trainer.algorithm.wanted,
            base=trainer.references.base,
        )
        average = {n: DECAY * start[n] + (1 - DECAY) * first[n] for n in start}
        policy = plain_model(kind, "tied", second)
        to_average = torch.cat(divergences_of(policy, plain_model(kind, "tied", average)))
        to_base = torch.cat(divergences_of(policy, plain_model("full", "tied")))
    assert type(terms) is ExactLikelihoodTerms
    torch.testing.assert_close(terms.kl_K.double(), to_average, **LOGP)
    assert float((to_average - to_base).abs().mean()) > 0.01  # another reference would be seen
    ratio_K = terms.logp_base_K - terms.logp_K
    k3_K = ratio_K.exp() - ratio_K - 1
    per_row = [k3_K[terms.segment_K == row].mean() for row in range(ROWS)]
    torch.testing.assert_close(terms.base_divergence(), torch.stack(per_row), **LOGP)


@pytest.mark.parametrize("variant", ["fsdp2-all", "zero3-all"])
def test_the_gradient_on_a_sharded_model(variant):
    """Full training: the reference's output layer is sharded as well."""
    check(variant, 2, ["full"])


SLOW = [
    *(("fsdp2-1", 2, "tied"), ("fsdp2-all", 2, "untied"), ("zero3-all", 2, "untied")),
    *(("fsdp2-node", 4, "tied"), ("zero3-node", 4, "tied"), ("zero3-offload", 2, "tied")),
]


@pytest.mark.slow
@pytest.mark.parametrize(("variant", "world", "head"), SLOW)
def test_the_gradient_on_every_engine(variant, world, head):
    check(variant, world, ["full", "lora"], head, [2])
