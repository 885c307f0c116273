"""The text demos: answers and gold scores are exact, the shipped models load and leave room."""

import json
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    PreTrainedTokenizerFast,
    Qwen3ForCausalLM,
    Qwen3ForSequenceClassification,
)

import adrpo_scale.demo
from adrpo_scale.demo.text import rm_task as text_rm_task
from adrpo_scale.demo.text import task as text_task
from adrpo_scale.demo.text.build import build_text, build_text_rm
from adrpo_scale.demo.text.model import ModelSize, RewardRecipe, SftRecipe, reward_logits, sample
from adrpo_scale.demo.text.rm_task import gold_score

ASSETS = Path(adrpo_scale.demo.__file__).parent / "assets"
TEXT, TEXT_RM = ASSETS / "text", ASSETS / "text_rm"
REWARD_MODEL = TEXT_RM / "reward_model"
NEW_TOKENS = 32
TWO = "review the hotel , mention the price and the food ."
THREE = "review the book , mention the style and the size and the light ."


@cache
def _policy(folder: Path) -> tuple[Qwen3ForCausalLM, PreTrainedTokenizerFast]:
    return AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)


@cache
def _reward() -> tuple[Qwen3ForSequenceClassification, PreTrainedTokenizerFast]:
    model = AutoModelForSequenceClassification.from_pretrained(REWARD_MODEL)
    return model, AutoTokenizer.from_pretrained(REWARD_MODEL)


def _rows(folder: Path, name: str) -> list[dict[str, str]]:
    lines = (folder / "prompts" / f"{name}.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines]


def _expected(row: dict[str, str]) -> str:
    """The answer from the digits of the prompt alone, not by the code that wrote it."""
    digits = [word for word in row["prompt"].split() if word.isdigit()]
    if row["task"] == "add":
        return " ".join(str(int("".join(digits[:2])) + int("".join(digits[2:]))))
    return " ".join(sorted(digits, key=int) if row["task"] == "sort" else reversed(digits))


@torch.no_grad()
def _logits(pairs: list[tuple[str, str]]) -> np.ndarray:
    model, tokenizer = _reward()
    return reward_logits(model, tokenizer, pairs).numpy()


def _files(folder: Path) -> dict[str, bytes]:
    files = (path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}


def test_every_answer_is_right():
    rows = _rows(TEXT, "train") + _rows(TEXT, "held_out")
    assert [row["answer"] for row in rows] == [_expected(row) for row in rows]


def test_held_out_problems_are_new_in_any_wording():
    problems = {
        name: {(row["task"], *filter(str.isdigit, row["prompt"])) for row in _rows(TEXT, name)}
        for name in ("train", "held_out")
    }
    assert len(problems["train"]) == 400 and len(problems["held_out"]) == 100
    assert not problems["train"] & problems["held_out"]
    tasks = [row["task"] for row in _rows(TEXT, "held_out")]
    assert [tasks.count(task) for task in text_task.TASKS] == [60, 20, 20]


def test_reasoning_reaches_the_answer():
    add = text_task.TextPrompt("what is 4 7 + 3 8 ?", "add", ("4 7", "3 8"), "8 5")
    assert text_task.completion_of(add, with_reasoning=True) == (
        "<think> 7 + 8 = 1 5 ; 4 + 3 + 1 = 8 </think> <answer> 8 5 </answer>"
    )
    assert text_task.reason("sort", ("3 1 4 1",)) == "3 ; 1 3 ; 1 3 4 ; 1 1 3 4"
    assert text_task.reason("reverse", ("3 1 4 1",)) == "3 ; 1 3 ; 4 1 3 ; 1 4 1 3"
    for prompt in text_task.split_prompts(5)[0]:
        for with_reasoning in (False, True):
            completion = text_task.completion_of(prompt, with_reasoning=with_reasoning)
            assert text_task.is_correct(completion, prompt.answer)
            assert len(completion.split()) + 1 <= NEW_TOKENS


@pytest.mark.parametrize(
    ("completion", "answer"),
    [
        ("<answer> 8 5 </answer>", "8 5"),
        ("<answer>\n8   5\n</answer> and so on", "8 5"),
        ("<answer> 1 </answer> no <answer> 8 5 </answer>", "8 5"),
        ("<answer> 8 5", None),
        ("8 5 </answer>", None),
        ("", None),
        ("<answer> </answer>", ""),
    ],
)
def test_the_last_closed_answer_counts(completion, answer):
    assert text_task.extract_answer(completion) == answer
    assert text_task.is_correct(completion, "8 5") == (answer == "8 5")


@pytest.mark.parametrize("folder", [TEXT, TEXT_RM])
def test_policies_load_as_they_are(folder):
    model, tokenizer = _policy(folder)
    assert type(model) is Qwen3ForCausalLM and model.dtype == torch.float32
    assert model.config.vocab_size == len(tokenizer) and model.config.tie_word_embeddings
    assert model.generation_config.eos_token_id == tokenizer.eos_token_id
    assert model.generation_config.pad_token_id == tokenizer.pad_token_id != tokenizer.eos_token_id
    assert model.config.attention_dropout == 0 and model.config.max_position_embeddings >= 128


def test_words_are_single_tokens_and_tags_are_no_special_ones():
    tokenizer = _policy(TEXT)[1]
    text = "<think> 7 + 8 = 1 5 ; 4 + 3 + 1 = 8 </think> <answer> 8 5 </answer>"
    ids = tokenizer(text).input_ids
    assert len(ids) == len(text.split()) and tokenizer.unk_token_id not in ids
    ids = [tokenizer.pad_token_id, *ids, tokenizer.eos_token_id]
    assert tokenizer.decode(ids, skip_special_tokens=True) == text
    for folder in (TEXT, TEXT_RM):
        tokenizer = _policy(folder)[1]
        prompts = [row["prompt"] for row in _rows(folder, "train") + _rows(folder, "held_out")]
        assert tokenizer.batch_decode(tokenizer(prompts).input_ids) == prompts


@pytest.mark.parametrize("folder", [TEXT, TEXT_RM])
def test_chat_template_round_trip(folder):
    tokenizer = _policy(folder)[1]
    prompt = _rows(folder, "train")[0]["prompt"]
    chat = [{"role": "system", "content": "."}, {"role": "user", "content": prompt}]
    text = tokenizer.apply_chat_template(chat, add_generation_prompt=True, tokenize=False)
    assert text == (
        f"<|im_start|> system\n. <|im_end|>\n<|im_start|> user\n{prompt} <|im_end|>\n"
        "<|im_start|> assistant\n"
    )
    ids = tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_dict=False)
    assert ids == tokenizer(text).input_ids and tokenizer.unk_token_id not in ids
    assert tokenizer.decode(ids) == " ".join(text.split())
    answered = [*chat, {"role": "assistant", "content": "."}]
    whole = tokenizer.apply_chat_template(answered, return_dict=False)
    assert whole[: len(ids)] == ids and whole[-1] == tokenizer.eos_token_id


