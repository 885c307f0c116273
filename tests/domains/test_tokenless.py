"""Vocabularies padded beyond the tokenizer: ids without a token are never generated.

The tokenizer of these models has 64 tokens, the vocabulary 72 ids. The last 8 rows of the output
layer are made the likeliest ones.
"""

from __future__ import annotations

import json
import logging
import shutil
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file, save_file

from adrpo_scale.checkpoint.base import MANIFEST, parse_manifest
from adrpo_scale.checkpoint.locate import open_checkpoint
from adrpo_scale.core.errors import ExportError
from adrpo_scale.core.types import DrawKey
from adrpo_scale.data.prompts import build_prompts
from adrpo_scale.domains.decoding import SamplingConfig
from adrpo_scale.domains.generation.vllm import request_arguments
from adrpo_scale.domains.language_model import ids_without_token
from adrpo_scale.domains.logprobs import ranges
from adrpo_scale.evaluation.sample import find_source, sample_to
from adrpo_scale.export.base import Request
from adrpo_scale.export.exporter import export
from adrpo_scale.export.transformers_layout import TransformersLayout
from adrpo_scale.run.build import build_domain, build_engine, build_trainer
from adrpo_scale.run.resume import find_start
from adrpo_scale.training.media import COMPLETIONS
from tests.support.tiny_text import WORDS, save_prompts, save_tiny, text_config, tiny_tokenizer

TOKENLESS = list(range(len(WORDS), 72))
HEAD = "lm_head.weight"


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """A model that says nearly nothing but ids without a token."""
    folder = save_tiny(
        tmp_path_factory.mktemp("padded") / "m", vocab_size=72, tie_word_embeddings=False
    )
    weights = load_file(folder / "model.safetensors")
    # Opposite rows: whatever the hidden state is, half of them are likely.
    direction = 12 * weights[HEAD][10]
    weights[HEAD][TOKENLESS[::2]], weights[HEAD][TOKENLESS[1::2]] = direction, -direction
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    save_prompts(folder / "prompts.jsonl")
    return folder


@pytest.fixture(scope="module")
def run(model, tmp_path_factory):
    """A run of one iteration on it."""
    folder = tmp_path_factory.mktemp("runs") / "run"
    train(model, folder)
    return folder


@pytest.fixture
def run_of_before(run, tmp_path):
    """The same run, its checkpoint without the record, as older versions wrote it."""
    folder = tmp_path / "before"
    shutil.copytree(run, folder)
    forget_rules(folder)
    return folder


def forget_rules(run):
    path = open_checkpoint(str(run)).folder / MANIFEST
    manifest = parse_manifest(path.read_text(), path)
    document = {name: value for name, value in manifest.document.items() if name != "rules"}
    path.write_text(replace(manifest, document=document).to_text())


def train(model, folder, *overrides):
    config = text_config(model, ["domain.mask_truncated=false", *overrides])
    folder.mkdir(parents=True, exist_ok=True)
    trainer = build_trainer(config, folder, find_start(config, folder))
    trainer.train()
    trainer.saver.save_now()
    return trainer


def completions(model, mode, bans=True):
    config = text_config(model)
    domain, engine = build_domain(config), build_engine(config)
    domain.model.bans_tokenless = bans
    prompts, _ = build_prompts(config.prompts)
    domain.prepare(prompts, engine.device, engine.dtype)
    policy = engine.build_policy(domain.policy_spec())
    rows = domain.sample(policy, prompts[:4] * 8, torch.arange(32), DrawKey(0, 0), mode)
    inside = torch.arange(rows.tensors["completion"].shape[1]) < rows.tensors["lengths"][:, None]
    return (
        domain,
        policy,
        rows,
        torch.isin(rows.tensors["completion"], torch.tensor(TOKENLESS)) & (inside),
    )


@pytest.mark.parametrize("mode", ["rollout", "evaluation", "greedy"])
def test_an_id_without_a_token_is_never_sampled(model, mode):
    assert completions(model, mode, bans=False)[-1].any(1).sum() > 24  # of 32
    assert not completions(model, mode)[-1].any()


def test_log_probabilities_are_of_the_distribution_that_was_drawn_from(model):
    domain, policy, rows, _ = completions(model, "rollout")
    terms = domain.terms(policy, None, rows, rows.sample_ids_N, DrawKey(0, 0), domain.gives[0])
    prompt = domain._tokens(int(rows.prompt_ids_N[0]))
    length = int(rows.tensors["lengths"][0])
    ids = torch.tensor([[*prompt, *rows.tensors["completion"][0, :length].tolist()]])
    logits = policy(input_ids=ids).logits[0, len(prompt) - 1 : -1].detach()
    logits[:, TOKENLESS] = -torch.inf
    expected = logits.log_softmax(-1).gather(1, ids[0, len(prompt) :, None])[:, 0]
    torch.testing.assert_close(terms.logp_K[:length].detach(), expected, rtol=1e-4, atol=1e-5)
    assert torch.isfinite(terms.entropy_K).all()


