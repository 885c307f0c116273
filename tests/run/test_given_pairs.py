"""Runs on given pairs: the loss, the samples at any number of ranks, resumes, and refusals."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import Qwen3ForCausalLM

from adrpo_scale.core import dist
from adrpo_scale.core.errors import ConfigError
from adrpo_scale.run.build import build_trainer
from adrpo_scale.training.given import given_parts
from tests.support import starts
from tests.support.closeness import drifted
from tests.support.given_pairs import (
    PAIRS,
    picture_pairs,
    picture_settings,
    save_pictures,
    text_pairs,
)
from tests.support.ranks import run_ranks
from tests.support.tiny import demo_trainer, records, whole_tensors
from tests.support.tiny_text import save_tiny, tiny_tokenizer

BETA, LOSS = 0.1, 1.0  # LOSS: the size of what a loss adds up


# ---- the loss ------------------------------------------------------------------------------------


def log_likelihood(model, prompt, answer):
    """The sum over the answer's tokens and <|im_end|>, of the whole logits."""
    tokenizer = tiny_tokenizer()
    text = tokenizer.apply_chat_template(
        [{"role": "user", "content": prompt}], tokenize=False, add_generation_prompt=True
    )
    before = tokenizer(text, add_special_tokens=False)["input_ids"]
    ids = [*before, *tokenizer(answer, add_special_tokens=False)["input_ids"], 2]
    with torch.no_grad():
        logits = model(torch.tensor([ids])).logits[0].double()
    chances = logits.log_softmax(-1)
    places = range(len(before), len(ids))
    return sum(float(chances[place - 1, ids[place]]) for place in places)


def dpo_by_hand(policy, base, pairs):
    """The mean of -log sigmoid(beta · (log ratio of chosen - log ratio of rejected))."""
    losses = []
    for prompt, *answers in pairs:
        chosen, rejected = (
            log_likelihood(policy, prompt, a) - log_likelihood(base, prompt, a) for a in answers
        )
        losses.append(math.log1p(math.exp(-BETA * (chosen - rejected))))
    return sum(losses) / len(losses)


def test_the_loss_is_dpos_written_out(tmp_path):
    trainer = build_trainer(
        text_pairs(tmp_path, "iterations=2", "prompts.per_iteration=3"), tmp_path
    )
    trainer.train(1)
    policy, base = (Qwen3ForCausalLM.from_pretrained(tmp_path) for _ in range(2))
    policy.load_state_dict(whole_tensors(trainer.engine), strict=False)
    trainer.train()
    by_prompt = {pair[0]: pair for pair in PAIRS}
    first, second = ([by_prompt[p.text] for p in trainer.stream.at(3 * k)] for k in range(2))
    assert first != second
    losses = [line["loss"] for line in records(tmp_path)]
    expected = dpo_by_hand(policy, base, second)
    assert abs(expected - math.log(2)) > 0.01
    assert losses == [drifted(math.log(2), 1, LOSS), drifted(expected, 1, LOSS)]


def test_raft_trains_on_the_chosen_answers_alone(tmp_path):
    trainer = build_trainer(text_pairs(tmp_path, "prompts.per_iteration=3", name="raft"), tmp_path)
    prompts = trainer.stream.at(0)
    trainer.train()
    base = Qwen3ForCausalLM.from_pretrained(tmp_path)
    chosen = {pair[0]: pair[1] for pair in PAIRS}
    # Supervised: the mean log-probability of a completion's tokens.
    expected = [
        -log_likelihood(base, p.text, chosen[p.text]) / (len(chosen[p.text].split()) + 1)
        for p in prompts
    ]
    assert records(tmp_path)[0]["loss"] == drifted(sum(expected) / 3, 1, 10 * LOSS)


# ---- the samples ---------------------------------------------------------------------------------


def test_a_picture_becomes_the_mean_of_the_vae(tmp_path):
    trainer = demo_trainer(tmp_path / "run", picture_pairs(tmp_path))
    (rows,) = given_parts(trainer.domain, trainer.stream.at(0)[:1], 2, 1, lambda: None)
    row = trainer.stream.at(0)[0]
    vae = trainer.domain._vae
    for place, key in enumerate(("chosen", "rejected")):
        with Image.open(tmp_path / row.metadata[key]) as picture:
            middle = np.asarray(picture)[:, 5:25]  # 30 x 20 pixels: the demo has 20 x 20
        pixels = torch.tensor(middle).permute(2, 0, 1)[None] / 127.5 - 1
        with torch.no_grad():
            mean = vae.encode(pixels).latent_dist.mode()
        latents = (mean - vae.config.shift_factor) * vae.config.scaling_factor
        assert torch.equal(rows.tensors["x1"][place], latents[0])
    assert rows.sample_ids_N.tolist() == [0, 1]
    assert rows.prompt_ids_N.tolist() == [row.id, row.id]


