"""The sounds demo: clips hold what their rows say, answers are right, and the shipped model loads,
hears what it is asked about, and leaves room to improve."""

import json
import math
from functools import cache
from itertools import chain
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import Qwen2_5OmniProcessor, Qwen2_5OmniThinkerForConditionalGeneration

import adrpo_scale.demo
from adrpo_scale.data.clips import SAMPLE_RATE, read_clip
from adrpo_scale.data.formats import read_avqa_think
from adrpo_scale.data.prompts import PromptsConfig
from adrpo_scale.demo.audio import task as audio_task
from adrpo_scale.demo.audio.build import build_audio, prompt_of
from adrpo_scale.demo.audio.model import spoken_batch, spoken_ids
from adrpo_scale.demo.audio.task import SOUNDS, Question
from adrpo_scale.demo.text.model import ModelSize, SftRecipe
from adrpo_scale.evaluation.sample import load_asked_as_trained
from adrpo_scale.run.load import load_config
from tests.support.tiny import CONFIGS

AUDIO = Path(adrpo_scale.demo.__file__).parent / "assets" / "audio"
PROMPTS = AUDIO / "prompts"


@cache
def _loaded():
    model = Qwen2_5OmniThinkerForConditionalGeneration.from_pretrained(AUDIO)
    return model, Qwen2_5OmniProcessor.from_pretrained(AUDIO)


def _rows(name):
    return [json.loads(line) for line in (PROMPTS / f"{name}.jsonl").read_text().splitlines()]


def _order(row):
    return tuple(row["id"].split("-")[:3])


def _questions(name):
    return [Question(_order(r), int(r["id"][-1]), tuple(r["choices"])) for r in _rows(name)]


def _pitch(samples):
    """Hz of the strongest frequency."""
    spectrum = np.abs(np.fft.rfft(samples * np.hanning(len(samples)), 1 << 14))
    return spectrum.argmax() * SAMPLE_RATE / (1 << 14)


def _kind(samples):
    """Which sound it is, by its form and spectrum, without the code that made it."""
    power = np.abs(np.fft.rfft(samples)) ** 2 + 1e-9
    if np.abs(samples).max() / samples.std() > 3.5 and np.median(np.abs(samples)) < 0.02:
        return "click"
    if np.exp(np.log(power).mean()) / power.mean() > 0.2:
        return "hiss"
    half = len(samples) // 2
    begin, end = _pitch(samples[:half]), _pitch(samples[half:])
    if max(begin, end) < 400:
        return "hum"
    return "rise" if end > 1.15 * begin else "fall" if begin > 1.15 * end else "beep"


def _heard(clip):
    """The three sounds of a clip, each at a time when it sounds however long the silences are."""
    at = [slice(0.1, 0.2), slice(0.36, 0.44), slice(len(clip) / SAMPLE_RATE - 0.2, None)]
    ends = [0.2, 0.44, len(clip) / SAMPLE_RATE - 0.1]
    return tuple(
        _kind(clip[round(a.start * SAMPLE_RATE) : round(end * SAMPLE_RATE)])
        for a, end in zip(at, ends, strict=True)
    )


def test_clips_hold_the_sounds_that_their_rows_name():
    rows = _rows("train") + _rows("held_out")
    clips = {row["audio"]: _order(row) for row in rows}
    assert len(clips) == len(set(clips.values())) == 120
    wrong = {}
    for reference, order in clips.items():
        clip = read_clip(reference, PROMPTS)
        assert 0.6 < len(clip) / SAMPLE_RATE < 1 and np.abs(clip).max() < 0.99
        if _heard(clip) != order:
            wrong[order] = _heard(clip)
    assert wrong == {}
    assert len({len(read_clip(reference, PROMPTS)) for reference in clips}) > 100  # of any length


def test_every_answer_is_right_and_one_of_four_options():
    rows = _rows("train") + _rows("held_out")
    places = {"first": 0, "second": 1, "last": 2}
    for row in rows:
        (place,) = [n for word, n in places.items() if f" {word} " in row["question"]]
        assert row["answer"] == _order(row)[place]
        assert len(set(row["choices"])) == 4 and {*_order(row)} < {*row["choices"]}
    first = [row["choices"].index(row["answer"]) for row in rows]
    assert all(0.15 < first.count(n) / len(rows) < 0.35 for n in range(4))


