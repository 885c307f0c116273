"""The audio domain's models and prompts: which are built, and which are refused."""

from __future__ import annotations

import dataclasses
import json
import logging

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import (
    Qwen2_5OmniThinkerForConditionalGeneration,
)

from adrpo_scale.core.errors import (
    CheckpointError,
    ClipError,
    ConfigError,
    ModelNotFoundError,
    PromptError,
    WeightsError,
)
from adrpo_scale.core.types import Credit, Prompt
from adrpo_scale.data.clip_headers import clip_of
from adrpo_scale.data.clips import read_clip
from adrpo_scale.data.prompts import load_prompts
from adrpo_scale.domains import omni
from adrpo_scale.domains.audio import AudioConfig
from adrpo_scale.domains.heard import with_audio
from adrpo_scale.run.build import (
    build_trainer,
)
from adrpo_scale.run.compare import prompts_digest
from adrpo_scale.run.resume import find_start
from adrpo_scale.training.batches import MicroBatch, receive
from tests.support.audio_parts import CHOSEN, Parts
from tests.support.tiny_audio import (
    PROMPTS,
    SECONDS,
    audio_config,
    save_clip,
    save_full,
    save_prompts,
    save_thinker,
    sound,
)
from tests.support.tiny_text import save_tiny

# ---- what is built -------------------------------------------------------------------------------


def test_the_thinker_is_read_out_of_a_whole_checkpoint_and_nothing_else(tmp_path, caplog):
    full, thinker = save_full(tmp_path / "full"), save_thinker(tmp_path / "thinker")
    (full / "model-00002-of-00002.safetensors").write_bytes(b"talker and token2wav, never opened")
    with caplog.at_level(logging.INFO):
        whole, alone = Parts(full), Parts(thinker)
    assert "is frozen and whole on every rank" in caplog.text
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
    refused(
        folder, PromptError, r"prompt 3 'w8 w9' \(.*, line 4\) has 6\d tokens, .*is 40: raise it"
    )
    with caplog.at_level(logging.INFO):
        kept = Parts(folder, "domain.chat.long_prompts=drop").prompts
    assert [p.id for p in kept] == [0, 1, 2, 4, 5] and "line 4) has 6" in caplog.text


def test_a_clip_that_is_longer_than_the_window(tmp_path):
    folder = save_thinker(tmp_path / "m")
    save_prompts(folder / "prompts.jsonl", PROMPTS, [*SECONDS[:5], 4.5])
    match = r"prompt 5 .* its clip has 4.50 s; .* at most 4 s; cut it into parts"
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
    assert "line 3) is left out of the loss" in caplog.text and "cut short" in caplog.text
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
    with pytest.raises(ValueError, match="would not hear the clips"):
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
    with pytest.raises(PromptError, match="no user message to put it in"):
        with_audio(Prompt(3, "w1", {"audio": "a.wav", "audio_folder": "/x"}, said))


def test_clips_keep_their_sound(tmp_path):
    path = save_clip(tmp_path / "a.wav", 0.2, 3)
    assert np.abs(read_clip(path.name, tmp_path) - sound(0.2, 3)).max() < 1e-4
