"""The audio domain on a small Qwen2.5-Omni, against transformers' own processor and model."""

from __future__ import annotations

import dataclasses
import json
import logging

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import (
    Qwen2_5OmniProcessor,
    Qwen2_5OmniThinkerForConditionalGeneration,
)

from adrpo_scale.algorithms.terms import LikelihoodTerms
from adrpo_scale.core.errors import (
    CheckpointError,
    ClipError,
    ConfigError,
    ModelNotFoundError,
    PromptError,
    WeightsError,
)
from adrpo_scale.core.types import Credit, DrawKey, Prompt
from adrpo_scale.data.clips import read_clip
from adrpo_scale.data.prompts import build_prompts, load_prompts
from adrpo_scale.domains import audio, decoding, omni
from adrpo_scale.domains.audio import AudioConfig
from adrpo_scale.domains.heard import clip_of, with_audio
from adrpo_scale.engines.adapters import is_adapter
from adrpo_scale.run.build import (
    build_domain,
    build_engine,
    build_reference,
    build_trainer,
)
from adrpo_scale.run.compare import prompts_digest
from adrpo_scale.run.resume import find_start
from adrpo_scale.training.batches import MicroBatch, receive
from tests.support.closeness import LOGP
from tests.support.tiny_audio import (
    PROMPTS,
    SECONDS,
    WORDS,
    audio_config,
    save_clip,
    save_full,
    save_prompts,
    save_thinker,
    sound,
)
from tests.support.tiny_text import save_tiny

TEMPERATURE = 0.8
KEY = DrawKey(0, 3)
CHOSEN = (0, 0, 1, 2, 2, 3)  # of one length: the clips of 0 and 2
AUDIO, BANNED = WORDS.index("<|AUDIO|>"), list(range(3, 10))


class Parts:
    """A domain with its policy, rows that it sampled, and transformers' own model."""

    def __init__(self, folder, *overrides):
        overrides = [f"domain.rollout.temperature={TEMPERATURE}", *overrides]
        self.config = audio_config(folder, overrides)
        self.domain, self.engine = build_domain(self.config), build_engine(self.config)
        prompts, _ = build_prompts(self.config.prompts)
        self.prompts = self.domain.usable(prompts)
        self.domain.prepare(self.prompts, self.engine.device, self.engine.dtype)
        self.policy = self.engine.build_policy(self.domain.policy_spec())
        spec = self.domain.reference_spec()
        self.reference, _ = build_reference(spec, self.engine, self.policy)
        self.processor = Qwen2_5OmniProcessor.from_pretrained(folder)
        self.rows = self.sample()

    def sample(self, mode="rollout", chosen=CHOSEN):
        ids = torch.arange(len(chosen))
        return self.domain.sample(self.policy, [self.prompts[i] for i in chosen], ids, KEY, mode)

    def terms(self, rows=None):
        rows = self.rows if rows is None else rows
        return self.domain.terms(
            self.policy, self.reference, rows, rows.sample_ids_N, KEY, LikelihoodTerms
        )

    def processed(self, prompts):
        """What transformers' processor makes of prompts, in one batch."""
        texts = [
            self.processor.apply_chat_template(with_audio(p), add_generation_prompt=True)
            for p in prompts
        ]
        clips = [read_clip(*clip_of(p)) for p in prompts]
        return self.processor(text=texts, audio=clips, return_tensors="pt", padding=True)

    def by_transformers(self, model):
        """(log-probability [L], entropy [L]) of each row by transformers' own model and processor:
        one row at a time, its clip encoded for it alone."""
        found = []
        for n, prompt_id in enumerate(self.rows.prompt_ids_N.tolist()):
            given = self.processed([self.prompts[prompt_id]])
            completion = self.rows.tensors["completion"][n, : self.rows.tensors["lengths"][n]]
            given["input_ids"] = torch.cat([given["input_ids"], completion[None]], 1)
            given["attention_mask"] = torch.ones_like(given["input_ids"])
            logits = model(**given).logits[0, -len(completion) - 1 : -1].clone()
            logits[:, BANNED] = -torch.inf
            logp = (logits / TEMPERATURE).log_softmax(-1)
            entropy = torch.distributions.Categorical(logits=logits / TEMPERATURE).entropy()
            found.append((logp.gather(1, completion[:, None])[:, 0], entropy))
        return found