def sampled(rank, world, folder, kind):
    """Two iterations; on rank 0 the given rows of the third."""
    make = {"text": text_pairs, "pictures": picture_pairs}[kind]
    trainer = demo_trainer(folder / f"run-{world}", make(folder, "iterations=2"))
    trainer.train()
    prompts = trainer.stream.at(2 * trainer.stream.per_iteration)
    parts = [*given_parts(trainer.domain, prompts, 3, 3, lambda: None)]
    whole = {
        name: dist.gather_rows(torch.cat([part.tensors[name] for part in parts]))
        for name in parts[0].tensors
    }
    if rank == 0:
        torch.save(whole, folder / f"rows-{world}.pt")


@pytest.mark.parametrize("kind", ["text", "pictures"])
def test_two_ranks_have_the_samples_of_one(tmp_path, kind):
    {"text": save_tiny, "pictures": save_pictures}[kind](tmp_path)
    for world in (1, 2):
        run_ranks(sampled, world, tmp_path, kind)
    one, two = (torch.load(tmp_path / f"rows-{n}.pt", weights_only=True) for n in (1, 2))
    assert one.keys() == two.keys()
    for name, values in one.items():
        assert len(values) == 8 and torch.equal(values, two[name]), name
    alone, both = (records(tmp_path / f"run-{n}") for n in (1, 2))
    for mine, theirs in zip(alone, both, strict=True):
        assert mine["reward"] == theirs["reward"] == 0.5
        assert mine["loss"] == drifted(theirs["loss"], 2, terms=LOSS)


# ---- resumes -------------------------------------------------------------------------------------


def train(folder, *settings, code=0):
    """A start of the image demo on the pairs beside `folder`; its text."""
    every = ["checkpoint.every_iterations=1", "iterations=4", *picture_settings(folder.parent)]
    arguments = starts.train_arguments(folder / "run", [*every, *settings])
    arguments[1] = arguments[1].replace("image_adrpo", "image_dpo")
    start = starts.Started(folder, 1, arguments)
    assert start.wait() == [code], start.text()
    return start.text()


@pytest.mark.slow
def test_a_run_in_pieces_is_the_run_in_one_and_other_files_are_refused(tmp_path):
    pieces, whole = tmp_path / "pieces", tmp_path / "whole"
    save_pictures(tmp_path)
    train(pieces, "iterations=2")
    train(pieces)
    train(whole)
    assert starts.differences(pieces / "run", whole / "run") == []
    Image.fromarray(np.zeros((20, 20, 3), dtype=np.uint8)).save(tmp_path / "a-3.png")
    text = train(pieces, "iterations=5", code=2)
    assert "was trained on other pictures" in text and "--allow-change prompts" in text


# ---- refusals ------------------------------------------------------------------------------------

TEXT = [
    (
        "orw_cfm_w2",
        [],
        "which of two answers is the better one.*take raft or dpo",
    ),
    ("dpo", ["prompts.group_size=4"], "set prompts.group_size = 2"),
    ("dpo", ["algorithm.pool=3"], "the file is the pool"),
    ("dpo", ['domain.backend="process"'], 'set backend = "in_process"'),
    (
        "dpo",
        ['rewards=[{kind="function", path="tests.support.tiny_text:many_kinds"}]'],
        'set use = "evaluation"',
    ),
    ("dpo", ["checkpoint.keep_best=1", "evaluation.every=1"], "no reward is trained on"),
]


@pytest.mark.parametrize(("name", "settings", "said"), TEXT)
def test_settings_that_contradict_given_pairs_are_refused(tmp_path, name, settings, said):
    with pytest.raises(ConfigError, match=said):
        text_pairs(tmp_path, *settings, name=name)


def test_pictures_were_made_from_no_known_noise(tmp_path):
    with pytest.raises(ConfigError, match='set noise = "independent"'):
        picture_pairs(tmp_path, 'domain.noise="rollout"')


def test_without_given_pairs_a_reward_is_asked_for(tmp_path):
    with pytest.raises(ConfigError, match="no reward to train on"):
        text_pairs(tmp_path, 'algorithm.rollouts="policy"')
