"""GRPO and ADRPO on tokens, on every engine and number of processes, against a plain loop.

The plain loop is one process, transformers' model, all logits at once, peft's adapters, one batch:
nothing of the engines, of micro-batches, of the packed log-probabilities.
"""

from __future__ import annotations

import functools
import math
import tempfile
from pathlib import Path

import peft
import pytest
import torch
from torch import nn
from transformers import Qwen3ForCausalLM

from adrpo_scale.core import dist
from adrpo_scale.core.seeding import Purpose, generator
from adrpo_scale.core.types import DrawKey
from adrpo_scale.domains.decoding import SamplingConfig, generate
from adrpo_scale.domains.language_model import LINEAR
from adrpo_scale.hub.weights import initial_uniform
from adrpo_scale.run.build import build_trainer
from adrpo_scale.training.rollout import sample_block
from tests.support.closeness import assert_adam_near, drifted, near, second_moments
from tests.support.engine_cases import GatheredBytes
from tests.support.ranks import run_ranks
from tests.support.tiny import whole_tensors
from tests.support.tiny_text import PROMPTS, many_kinds, save_tiny, text_config, tiny_tokenizer

VARIANTS = {
    "fsdp2-1": ["engine.name=fsdp2", "engine.shard=1"],
    "fsdp2-all": ["engine.name=fsdp2", "engine.shard=all"],
    "zero3-all": ["engine.name=zero3", "engine.shard=all"],
}
UPDATES, RATE, MAX_NORM = 5, 2e-3, 0.05
GROUP, CHOSEN = 4, 4  # prompts of the iteration, in the file's order
BETA0, STEPS, RANK = 0.04, 12, 8
TERMS = 1.0  # the size of advantages, which a loss adds up: a hundred times its own
KINDS = {
    "full": ["domain.train=full"],
    "lora": ["domain.train=lora", f"domain.lora={{rank={RANK}, alpha={RANK}}}"],
}


def config(folder, variant, kind, *more):
    settings = [
        *VARIANTS[variant],
        *KINDS[kind],
        f"optimizer.updates={UPDATES}",
        f"optimizer.learning_rate={RATE}",
        f"optimizer.max_grad_norm={MAX_NORM}",
        "prompts.shuffle=false",
    ]
    return text_config(folder, [*settings, *more])


# ---- the plain loop --------------------------------------------------------------------------


def chat_ids(text):
    rendered = f"<|im_start|> user {text} <|im_end|> <|im_start|> assistant"
    return tiny_tokenizer()(rendered)["input_ids"]


class Written:
    """What the reward sees of a completion."""

    def __init__(self, text, tokens):
        self.text, self.tokens = text, tokens


