"""GRPO and ADRPO on clips, on every engine and number of processes, against a plain loop.

The plain loop is one process, transformers' whole thinker with its towers and its own processor,
peft's adapters, one row at a time: every sample's clip is encoded for it alone, in every pass.
"""

from __future__ import annotations

import functools
import json
import math
import os
import tempfile
from pathlib import Path

import peft
import pytest
import torch
from torch import nn
from transformers import Qwen2_5OmniProcessor, Qwen2_5OmniThinkerForConditionalGeneration

from adrpo_scale.core.errors import ClipError
from adrpo_scale.core.seeding import Purpose, generator
from adrpo_scale.core.types import DrawKey
from adrpo_scale.data.clips import read_clip
from adrpo_scale.domains import audio
from adrpo_scale.domains.decoding import SamplingConfig, pick
from adrpo_scale.domains.omni import ADAPTED
from adrpo_scale.hub.weights import initial_uniform
from adrpo_scale.run.build import build_trainer
from tests.support.audio_parts import BANNED
from tests.support.closeness import assert_adam_near, drifted, near, second_moments
from tests.support.ranks import run_ranks
from tests.support.tiny import whole_tensors
from tests.support.tiny_audio import (
    PROMPTS,
    SECONDS,
    audio_config,
    save_full,
    save_prompts,
    tiny_tokenizer,
)
from tests.support.tiny_text import many_kinds

VARIANTS = {
    "fsdp2-1": ["engine.name=fsdp2", "engine.shard=1"],
    "fsdp2-all": ["engine.name=fsdp2", "engine.shard=all"],
    "zero3-all": ["engine.name=zero3", "engine.shard=all"],
}
ALGORITHMS = {
    "adrpo": [],
    "grpo": ["algorithm={name='grpo', beta0=0.04, scale='group_std'}"],
}
UPDATES, RATE, MAX_NORM = 3, 2e-3, 0.05
GROUP, CHOSEN = 4, 4  # prompts of the iteration, in the file's order
BETA0, STEPS, RANK, END = 0.04, 12, 8, 2
TERMS = 1.0  # the size of advantages, which a loss adds up: a hundred times its own
KINDS = {
    "full": ["domain.train=full"],
    "lora": [f"domain.lora={{rank={RANK}, alpha={RANK}}}"],
}


def config(folder, variant, kind, algorithm, *more):
    settings = [
        *VARIANTS[variant],
        *KINDS[kind],
        *ALGORITHMS[algorithm],
        f"optimizer.updates={UPDATES}",
        f"optimizer.learning_rate={RATE}",
        f"optimizer.max_grad_norm={MAX_NORM}",
        "prompts.shuffle=false",
    ]
    return audio_config(folder, [*settings, *more])


# ---- the plain loop ------------------------------------------------------------------------------


class Written:
    """What the reward sees of a completion."""

    def __init__(self, text, tokens):
        self.text, self.tokens = text, tokens


def asked(processor, folder):
    """What the model is given for each prompt of the iteration, by transformers' processor."""
    found = []
    for n in range(CHOSEN):
        content = [{"type": "audio", "audio": "x"}, {"type": "text", "text": PROMPTS[n]}]
        chat = [{"role": "user", "content": content}]
        text = processor.apply_chat_template(chat, add_generation_prompt=True)
        clip = read_clip(f"clip-{n}.wav", folder)
        found.append(processor(text=[text], audio=[clip], return_tensors="pt"))
    return found


def all_logits(model, given, tokens):
    """[len(tokens) + 1, V]: of each token after the prompt, without those that are never spoken."""
    ids = torch.cat([given["input_ids"], torch.tensor(tokens).long()[None]], 1)
    more = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    logits = model(**(dict(given) | more)).logits[0, given["input_ids"].shape[1] - 1 :]
    return logits.index_fill(1, torch.tensor(BANNED), -torch.inf)


@torch.no_grad()
def drawn(model, given, sample):
    """A completion, token by token, every time from the start."""
    uniforms = torch.rand(STEPS, generator=generator(DrawKey(0, 0), sample, Purpose.TOKEN))
    tokens = []
    while len(tokens) < STEPS and END not in tokens:
        logits = all_logits(model, given, tokens)[-1:]
        tokens += pick(logits, uniforms[len(tokens)][None], SamplingConfig()).tolist()
    return tokens


def log_probabilities(model, rows):
    found = []
    for given, tokens in rows:
        logp = all_logits(model, given, tokens)[:-1].log_softmax(-1)
        found.append(logp.gather(1, torch.tensor(tokens)[:, None])[:, 0])
    return found


def rewards_of(rows):
    tokenizer = tiny_tokenizer()
    texts = [Written(tokenizer.decode(t[:-1] if t[-1] == END else t), t) for _, t in rows]
    return torch.tensor(many_kinds(texts, texts), dtype=torch.float64)