def test_base_model_adds_badly_and_never_reasons_when_greedy():
    rows = _rows(TEXT, "held_out")
    texts = sample(
        *_policy(TEXT), [row["prompt"] for row in rows], max_new_tokens=NEW_TOKENS, greedy=True
    )
    right = [
        text_task.is_correct(text, row["answer"]) for text, row in zip(texts, rows, strict=True)
    ]
    assert 0.35 <= np.mean(right) <= 0.5
    assert not any(text_task.THINK in text for text in texts)


def test_base_model_reasons_well_when_it_does():
    torch.manual_seed(0)
    rows = _rows(TEXT, "train")
    texts = sample(*_policy(TEXT), [row["prompt"] for row in rows], max_new_tokens=NEW_TOKENS)
    right = np.array(
        [text_task.is_correct(text, row["answer"]) for text, row in zip(texts, rows, strict=True)]
    )
    reasoned = np.array([text_task.THINK in text for text in texts])
    assert 0.4 < right.mean() < 0.65 and 0.1 < reasoned.mean() < 0.3
    assert right[reasoned].mean() > right[~reasoned].mean() + 0.2


@pytest.mark.parametrize(
    ("prompt", "completion", "score"),
    [
        (TWO, "the price is fair and the food is great .", 1.0),
        (TWO, "the food is great and the price is fair .", 1.0),
        (TWO, "the price is fair and it has a food .", 0.7),
        (TWO, "the price is fair and the food is fair .", 0.55),  # the same opinion again
        (TWO, "the price is fair .", 0.5),
        (TWO, "it has a price and it has a food .", 0.4),
        (TWO, "the price is fair and the view is great .", 0.7),  # one forgotten, one not asked for
        (TWO, "the price is fair and the food is great", 0.8),
        (TWO, "the price is fair . the food is great .", 0.8),
        (TWO, "the price is fair and the price is fair and the price is fair .", 0.0),
        (TWO, "the price is fair and the food is great" + " and very" * 5 + " .", 0.6),
        (TWO, "price food fair great .", 1.0),
        (TWO, "", 0.0),
        (THREE, "the style is lovely and the size is good and the light is nice .", 1.0),
        (THREE, "the style is lovely and the size is good .", 2 / 3),
    ],
)
def test_gold_score(prompt, completion, score):
    assert gold_score(prompt, completion) == pytest.approx(score)
    assert gold_score(prompt, f"  {completion}\n") == gold_score(prompt, completion)