def test_the_first_checkpoint_records_the_ban_and_a_resume_keeps_it(model, run, tmp_path, caplog):
    shutil.copytree(run, tmp_path / "run")
    caplog.set_level(logging.WARNING)
    trainer = train(model, tmp_path / "run", "iterations=2")
    assert trainer.rollouts.domain.model.banned == tuple(TOKENLESS)
    assert open_checkpoint(str(tmp_path / "run")).manifest.document["rules"] == {
        "bans_tokenless": True,
        "drops_empty_system": True,
    }
    assert "without a token" not in caplog.text


def test_a_run_of_before_resumes_without_the_ban_and_says_so_once(model, run_of_before, caplog):
    caplog.set_level(logging.WARNING)
    trainer = train(model, run_of_before, "iterations=2")
    assert trainer.rollouts.domain.model.banned == ()
    assert caplog.text.count("stays without the ban") == 1
    assert "has 8 of them (64…71)" in caplog.text
    # The next start finds the record.
    assert open_checkpoint(str(run_of_before)).manifest.document["rules"] == {
        "bans_tokenless": False,
        "drops_empty_system": False,
    }
    trainer = train(model, run_of_before, "iterations=3")
    assert trainer.rollouts.domain.model.banned == ()


def test_what_is_sampled_from_a_run_follows_its_rule(model, run, run_of_before, tmp_path):
    def tokens(source, to, *overrides):
        settings = {"per_prompt": 4, "seed": 0, "weights": "trained"}
        sample_to(find_source(str(source), overrides), model / "prompts.jsonl", to, **settings)
        lines = (to / COMPLETIONS).read_text().splitlines()
        return {token for line in lines for token in json.loads(line)["tokens"]}

    assert not tokens(run, tmp_path / "a") & set(TOKENLESS)
    assert tokens(run_of_before, tmp_path / "b") & set(TOKENLESS)
    short = ("domain.chat.max_prompt_tokens=16", "domain.evaluation.max_new_tokens=12")
    assert not tokens(model, tmp_path / "c", *short) & set(TOKENLESS)  # a published model


def test_an_export_suppresses_what_its_run_bans(run, run_of_before, tmp_path):
    export(str(run), Request(tmp_path / "a", "full", verify="none"))
    stated = json.loads((tmp_path / "a" / "generation_config.json").read_text())
    assert stated["suppress_tokens"] == TOKENLESS and stated["eos_token_id"] == 2
    assert f"suppress_tokens={TOKENLESS}" in (tmp_path / "a" / "README.md").read_text()
    export(str(run_of_before), Request(tmp_path / "b", "full", verify="none"))
    stated = json.loads((tmp_path / "b" / "generation_config.json").read_text())
    assert "suppress_tokens" not in stated


@pytest.mark.slow
def test_an_exports_greedy_tokens_are_the_policys(run, tmp_path, monkeypatch):
    """The verification suppresses what the export's files say, and bans what training banned."""
    exported = export(str(run), Request(tmp_path / "a", "full"))
    greedy = [v for n, v in exported.verdict.figures.items() if n.startswith("greedy")]
    assert greedy == [pytest.approx(0, abs=1e-5)]
    forgotten = {"eos_token_id": 2, "suppress_tokens": TOKENLESS[1:]}
    texts = {"generation_config.json": json.dumps(forgotten)}
    monkeypatch.setattr(TransformersLayout, "generation_texts", lambda *_: texts)
    with pytest.raises(ExportError, match="suppresses 7 tokens, training banned 8"):
        export(str(run), Request(tmp_path / "b", "full"))


def test_vllm_gets_the_ban_with_every_request():
    sampling = SamplingConfig(max_new_tokens=4)
    assert request_arguments(sampling.model_dump(), [2], [70, 71], 7)["logit_bias"] == {
        70: -100.0,
        71: -100.0,
    }
    assert request_arguments(sampling.model_dump(), [2], [], 7)["logit_bias"] is None


def test_only_ids_without_any_token_count():
    tokenizer = tiny_tokenizer()
    assert ids_without_token(tokenizer, 64, [2]) == ()
    assert ids_without_token(tokenizer, 68, [2, 66]) == (64, 65, 67)  # an end token stays
    tokenizer.add_tokens(["<more>"])
    assert ids_without_token(tokenizer, 68, [2]) == (65, 66, 67)


@pytest.mark.parametrize(
    ("ids", "expected"),
    [([], []), ([3], [(3, 3)]), ([5, 1, 2, 3, 9], [(1, 3), (5, 5), (9, 9)])],
)
def test_ranges_of_numbers(ids, expected):
    assert ranges(ids) == expected