@functools.cache
def model_and_rows():
    """(folder, transformers' model, [(what it is given, completion)] of the first iteration)."""
    folder = save_full(Path(tempfile.mkdtemp()) / "model")
    save_prompts(folder / "prompts.jsonl", PROMPTS, SECONDS)
    model = Qwen2_5OmniThinkerForConditionalGeneration.from_pretrained(folder).eval()
    given = asked(Qwen2_5OmniProcessor.from_pretrained(folder), folder)
    rows = [(given[s // GROUP], drawn(model, given[s // GROUP], s)) for s in range(CHOSEN * GROUP)]
    return folder, model, rows


@functools.cache
def plain_loop(kind, algorithm):
    """(folder of the model, mean loss, mean gradient norm, trained parameters after UPDATES, their
    second moments)."""
    folder, reference, rows = model_and_rows()
    model = Qwen2_5OmniThinkerForConditionalGeneration.from_pretrained(folder).eval()
    grouped = rewards_of(rows).view(CHOSEN, GROUP)
    deviation = grouped.std(1, keepdim=True) + 1e-4
    advantages = ((grouped - grouped.mean(1, keepdim=True)) / deviation).flatten().tolist()
    for tower in (model.model.audio_tower, model.model.visual):
        tower.requires_grad_(False)
    if kind == "lora":
        adapters = peft.LoraConfig(r=RANK, lora_alpha=RANK, target_modules=ADAPTED)
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
            ratio, advantage = (logp - old[n]).exp(), advantages[n]
            surrogate = torch.minimum(advantage * ratio, advantage * ratio.clamp(0.8, 1.2))
            kl = (ref[n] - logp).exp() - (ref[n] - logp) - 1
            clipped = min(max(advantage, -BETA0), BETA0) if algorithm == "adrpo" else 0.0
            loss = loss + (-surrogate.mean() + (BETA0 - clipped) * kl.mean()) / len(rows)
        loss.backward()
        norms.append(nn.utils.clip_grad_norm_(trained.values(), MAX_NORM).item())
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    mean = math.fsum(losses) / UPDATES, math.fsum(norms) / UPDATES
    parameters = {n: p.detach() for n, p in trained.items()}
    return folder, *mean, parameters, second_moments(optimizer, trained)


# ---- ours ----------------------------------------------------------------------------------------


def trains(rank, world, folder, variant, cases):
    """For each case (kind, algorithm): the record, the trained parameters, clips encoded here."""
    found, encode = [], audio.encode_clip
    for kind, algorithm in cases:
        encoded = []
        audio.encode_clip = lambda *a, e=encoded: (e.append(len(a[2])), encode(*a))[1]
        settings = config(Path(folder), variant, kind, algorithm, "optimizer.micro_batch=3")
        trainer = build_trainer(settings, Path(tempfile.mkdtemp()))
        with trainer.log:
            record = trainer._iterate()
        whole = whole_tensors(trainer.engine)
        found.append((record, whole if rank == 0 else {}, encoded))
    return found


CASES = [("lora", "adrpo"), ("lora", "grpo"), ("full", "adrpo")]


@pytest.mark.parametrize(
    ("variant", "world"),
    [
        ("fsdp2-1", 1),
        ("zero3-all", 2),
        *(
            pytest.param(*case, marks=pytest.mark.slow)
            for case in (("fsdp2-1", 2), ("fsdp2-all", 2), ("zero3-all", 1))
        ),
    ],
)
def test_an_iteration_of_three_updates_equals_the_plain_loop(variant, world):
    folder = str(model_and_rows()[0])
    by_rank = run_ranks(trains, world, folder, variant, CASES)
    for place, case in enumerate(CASES):
        _, loss, norm, parameters, moments = plain_loop(*case)
        record, found, _ = by_rank[0][place]
        both = {(one[place][0]["loss"], one[place][0]["grad_norm"]) for one in by_rank}
        assert len(both) == 1, case
        assert norm > MAX_NORM
        assert record["loss"] == drifted(loss, UPDATES, TERMS), case
        assert record["grad_norm"] == drifted(norm, UPDATES), case
        assert found.keys() == parameters.keys(), case
        assert_adam_near(found, parameters, moments, RATE, UPDATES)
        for one in by_rank:  # at most once, in rollout, three updates and the reference's passes
            clips = one[place][2]
            assert len(clips) <= CHOSEN and (world > 1 or len(clips) == CHOSEN), case


def only_the_last_prompt(completions, prompts):
    kinds = many_kinds(completions, prompts)
    return [k if p.id == CHOSEN - 1 else math.nan for k, p in zip(kinds, prompts, strict=True)]


LESS = {
    "fewer samples than ranks": ["prompts.per_iteration=1", "prompts.group_size=2"],
    "ranks whose samples are all masked": [
        'rewards=[{kind="function", '
        'path="tests.training.test_audio_training:only_the_last_prompt"}]'
    ],
    "some prompts without a clip, chunks of one": [
        "prompts.train={folder}/mixed/prompts.jsonl",
        "domain.rollout_chunk=1",
        "optimizer.micro_batch=1",
    ],
    "no clip but on one rank, activations recomputed": [
        "prompts.train={folder}/one/prompts.jsonl",
        "engine.activation_checkpointing=true",
    ],
    "clips forgotten at once": ["domain.clip_megabytes=0"],
}
WITHOUT = {"mixed": [0.31, None, 0.2, None], "one": [None, None, None, 0.2]}


def goes_on(rank, world, folder, variant):
    found = []
    for more in LESS.values():
        more = [setting.replace("{folder}", folder) for setting in more]
        more = ["optimizer.updates=1", *more]
        settings = config(Path(folder), variant, "lora", "adrpo", *more)
        trainer = build_trainer(settings, Path(tempfile.mkdtemp()))
        with trainer.log:
            record = trainer._iterate()
        found.append((record["loss"], record["grad_norm"], record["masked"], record["updates"]))
    return found


@functools.cache
def alone():
    folder = model_and_rows()[0]
    for name, seconds in WITHOUT.items():
        (folder / name).mkdir()
        save_prompts(folder / name / "prompts.jsonl", PROMPTS[: len(seconds)], seconds)
    return run_ranks(goes_on, 1, str(folder), "fsdp2-1")[0]


@pytest.mark.parametrize(
    "variant", [pytest.param("fsdp2-all", marks=pytest.mark.slow), "zero3-all"]
)
def test_ranks_with_less_to_hear_do_not_hang_and_change_nothing(variant):
    """Three ranks against one: clips differ in length, ranks have no row, or no clip."""
    expected = alone()
    together = run_ranks(goes_on, 3, str(model_and_rows()[0]), variant)
    for place, name in enumerate(LESS):
        loss, norm, masked, updates = expected[place]
        assert updates == 1, name
        for found in together:
            assert found[place][2:] == (masked, updates), name
            assert found[place][0] == near(loss, TERMS), name
            assert found[place][1] == near(norm), name


# ---- ranks that see different folders ------------------------------------------------------------


def sees(rank, world, folder, views):
    """For each view (clips that each rank does not see): the prompts that a run is left with and
    its first record, or the error. A rank's clips are in its own working folder."""
    found = []
    for place, hidden in enumerate(views):
        mine = Path(folder) / f"view-{place}-{rank}"
        mine.mkdir()
        save_prompts(mine / "clips.jsonl", PROMPTS, SECONDS)
        for n in hidden[rank]:
            (mine / f"clip-{n}.wav").unlink()
        os.chdir(mine)
        train = f"prompts.train={folder}/relative.jsonl"
        settings = config(Path(folder), "fsdp2-all", "lora", "adrpo", "optimizer.updates=1", train)
        try:
            trainer = build_trainer(settings, Path(tempfile.mkdtemp()))
        except ClipError as error:
            found.append(str(error))
            continue
        with trainer.log:
            record = trainer._iterate()
        ids = [prompt.id for prompt in trainer.stream.prompts]
        found.append((ids, record["loss"], record["unheard"]))
    return found


EVERY = list(range(len(PROMPTS)))
VIEWS = {
    "a clip that one rank does not see yet": [[], [3]],
    "a clip that rank 0 does not see yet": [[4], []],
    "a rank that hears nothing, and is dealt what the other has heard": [[], EVERY],
    "no clip at all on rank 0": [EVERY, []],
}


def test_ranks_that_see_different_clips_train_on_the_same_prompts():
    """Rank 0 decides; what a rank then cannot hear is left out of the loss, on all ranks alike."""
    folder = model_and_rows()[0]
    rows = [json.loads(line) for line in (folder / "prompts.jsonl").read_text().splitlines()]
    lines = [json.dumps(row | {"audio_folder": "."}) + "\n" for row in rows]
    (folder / "relative.jsonl").write_text("".join(lines))
    both = run_ranks(sees, 2, str(folder), list(VIEWS.values()))
    assert both[0] == both[1]
    later, earlier, deaf, none = both[0]
    assert later[0] == EVERY and later[2] == pytest.approx(1 / CHOSEN)  # rank 1's last prompt
    assert earlier[0] == [0, 1, 2, 3, 5] and earlier[2] == 0
    assert deaf[0] == EVERY and deaf[2] == 0.5
    assert all(math.isfinite(loss) for _, loss, _ in (later, earlier, deaf))
    assert none.startswith("none of the 6 prompts has its clip; the first: clip 'clip-0.wav'")