@pytest.mark.parametrize("text", ["", "review the hotel", TWO[:-1], TWO.replace("hotel", "zoo")])
def test_gold_score_refuses_other_prompts(text):
    with pytest.raises(ValueError, match="review task"):
        gold_score(text, "the price is fair .")


def test_review_prompts_are_disjoint_and_of_the_task():
    sides = [
        [text_rm_task.parse_prompt(row["prompt"]) for row in _rows(TEXT_RM, name)]
        for name in ("train", "held_out")
    ]
    asked = [{(prompt.thing, frozenset(prompt.aspects)) for prompt in side} for side in sides]
    assert [len(side) for side in asked] == [256, 64] and not asked[0] & asked[1]
    assert all(text_rm_task.parse_prompt(prompt.text) == prompt for prompt in sides[0])


def test_labels_are_the_gold_scorer_s_up_to_the_noise():
    rng = np.random.default_rng(0)
    pair = (TWO, "the price is fair and the food is great .", "the price is fair .")
    assert all(text_rm_task.prefers_first(*pair, 0.0, rng) for _ in range(20))
    share = np.mean([text_rm_task.prefers_first(*pair, 0.12, rng) for _ in range(2000)])
    assert 0.85 < share < 0.91


def test_reward_tokenizer_is_another_one_and_its_template_has_one_bos():
    model, tokenizer = _reward()
    assert type(model) is Qwen3ForSequenceClassification and model.config.num_labels == 1
    assert model.config.pad_token_id == tokenizer.pad_token_id is not None
    chat = [{"role": "user", "content": TWO}, {"role": "assistant", "content": "it is fine ."}]
    text = tokenizer.apply_chat_template(chat, tokenize=False)
    ids = tokenizer.apply_chat_template(chat, return_dict=False)
    assert tokenizer(text, add_special_tokens=False).input_ids == ids
    assert ids.count(tokenizer.bos_token_id) == 1 and tokenizer.unk_token_id not in ids
    assert tokenizer(text).input_ids[:2] == [tokenizer.bos_token_id] * 2
    assert tokenizer.get_vocab()["price"] != _policy(TEXT_RM)[1].get_vocab()["price"]


def test_reward_model_does_not_see_the_padding():
    short, long = (TWO, "it is fine ."), (THREE, "the style is lovely and the size is good .")
    together = _logits([short, long])
    assert together == pytest.approx([_logits([short])[0], _logits([long])[0]], abs=1e-5)


def test_reward_model_agrees_with_gold_on_the_policy_s_reviews_and_can_be_fooled():
    torch.manual_seed(0)
    prompts = [row["prompt"] for row in _rows(TEXT_RM, "held_out")] * 4
    sides = [sample(*_policy(TEXT_RM), prompts, max_new_tokens=24) for _ in range(2)]
    gold = np.array([[gold_score(*row) for row in zip(prompts, s, strict=True)] for s in sides])
    logits = np.array([_logits(list(zip(prompts, side, strict=True))) for side in sides])
    clear = np.abs(gold[0] - gold[1]) >= 0.25
    assert clear.sum() > 60 and 0.3 < gold.mean() < 0.6
    assert np.mean((logits[0] > logits[1])[clear] == (gold[0] > gold[1])[clear]) > 0.7
    hack = "the sound is fair and the sound is fair and all is fair ."
    assert gold_score(TWO, hack) == 0 and _logits([(TWO, hack)])[0] > logits.mean()


def test_assets_are_small_and_hold_no_pickle():
    files = [path for folder in (TEXT, TEXT_RM) for path in folder.rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) <= 6e6
    assert {path.suffix for path in files} == {".safetensors", ".json", ".jsonl", ".jinja"}


def test_build_is_reproducible_and_leaves_no_trace(tmp_path):
    tiny = SftRecipe(ModelSize(hidden=16, layers=1, intermediate=16, head_dim=8), steps=4, batch=4)
    reward = RewardRecipe(tiny.size, pairs=16, epochs=1, batch=4)
    state, threads = torch.get_rng_state(), torch.get_num_threads()
    for name in ("one", "two"):
        build_text(tmp_path / name / "text", recipe=tiny, log=lambda _: None)
        build_text_rm(tmp_path / name / "rm", recipe=tiny, reward_recipe=reward, log=lambda _: None)
        assert torch.equal(torch.get_rng_state(), state)
        assert torch.get_num_threads() == threads
    one, two = _files(tmp_path / "one"), _files(tmp_path / "two")
    assert one == two and one.keys() == {
        *(f"text/{name}" for name in _files(TEXT)),
        *(f"rm/{name}" for name in _files(TEXT_RM)),
    }
    assert one["text/prompts/train.jsonl"] == _files(TEXT)["prompts/train.jsonl"]