def test_held_out_orders_are_new():
    train, held_out = ({_order(row) for row in _rows(name)} for name in ("train", "held_out"))
    assert (len(train), len(held_out)) == (96, 24) and not train & held_out
    assert {*chain(*held_out)} == {*SOUNDS}


def test_prompts_are_worded_as_avqa_s():
    rows = list(read_avqa_think(PROMPTS / "held_out.jsonl"))
    assert [row.prompt for row in rows] == [
        prompt_of(question) for question in _questions("held_out")
    ]
    assert {row.metadata["audio_folder"] for row in rows} == {str(PROMPTS)}


def test_samples_are_asked_for_in_the_wording_of_the_training(tmp_path):
    name = "demo:audio/prompts/held_out.jsonl"
    thinking = PromptsConfig(train=name, format="avqa_think")
    asked = load_asked_as_trained(name, thinking)
    assert [prompt.text for prompt in asked] == list(map(prompt_of, _questions("held_out")))
    assert "<think>" not in load_asked_as_trained(name, PromptsConfig(train=name))[0].text
    assert "<think>" not in load_asked_as_trained(name, None)[0].text
    (tmp_path / "mine.txt").write_text("what is this?\n")
    (other,) = load_asked_as_trained(str(tmp_path / "mine.txt"), thinking)
    assert other.text == "what is this?"


def test_words_are_single_tokens_and_tags_are_no_special_ones():
    tokenizer = _loaded()[1].tokenizer
    for question in _questions("held_out"):
        for text in (prompt_of(question), audio_task.completion_of(question)):
            ids = tokenizer(text).input_ids
            assert tokenizer.unk_token_id not in ids
        ids = [tokenizer.pad_token_id, *ids, tokenizer.eos_token_id]
        assert tokenizer.decode(ids, skip_special_tokens=True) == text
        assert len(text.split()) + 1 <= 16  # max_new_tokens of the demo


@pytest.mark.parametrize("algorithm", ["adrpo", "grpo"])
def test_prompts_fit_the_demo_s_settings(algorithm):
    config = load_config(CONFIGS / "demo" / f"audio_{algorithm}.toml").config
    processor = _loaded()[1]
    questions = _questions("train")
    clips = [read_clip(row["audio"], PROMPTS) for row in _rows("train")]
    ids, _ = spoken_ids(processor, clips, [prompt_of(question) for question in questions])
    assert max(map(len, ids)) <= config.domain.chat.max_prompt_tokens


@torch.no_grad()
def test_the_base_model_hears_and_leaves_room():
    """It knows how to reason, which it does three times in ten, and guesses otherwise."""
    model, processor = _loaded()
    questions = _questions("held_out")
    clips = [read_clip(row["audio"], PROMPTS) for row in _rows("held_out")]
    texts = [prompt_of(question) for question in questions]
    losses = {}
    for name, completions in (
        ("right", [audio_task.completion_of(question) for question in questions]),
        ("guess", [f"<answer> {question.answer} </answer>" for question in questions]),
    ):
        batch = spoken_batch(processor, clips, texts, completions)
        tokens = (batch["labels"] != -100).sum(1).double().mean()
        losses[name] = float(model(**batch).loss * tokens)  # of a whole completion
    shares = {name: math.exp(-loss) for name, loss in losses.items()}
    assert 0.2 < shares["right"] < 0.4
    assert 0.1 < shares["guess"] < 0.3


def test_a_short_build_writes_the_same_bytes_twice(tmp_path):
    recipe = SftRecipe(ModelSize(hidden=32, layers=1, intermediate=32, head_dim=8), 6, batch=4)
    state = torch.random.get_rng_state()
    for name in ("one", "two"):
        build_audio(tmp_path / name, log=lambda _: None, recipe=recipe)
    assert torch.equal(state, torch.random.get_rng_state())
    one, two = (
        {path.relative_to(tmp_path / name): path.read_bytes() for path in files if path.is_file()}
        for name in ("one", "two")
        for files in [sorted((tmp_path / name).rglob("*"))]
    )
    assert one == two
    for name in ("train.jsonl", "held_out.jsonl"):
        assert one[Path("prompts") / name] == (PROMPTS / name).read_bytes()