def rollout(model):
    """([(prompt ids, completion ids)], rewards [S]) of the first iteration."""
    prompts = [chat_ids(PROMPTS[s // GROUP]) for s in range(CHOSEN * GROUP)]
    key = DrawKey(0, 0)
    uniforms = torch.stack(
        [torch.rand(STEPS, generator=generator(key, s, Purpose.TOKEN)) for s in range(len(prompts))]
    )
    found = generate(model, prompts, uniforms, SamplingConfig(max_new_tokens=STEPS), [2], 0)
    rows = [
        (prompt, tokens[:length].tolist())
        for prompt, tokens, length in zip(prompts, found.tokens_NT, found.lengths_N, strict=True)
    ]
    tokenizer = tiny_tokenizer()
    texts = [
        Written(tokenizer.decode(c[:-1] if done else c), c)
        for (_, c), done in zip(rows, found.finished_N.tolist(), strict=True)
    ]
    return rows, torch.tensor(many_kinds(texts, texts), dtype=torch.float64)


def log_probabilities(model, rows):
    found = []
    for prompt, completion in rows:
        logits = model(input_ids=torch.tensor([prompt + completion])).logits[0]
        logp = logits[len(prompt) - 1 : -1].log_softmax(-1)
        found.append(logp.gather(1, torch.tensor(completion)[:, None])[:, 0])
    return found


@functools.cache
def plain_loop(kind):
    """(folder of the model, mean loss, mean gradient norm, trained parameters after UPDATES, their
    second moments)."""
    folder = save_tiny(Path(tempfile.mkdtemp()) / "model")
    model = Qwen3ForCausalLM.from_pretrained(folder)
    reference = Qwen3ForCausalLM.from_pretrained(folder)
    rows, rewards = rollout(model.eval())
    grouped = rewards.view(CHOSEN, GROUP)
    deviation = grouped.std(1, keepdim=True) + 1e-4
    advantages = ((grouped - grouped.mean(1, keepdim=True)) / deviation).flatten().tolist()
    if kind == "lora":
        adapters = peft.LoraConfig(r=RANK, lora_alpha=RANK, target_modules=list(LINEAR))
        peft.inject_adapter_in_model(adapters, model)
        for name, parameter in model.named_parameters():
            if ".lora_A." in name:
                parameter.data = initial_uniform(name, parameter.shape, parameter.shape[1], 0)
    trained = {n: p for n, p in model.named_parameters() if p.requires_grad}
    optimizer = torch.optim.AdamW(trained.values(), lr=RATE, weight_decay=0.0)
    with torch.no_grad():
        old, ref = log_probabilities(model, rows), log_probabilities(reference, rows)
    losses, norms = [], []
    for _ in range(UPDATES):
        loss = torch.zeros(())
        for n, logp in enumerate(log_probabilities(model, rows)):
            ratio = (logp - old[n]).exp()
            advantage = advantages[n]
            surrogate = torch.minimum(advantage * ratio, advantage * ratio.clamp(0.8, 1.2))
            kl = (ref[n] - logp).exp() - (ref[n] - logp) - 1
            beta = BETA0 - min(max(advantage, -BETA0), BETA0)
            loss = loss + (-surrogate.mean() + beta * kl.mean()) / len(rows)
        loss.backward()
        norms.append(nn.utils.clip_grad_norm_(trained.values(), MAX_NORM).item())
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    mean = math.fsum(losses) / UPDATES, math.fsum(norms) / UPDATES
    parameters = {n: p.detach() for n, p in trained.items()}
    return folder, *mean, parameters, second_moments(optimizer, trained)


# ---- ours ------------------------------------------------------------------------------------


def trains(rank, world, folder, variant, kind, more):
    run = Path(tempfile.mkdtemp())
    trainer = build_trainer(config(Path(folder), variant, kind, *more), run)
    with trainer.log:
        record = trainer._iterate()
    whole = whole_tensors(trainer.engine)
    return record, whole if rank == 0 else {}


@pytest.mark.parametrize("world", [1, 2, pytest.param(4, marks=pytest.mark.slow)])
@pytest.mark.parametrize("kind", ["lora", "full"])
@pytest.mark.parametrize("variant", VARIANTS)
def test_an_iteration_of_five_updates_equals_the_plain_loop(variant, kind, world):
    folder, loss, norm, parameters, moments = plain_loop(kind)
    assert norm > MAX_NORM
    by_rank = run_ranks(trains, world, str(folder), variant, kind, ["optimizer.micro_batch=3"])
    record, found = by_rank[0]
    assert len({(r["loss"], r["grad_norm"], r["reward"]) for r, _ in by_rank}) == 1
    assert record["loss"] == drifted(loss, UPDATES, TERMS)
    assert record["grad_norm"] == drifted(norm, UPDATES)
    assert found.keys() == parameters.keys()
    assert_adam_near(found, parameters, moments, RATE, UPDATES)


# ---- ranks that have less to do than others ----------------------------------------------------


def only_the_last_prompt(completions, prompts):
    """Fails for every prompt but the iteration's last one: the first ranks have nothing left."""
    kinds = many_kinds(completions, prompts)
    return [k if p.id == CHOSEN - 1 else math.nan for k, p in zip(kinds, prompts, strict=True)]


def nothing_at_all(completions, prompts):
    return [math.nan] * len(completions)


LESS = {
    "ranks whose samples are all masked": [
        'rewards=[{kind="function", path="tests.training.test_text_training:only_the_last_prompt"}]'
    ],
    "no sample at all": [
        'rewards=[{kind="function", path="tests.training.test_text_training:nothing_at_all"}]'
    ],
    "fewer samples than ranks": ["prompts.per_iteration=1", "prompts.group_size=2"],
    "chunks of one": ["domain.rollout_chunk=1", "optimizer.micro_batch=1"],
    "truncated ones left out": ["domain.mask_truncated=true"],
    "winners alone": ["algorithm={name='raft'}"],
    "pairs": ["algorithm={name='dpo', beta=0.1}"],
    "weighted": ["algorithm={name='orw_cfm_w2', beta=0.04, scale='group_std'}"],
    "activations recomputed": ["engine.activation_checkpointing=true"],
    "two minibatches": ["optimizer.minibatches=2", "algorithm.aggregation=token"],
}
# What no engine has a part in; ZeRO-3 takes seconds to begin each.
ALIKE = ("chunks of one", "truncated ones left out", "two minibatches")


def goes_on(rank, world, folder, variant, settings):
    found = []
    for more in settings:
        run = Path(tempfile.mkdtemp())
        trainer = build_trainer(config(Path(folder), variant, "full", *more), run)
        with trainer.log:
            record = trainer._iterate()
        found.append((record["loss"], record["grad_norm"], record["masked"], record["updates"]))
    return found


@pytest.mark.parametrize(
    "variant", ["fsdp2-all", pytest.param("zero3-all", marks=pytest.mark.slow)]
)
def test_ranks_with_less_to_do_do_not_hang_and_change_nothing(variant):
    """Four ranks against one: completions differ in length, ranks have no rows, or none counts."""
    folder, *_ = plain_loop("full")
    names = [name for name in LESS if variant == "fsdp2-all" or name not in ALIKE]
    settings = [LESS[name] for name in names]
    alone = run_ranks(goes_on, 1, str(folder), "fsdp2-1", settings)[0]
    together = run_ranks(goes_on, 4, str(folder), variant, settings)
    for place, name in enumerate(names):
        loss, norm, masked, updates = alone[place]
        for found in together:
            assert found[place][2:] == (masked, updates), name
            if updates:
                assert found[place][0] == drifted(loss, UPDATES, TERMS), name
                assert found[place][1] == drifted(norm, UPDATES), name
    assert alone[0][2] == (CHOSEN - 1) * GROUP and alone[1][3] == 0


def trains_in_bfloat16(rank, world, folder, variant, kind):
    more = ["engine.dtype=bfloat16", "engine.activation_checkpointing=true"]
    trainer = build_trainer(config(Path(folder), variant, kind, *more), Path(tempfile.mkdtemp()))
    start = whole_tensors(trainer.engine)
    with trainer.log:
        record = trainer._iterate()
    end = whole_tensors(trainer.engine)
    moved = sum(float((end[n] - start[n]).square().sum()) for n in start) ** 0.5
    assert {t.dtype for t in end.values()} == {torch.float32}
    return record["loss"], record["entropy"], record["grad_norm"], moved


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["lora", "full"])
def test_bfloat16_gives_nearly_the_same_on_every_engine(kind):
    """Other tokens may be drawn, so only sizes can be compared."""
    folder, *_ = plain_loop(kind)
    (plain,) = run_ranks(trains_in_bfloat16, 1, str(folder), "fsdp2-1", kind)
    for variant in ("fsdp2-1", "fsdp2-all", "zero3-all"):
        for _, entropy, norm, moved in run_ranks(trains_in_bfloat16, 2, str(folder), variant, kind):
            assert entropy == pytest.approx(plain[1], rel=0.2)
            assert norm == pytest.approx(plain[2], rel=0.5)
            assert moved == pytest.approx(plain[3], rel=0.2)


def evaluates(rank, world, folder, variant):
    run = Path(tempfile.mkdtemp())
    more = ["evaluation.every=1", "evaluation.prompts=3"]  # greedy: three rows on four ranks
    trainer = build_trainer(config(Path(folder), variant, "full", *more), run)
    with trainer.log:
        result = trainer.evaluator.evaluate(trainer.policy, trainer.reference, "train")
    return result.metrics


@pytest.mark.parametrize("variant", ["fsdp2-all", "zero3-all"])
def test_evaluations_do_not_depend_on_the_number_of_processes(variant):
    folder, *_ = plain_loop("full")
    (alone,) = run_ranks(evaluates, 1, str(folder), "fsdp2-1")
    assert {"reward", "reward_greedy", "kinds_greedy", "kinds_sampled"} <= alone.keys()
    assert {"kl", "entropy", "completion_tokens", "truncated"} <= alone.keys()
    for found in run_ranks(evaluates, 4, str(folder), variant):
        assert found.keys() == alone.keys()
        for name, (value, n) in alone.items():
            assert found[name][1] == n
            assert found[name][0] == near(value, TERMS), name


def gathers(rank, world, folder, variant):
    """(bytes gathered in a rollout, tokens generated) for few and for many tokens."""
    found = []
    for tokens in (2, 40):
        more = [f"domain.rollout.max_new_tokens={tokens}"]
        trainer = build_trainer(
            config(Path(folder), variant, "full", *more), Path(tempfile.mkdtemp())
        )
        prompts = trainer.stream.at(0)
        with GatheredBytes() as gathered, trainer.engine.sampling(trainer.policy):
            rows = sample_block(trainer.domain, trainer.policy, prompts, 4, DrawKey(0, 0), 4)
        found.append((gathered.count, int(rows.tensors["lengths"].sum())))
    return found


@pytest.mark.parametrize("variant", ["fsdp2-all", "zero3-all"])
def test_a_rollout_gathers_every_parameter_once_whatever_the_number_of_tokens(variant):
    folder, _, _, parameters, _ = plain_loop("full")
    once = sum(4 * tensor.numel() for tensor in parameters.values())
    padding = sum(4 * 2 * tensor[:1].numel() for tensor in parameters.values())
    for (few, short), (many, long) in run_ranks(gathers, 2, str(folder), variant):
        assert few == many and long > 3 * short
        assert once <= many <= 1.01 * once + padding


def rewards_of_a_sharded_model(rank, world, folder, rm):
    found = []
    for placement in ("replicated", "sharded"):
        reward = f'{{kind="reward_model", model="{rm}", dtype="float32", placement="{placement}"}}'
        more = [f"rewards=[{reward}]", "prompts.per_iteration=3", "prompts.group_size=2"]
        variant = "fsdp2-all" if placement == "sharded" else "fsdp2-1"
        trainer = build_trainer(
            config(Path(folder), variant, "full", *more), Path(tempfile.mkdtemp())
        )
        with trainer.log:
            found.append(trainer._iterate()["reward"])
    assert dist.world_size() == world
    return found


def test_a_sharded_reward_model_gives_what_a_replicated_one_does(tmp_path):
    from tests.support.tiny_text import save_tiny_reward

    folder, *_ = plain_loop("full")
    rm = save_tiny_reward(tmp_path / "rm")
    for replicated, sharded in run_ranks(rewards_of_a_sharded_model, 4, str(folder), str(rm)):
        assert sharded == near(replicated, TERMS)