def shaken(model):
    """Away from the reference, or every divergence is 0."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.requires_grad:
                noise = torch.Generator().manual_seed(len(name))
                parameter += 0.03 * torch.randn(parameter.shape, generator=noise)


def whole_model(parts):
    """transformers' own model with all its towers, and the policy's weights."""
    model = Qwen2_5OmniThinkerForConditionalGeneration.from_pretrained(parts.domain.folder).eval()
    weights = {n.replace(".base_layer", ""): p.detach() for n, p in parts.policy.named_parameters()}
    for name in [n for n in weights if n.endswith(".lora_B.default.weight")]:
        down, owner = weights[name.replace("lora_B", "lora_A")], name.partition(".lora_B")[0]
        weights[f"{owner}.weight"] = weights[f"{owner}.weight"] + weights[name] @ down
    unknown = model.load_state_dict(
        {n: p for n, p in weights.items() if not is_adapter(n)}, strict=False
    ).unexpected_keys
    assert not unknown
    return model


@pytest.fixture(scope="module", params=["full", "lora"])
def parts(request, tmp_path_factory):
    made = Parts(save_full(tmp_path_factory.mktemp("omni") / "m"), f"domain.train={request.param}")
    shaken(made.policy)
    made.rows = made.sample()
    return made


# ---- the same numbers as transformers' -----------------------------------------------------------


def test_prompts_are_what_the_processor_makes_of_them(parts):
    for prompt in parts.prompts:
        theirs = parts.processed([prompt])["input_ids"][0].tolist()
        assert list(parts.domain._tokens(prompt.id)) == theirs
        assert theirs.count(AUDIO) > 1


def test_features_are_what_the_processor_makes_of_clips(parts, monkeypatch):
    heard = []
    monkeypatch.setattr(parts.domain._tower, "forward", lambda mel, **_: heard.append(mel) or parts)
    monkeypatch.setattr(type(parts), "last_hidden_state", None, raising=False)
    for prompt in parts.prompts:
        clip = read_clip(*clip_of(prompt))
        omni.encode_clip(parts.domain._tower, parts.domain.model.features, clip)
    together = parts.processed(parts.prompts)
    for mel, theirs, mask in zip(
        heard, together["input_features"], together["feature_attention_mask"], strict=True
    ):
        torch.testing.assert_close(mel, theirs[:, mask.bool()], rtol=0, atol=1e-6)


def test_terms_equal_those_of_the_whole_model(parts):
    """Padded on the right, clips encoded once and merged, against one row after the other."""
    assert len(set(parts.rows.tensors["lengths"].tolist())) > 1
    terms = parts.terms()
    with torch.no_grad():
        policy = parts.by_transformers(whole_model(parts))
        base = Qwen2_5OmniThinkerForConditionalGeneration.from_pretrained(parts.domain.folder)
        reference = parts.by_transformers(base.eval())
    logp, entropy = (torch.cat([row[k] for row in policy]) for k in (0, 1))
    torch.testing.assert_close(terms.logp_K.detach(), logp, **LOGP)
    torch.testing.assert_close(terms.entropy_K.detach(), entropy, **LOGP)
    torch.testing.assert_close(terms.logp_ref_K, torch.cat([row[0] for row in reference]), **LOGP)
    assert float(terms.divergence().detach().min()) > 0


def test_the_gradient_equals_that_of_the_whole_model(parts):
    """Of the parameters that are trained; with adapters, of their B at B's and A's own values."""
    trained = {n: p for n, p in parts.policy.named_parameters() if p.requires_grad}
    weights = torch.randn(6, generator=torch.Generator().manual_seed(0))
    loss = -(weights * parts.terms().supervised()).sum()
    ours = dict(zip(trained, torch.autograd.grad(loss, list(trained.values())), strict=True))
    model = whole_model(parts)
    rows = parts.by_transformers(model)
    (weights * torch.stack([logp.mean() for logp, _ in rows])).sum().backward()
    theirs = {n: p.grad for n, p in model.named_parameters()}
    for name, gradient in ours.items():
        if is_adapter(name):
            owner = name.partition(".lora_")[0]
            whole = theirs[f"{owner}.weight"]
            down, up = (trained[f"{owner}.lora_{x}.default.weight"].detach() for x in "AB")
            expected = whole @ down.T if ".lora_B." in name else up.T @ whole
        else:
            expected = theirs[name]
        assert (gradient - expected).norm() <= 1e-4 * expected.norm() + 1e-6, name


def recorded_steps(monkeypatch, sample):
    """(rows, log-probabilities of the tokens as they were drawn, [N, T])."""
    steps, pick = [], decoding.pick

    def recorded(logits, uniforms, sampling):
        tokens = pick(logits, uniforms, sampling)
        steps.append((logits / TEMPERATURE).log_softmax(-1).gather(1, tokens[:, None])[:, 0])
        return tokens

    with monkeypatch.context() as patch:
        patch.setattr(decoding, "pick", recorded)
        patch.setattr(decoding, "SHRINK", 0.0)  # rows stay where they are
        rows = sample()
    return rows, torch.stack(steps, 1)


def test_generated_log_probabilities_are_the_trained_ones(parts, monkeypatch):
    """Padded on the left, with a cache, against padded on the right without one."""
    rows, drawn = recorded_steps(monkeypatch, parts.sample)
    assert torch.equal(rows.tensors["completion"], parts.rows.tensors["completion"])
    inside = torch.arange(drawn.shape[1]) < rows.tensors["lengths"][:, None]
    torch.testing.assert_close(drawn[inside], parts.terms().logp_K.detach(), **LOGP)


def test_a_batch_padded_on_the_left_is_each_sample_alone(parts, monkeypatch):
    rows, drawn = recorded_steps(monkeypatch, parts.sample)
    for n, chosen in enumerate(CHOSEN):
        prompt = [parts.prompts[chosen]]

        def alone(n=n, prompt=prompt):
            return parts.domain.sample(parts.policy, prompt, torch.tensor([n]), KEY)

        row, logp = recorded_steps(monkeypatch, alone)
        length = int(row.tensors["lengths"][0])
        assert torch.equal(row.tensors["completion"][0], rows.tensors["completion"][n])
        torch.testing.assert_close(logp[0, :length], drawn[n, :length], **LOGP)


def test_equal_tokens_with_another_clip_are_another_prompt(parts):
    first, third = parts.prompts[0], parts.prompts[2]
    assert list(parts.domain._tokens(first.id)) == list(parts.domain._tokens(third.id))
    audio_of = parts.domain._audio([first.id, third.id])
    assert not torch.allclose(*audio_of)
    uniforms = torch.zeros(2, 1)
    ids = [parts.domain._tokens(p.id) for p in (first, third)]
    logits = decoding._prefill(parts.policy.eval(), ids, 1, 0, uniforms.device, audio_of)[0]
    parts.policy.train()
    assert not torch.allclose(logits[0], logits[1], atol=1e-3)


# ---- once per clip -------------------------------------------------------------------------------


def test_a_clip_is_encoded_once_for_rollout_policy_and_reference(tmp_path, monkeypatch):
    made = Parts(tmp_path / "m")
    made.domain._encoded.clear()
    calls, encode = [], audio.encode_clip

    def counted(*arguments):
        calls.append(1)
        return encode(*arguments)

    monkeypatch.setattr(audio, "encode_clip", counted)
    made.domain.begin_rollout(made.policy)
    rows = made.domain.remember(made.policy, made.sample())
    made.terms(rows)
    made.terms(rows.take(torch.tensor([5, 0])))
    assert len(calls) == len(set(CHOSEN)) and made.domain.sizes(rows).min() > 10
    once = made.terms(rows).logp_K.detach()
    made.domain.config = made.domain.config.model_copy(update={"clip_megabytes": 0.0})
    made.domain._encoded.clear()
    again = made.terms(rows).logp_K.detach()  # encoded again and again
    assert len(calls) > 2 * len(set(CHOSEN)) and torch.equal(once, again)


def test_prompts_without_a_clip_may_stand_beside_those_with_one(tmp_path, caplog):
    folder = save_thinker(tmp_path / "m")
    save_prompts(folder / "prompts.jsonl", PROMPTS, [0.3, None, 0.2, 0.5, None, 0.4])
    made = Parts(folder)
    assert "2 of 6 prompts name no clip" in caplog.text
    assert list(made.domain._tokens(1)).count(AUDIO) == 0
    alone = made.sample(chosen=(1,))
    assert torch.isfinite(made.terms(alone).logp_K).all()
    assert torch.isfinite(made.terms().logp_K).all()


def test_a_rank_without_samples_has_the_same_columns(parts):
    none = parts.domain.sample(parts.policy, [], torch.empty(0, dtype=torch.int64), KEY)
    assert none.tensors.keys() == parts.rows.tensors.keys()
    for name, tensor in none.tensors.items():
        assert tensor.shape[1:] == parts.rows.tensors[name].shape[1:]
        assert tensor.dtype == parts.rows.tensors[name].dtype
    assert parts.domain.artifacts(none) == []


def test_tokens_of_modalities_have_no_chance(tmp_path, monkeypatch):
    """Also where the model would say nothing else."""
    made = Parts(tmp_path / "m", "domain.train=full")
    assert list(made.domain.model.banned) == BANNED
    with torch.no_grad():
        direction = made.policy.lm_head.weight.mean(0)
        made.policy.lm_head.weight[BANNED] = 50 * direction
        made.policy.lm_head.weight[BANNED[:3]] = -50 * direction
    made.rows, drawn = recorded_steps(monkeypatch, made.sample)
    inside = torch.arange(drawn.shape[1]) < made.rows.tensors["lengths"][:, None]
    assert not torch.isin(made.rows.tensors["completion"][inside], torch.tensor(BANNED)).any()
    terms = made.terms()
    torch.testing.assert_close(drawn[inside], terms.logp_K.detach(), **LOGP)
    assert torch.isfinite(terms.entropy_K).all()
    (terms.entropy_K.sum() - terms.supervised().sum()).backward()
    gradient = made.policy.lm_head.weight.grad
    assert torch.isfinite(gradient).all() and float(gradient[BANNED].abs().max()) == 0
    greedy = made.sample("greedy").tensors["completion"]
    assert not torch.isin(greedy, torch.tensor(BANNED)).any()


# ---- what is built -------------------------------------------------------------------------------


def test_the_thinker_is_read_out_of_a_whole_checkpoint_and_nothing_else(tmp_path, caplog):
    full, thinker = save_full(tmp_path / "full"), save_thinker(tmp_path / "thinker")
    (full / "model-00002-of-00002.safetensors").write_bytes(b"talker and token2wav, never opened")
    with caplog.at_level(logging.INFO):
        whole, alone = Parts(full), Parts(thinker)
    assert "is frozen, and whole on every rank" in caplog.text
    for a, b in ((whole.policy, alone.policy), (whole.domain._tower, alone.domain._tower)):
        for (name, x), (_, y) in zip(a.named_parameters(), b.named_parameters(), strict=True):
            assert torch.equal(x, y), name
    names = {name for name, _ in whole.policy.named_parameters()}
    assert not [n for n in names if any(w in n for w in ("tower", "visual", "talker", "wav"))]
    assert not any(p.requires_grad for p in whole.domain._tower.parameters())
    plain = Qwen2_5OmniThinkerForConditionalGeneration.from_pretrained(thinker)
    for name, parameter in whole.domain._tower.named_parameters():
        assert torch.equal(parameter, plain.model.audio_tower.get_parameter(name))


def test_adapters_are_on_the_language_models_layers_alone(parts):
    if parts.config.domain.train == "full":
        assert all(p.requires_grad for p in parts.policy.parameters())
        return
    adapted = {
        n.partition(".lora_")[0] for n, _ in parts.policy.named_parameters() if ".lora_" in n
    }
    assert len(adapted) == 2 * 7
    assert all(name.startswith("model.language_model.layers.") for name in adapted)


@pytest.mark.parametrize(
    ("part", "matters"),
    [("audio_tower", True), ("model.layers", True), ("visual", False), ("talker", False)],
)
def test_another_tower_is_another_base_model(tmp_path, part, matters):
    """Wherever the parts lie: a checkpoint may keep them in files of their own."""
    tensors = load_file(save_thinker(tmp_path / "thinker") / "model.safetensors")
    parts = {"audio_tower": {}, "visual": {}, "talker": {"talker.x": torch.ones(4)}}
    for name, tensor in tensors.items():
        (own,) = [p for p in parts if p in name] or ["model.layers"]
        parts.setdefault(own, {})[name] = tensor
    (tmp_path / "model").mkdir()
    where = {name: f"{own}.safetensors" for own, group in parts.items() for name in group}
    index = {"metadata": {}, "weight_map": where}
    (tmp_path / "model" / "model.safetensors.index.json").write_text(json.dumps(index))
    hashes = []
    for _ in range(2):
        for own, group in parts.items():
            save_file(group, tmp_path / "model" / f"{own}.safetensors")
        hashes.append(omni.ThinkerPart(tmp_path / "model").sha256())
        first = next(iter(parts[part]))
        parts[part][first] = parts[part][first] + 1
    assert (hashes[0] != hashes[1]) == matters


def test_the_frozen_files_say_what_is_heard(parts):
    names = {path.name for path in parts.domain.frozen_files()}
    assert {
        "config.json",
        "tokenizer.json",
        "preprocessor_config.json",
        "chat_template.json",
    } <= names


@pytest.mark.parametrize("stored", ["thinker.", ""])
def test_names_of_all_checkpoints_lead_to_one(stored):
    names = {
        "model.layers.0.mlp.up_proj.weight": "model.language_model.layers.0.mlp.up_proj.weight",
        "model.language_model.norm.weight": "model.language_model.norm.weight",
        "audio_tower.conv1.bias": "model.audio_tower.conv1.bias",
        "model.audio_tower.conv1.bias": "model.audio_tower.conv1.bias",
        "visual.merger.mlp.0.bias": "model.visual.merger.mlp.0.bias",
        "lm_head.weight": "lm_head.weight",
    }
    assert {n: omni.thinker_name(stored + n) for n in names} == names
    assert omni.thinker_name("talker.model.norm.weight") is None


def test_a_tied_output_layer_is_one_weight(tmp_path):
    folder = save_thinker(tmp_path / "m", tie_word_embeddings=True)
    made = Parts(folder, "domain.train=full")
    embedding = made.policy.model.language_model.embed_tokens.weight
    assert made.policy.lm_head.weight is embedding
    assert torch.isfinite(made.terms().logp_K).all()


# ---- what is refused -----------------------------------------------------------------------------


def refused(folder, error, match, *overrides):
    with pytest.raises(error, match=match):
        Parts(folder, *overrides)


def test_a_prompt_that_is_too_long_is_named_and_not_cut(tmp_path, caplog):
    folder = save_thinker(tmp_path / "m")
    save_prompts(folder / "prompts.jsonl", PROMPTS, [*SECONDS[:3], 2.0, *SECONDS[4:]])
    refused(folder, PromptError, r"prompt 3 'w8 w9' has 6\d tokens, .*is 40: raise it")
    with caplog.at_level(logging.INFO):
        kept = Parts(folder, "domain.chat.long_prompts=drop").prompts
    assert [p.id for p in kept] == [0, 1, 2, 4, 5] and "prompt 3 'w8 w9' has 6" in caplog.text


def test_a_clip_that_is_longer_than_the_window(tmp_path):
    folder = save_thinker(tmp_path / "m")
    save_prompts(folder / "prompts.jsonl", PROMPTS, [*SECONDS[:5], 4.5])
    match = r"prompt 5 .* its clip has 4.50 s, .* at most 4 s; cut it into parts"
    refused(folder, PromptError, match, "domain.chat.max_prompt_tokens=200")


def test_a_missing_clip_is_left_out_by_name(tmp_path, caplog):
    folder = save_thinker(tmp_path / "m")
    save_prompts(folder / "prompts.jsonl")
    (folder / "clip-4.wav").unlink()
    with caplog.at_level(logging.INFO):
        assert [p.id for p in Parts(folder).prompts] == [0, 1, 2, 3, 5]
    assert "prompt 4" in caplog.text and "clip-4.wav" in caplog.text


def test_a_clip_that_breaks_in_the_middle_of_a_run_is_left_out_of_the_loss(tmp_path, caplog):
    made = Parts(tmp_path / "m")
    made.domain._encoded.clear()
    clip = made.domain.folder / "clip-2.wav"
    clip.write_bytes(clip.read_bytes()[:3000])
    rows = made.sample()
    assert "prompt 2 is left out" in caplog.text and "cut short" in caplog.text
    assert made.domain.keeps(rows).tolist() == [c != 2 for c in CHOSEN]
    assert made.domain.row_metrics(rows)["unheard"].sum() == 2
    assert torch.isfinite(made.terms(rows).logp_K).all()
    heard = dict(rows.tensors) | {"heard": torch.ones(6, dtype=torch.int64)}
    with pytest.raises(ClipError, match="This rank has just heard it"):
        made.terms(dataclasses.replace(rows, tensors=heard))


def credit_of(count):
    ones = torch.ones(count, dtype=torch.float64)
    return Credit(ones, ones, ones, torch.full((count,), -1), ones)


def test_a_clip_that_only_another_rank_has_heard_is_not_trained_on(tmp_path):
    made = Parts(tmp_path / "m")
    assert bool(made.domain.is_sound(made.rows).all())
    made.domain._encoded.clear()
    clip = made.domain.folder / "clip-2.wav"
    whole = clip.read_bytes()
    clip.write_bytes(whole[:3000])
    received = made.domain.receive(made.rows)
    assert made.domain.is_sound(received).tolist() == [c != 2 for c in CHOSEN]
    (micro,) = receive(made.domain, [[MicroBatch(made.rows, credit_of(6), torch.arange(6))]])[0]
    assert micro.credit.include.tolist() == [float(c != 2) for c in CHOSEN]
    assert torch.isfinite(made.terms(micro.rows).logp_K).all()
    clip.write_bytes(whole)  # a fault is not for ever
    assert bool(made.domain.is_sound(made.domain.receive(made.rows)).all())
    assert bool(made.domain.is_sound(made.sample()).all())


def test_data_may_move_between_two_starts(tmp_path):
    for name in ("here", "there"):
        (tmp_path / name).mkdir()
    rows = [{"prompt": "w1", "audio": "a.wav"}, {"prompt": "w2", "audio": "b.wav"}]

    def digest(name, rows):
        folder = {"audio_folder": str(tmp_path / name)}
        lines = "".join(json.dumps(row | folder) + "\n" for row in rows)
        (tmp_path / name / "rows.jsonl").write_text(lines)
        return prompts_digest(load_prompts(tmp_path / name / "rows.jsonl"))

    assert digest("here", rows) == digest("there", rows)
    assert digest("here", rows) != digest("there", [rows[0] | {"audio": "b.wav"}, rows[1]])


def test_a_clip_that_has_gone_between_two_starts_is_left_out_of_the_loss(tmp_path, caplog):
    """The run goes on with the prompts that it had, as its place in others would mean others. What
    was left out before stays out."""
    folder = save_thinker(tmp_path / "m")
    save_prompts(folder / "prompts.jsonl")
    clips = [folder / f"clip-{n}.wav" for n in range(6)]
    clips[0].rename(tmp_path / "away.wav")
    settings = ["prompts.per_iteration=5", "checkpoint.every_iterations=1", "iterations=3"]
    config, run = audio_config(folder, settings), tmp_path / "run"
    first = build_trainer(config, run)
    first.train(1)
    first.saver.close()
    (tmp_path / "away.wav").rename(clips[0])
    clips[3].unlink()
    second = build_trainer(config, run, find_start(config, run))
    assert "1 of 5 prompts have a missing or broken clip and were there before" in caplog.text
    second.train(2)
    second.saver.close()
    kept = [[prompt.id for prompt in trainer.stream.prompts] for trainer in (first, second)]
    assert kept == [[1, 2, 3, 4, 5]] * 2
    unheard = [json.loads(line)["unheard"] for line in (run / "metrics.jsonl").open()]
    assert unheard == [0, 0.2]
    with pytest.raises(CheckpointError, match="trained on other prompts"):
        save_prompts(folder / "prompts.jsonl", [*PROMPTS[:5], "w9"])
        build_trainer(config, run, find_start(config, run))
    for clip in clips:
        clip.unlink()
    with pytest.raises(ClipError, match="none of the 5 prompts has its clip"):
        build_trainer(config, run, find_start(config, run))


def test_an_evaluation_leaves_out_what_was_not_heard(tmp_path):
    settings = ["evaluation.every=1", "prompts.held_out_share=0.5", "domain.clip_megabytes=0"]
    config = audio_config(tmp_path / "m", settings)
    trainer = build_trainer(config, tmp_path / "run")
    every = trainer.evaluator.evaluate(trainer.policy, trainer.reference, "held_out").metrics
    first = trainer.evaluator.splits["held_out"][0]
    (tmp_path / "m" / f"clip-{first.id}.wav").unlink()
    some = trainer.evaluator.evaluate(trainer.policy, trainer.reference, "held_out").metrics
    samples = config.evaluation.samples_per_prompt
    assert some["reward"][1] == every["reward"][1] - samples
    assert some["unheard"] == (pytest.approx(samples / every["unheard"][1]), every["unheard"][1])


def test_a_text_with_audio_tokens_of_its_own(tmp_path):
    folder = save_thinker(tmp_path / "m")
    save_prompts(folder / "prompts.jsonl", ["w1 <|AUDIO|> w2"], [0.3])
    refused(folder, PromptError, r"becomes 2 audio tokens .* expected 1: take '<\|AUDIO\|>' out")


def test_other_models_and_half_folders(tmp_path):
    text = save_tiny(tmp_path / "text")
    refused(text, ConfigError, r"of type 'qwen3'; the audio domain trains the thinker")
    folder = save_thinker(tmp_path / "m")
    (folder / "processor_config.json").unlink()
    refused(folder, ModelNotFoundError, "has no feature extractor")
    folder = save_thinker(tmp_path / "n")
    config = json.loads((folder / "config.json").read_text())
    config["audio_config"]["encoder_layers"] = 3
    (folder / "config.json").write_text(json.dumps(config))
    refused(folder, WeightsError, "missing .*layers.2")


def test_only_the_policy_itself_rolls_out(tmp_path):
    with pytest.raises(ValueError, match="would hear nothing"):
        AudioConfig(model="x", backend="vllm")


def test_the_clip_goes_before_the_last_question():
    turns = (("user", "w1"), ("assistant", "w2"), ("user", "w3"))
    messages = tuple({"role": role, "content": text} for role, text in turns)
    prompt = Prompt(0, "shown", {"audio": "a.wav", "audio_folder": "/x"}, messages)
    made = with_audio(prompt)
    assert [m["content"] for m in made[:2]] == ["w1", "w2"]
    assert [part["type"] for part in made[2]["content"]] == ["audio", "text"]


def test_a_clip_needs_a_folder_and_a_user():
    with pytest.raises(PromptError, match=r"prompt 3 'w1' names the clip 'a.wav' and no folder"):
        clip_of(Prompt(3, "w1", {"audio": "a.wav"}))
    said = ({"role": "system", "content": "w1"},)
    with pytest.raises(PromptError, match="no message of the user's"):
        with_audio(Prompt(3, "w1", {"audio": "a.wav", "audio_folder": "/x"}, said))


def test_clips_keep_their_sound(tmp_path):
    path = save_clip(tmp_path / "a.wav", 0.2, 3)
    assert np.abs(read_clip(path.name, tmp_path) - sound(0.2, 3)).max() < 1e-4
