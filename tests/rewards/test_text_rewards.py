"""Verifiers and reward models of the text domain."""

from __future__ import annotations

import json
import logging
import time

import pytest
import torch
from transformers import Qwen3ForSequenceClassification

from adrpo_scale.core.errors import ConfigError, ModelNotFoundError, RewardError, WeightsError
from adrpo_scale.core.types import Completion, Prompt
from adrpo_scale.demo.text.rm_task import ReviewPrompt, gold_score
from adrpo_scale.rewards.calls import rewards_of
from adrpo_scale.rewards.reward_model import RewardModel, RewardModelConfig
from adrpo_scale.rewards.text import Format, FormatConfig, extract_answer
from adrpo_scale.run.build import build_engine, build_rewards, build_trainer
from tests.support.closeness import assert_near
from tests.support.tiny_text import TEMPLATE, save_tiny_reward, text_config, tiny_tokenizer

CPU = torch.device("cpu")
SUM = Prompt(0, "2 + 2", {"answer": "4"})


def reward(tmp_path, **settings):
    """The first reward of a run with these settings."""
    config = text_config(tmp_path / "model", [f"rewards={json_toml(settings)}"])
    return build_rewards(config, build_engine(config))[0]


def json_toml(settings):
    return "[{" + ", ".join(f"{k} = {json.dumps(v)}" for k, v in settings.items()) + "}]"


def values(made, *texts, prompt=SUM):
    return rewards_of(made, [Completion(text) for text in texts], [prompt] * len(texts)).tolist()


# ---- verifiers -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("<answer>4</answer>", "4"),
        ("<answer>1</answer> no, <answer>\n4\n</answer>", "\n4\n"),
        ("<ANSWER>4</Answer>", "4"),
        ("4", None),
        ("<answer>4", None),
    ],
)
def test_the_last_answer_counts(text, answer):
    assert extract_answer(text) == answer


def test_exact_answer(tmp_path):
    made = reward(tmp_path, kind="exact_answer")
    right = ["<answer>4</answer>", "<think>x</think><answer> 4.\n</answer>", "<answer>4 </answer>"]
    wrong = [
        "4",
        "<answer>5</answer>",
        "<answer>44</answer>",
        "<answer>4</answer><answer>5</answer>",
    ]
    assert values(made, *right, *wrong) == [1, 1, 1, 0, 0, 0, 0]
    words = Prompt(1, "sort", {"answer": "A b"})
    assert values(made, "<answer>a  B</answer>", prompt=words) == [1]


def test_a_prompt_without_the_right_answer_is_an_error_and_not_a_masked_sample(tmp_path):
    made = reward(tmp_path, kind="exact_answer", answer_key="solution")
    with pytest.raises(
        RewardError, match=r"prompt 0 '2 \+ 2' has no 'solution'.*\['answer'\].*answer_key"
    ):
        rewards_of(made, [Completion("4")], [SUM])


def test_a_run_whose_prompts_lack_answers_does_not_begin(tmp_path):
    rewards = 'rewards=[{kind="exact_answer", answer_key="solution"}]'
    config = text_config(tmp_path / "model", [rewards])
    with pytest.raises(RewardError, match=r"prompt 0 'w1 w2' \(.*, line 1\) has no 'sol") as error:
        build_trainer(config, tmp_path / "run")
    assert error.value.agreed


def test_math_verify_knows_equal_numbers(tmp_path):
    made = reward(tmp_path, kind="math_verify")
    half = Prompt(0, "a half", {"answer": r"$\frac{1}{2}$"})
    assert values(made, "<answer>0.5</answer>", "<answer>0.6</answer>", prompt=half) == [1, 0]
    assert values(made, r"so it is $\frac{2}{4}$", prompt=half) == [1]


def test_format(tmp_path):
    made = reward(tmp_path, kind="format")
    good = ["<think>a\nb</think><answer>4</answer>", " <think></think>\n<answer>4</answer> "]
    bad = [
        "<answer>4</answer>",
        "<think>a</think>",
        "<think>a</think> and <answer>4</answer>",
        "<think>a</think><answer>4</answer><answer>5</answer>",
        "<think><think>a</think><answer>4</answer>",
    ]
    assert values(made, *good, *bad) == [1, 1, 0, 0, 0, 0, 0]
    own = reward(tmp_path, kind="format", pattern=r"\d+")
    assert values(own, "42", "4 2") == [1, 0]
    with pytest.raises(ConfigError, match="no regular expression"):
        reward(tmp_path, kind="format", pattern="(")


def test_the_demos_gold_score_is_a_reward(tmp_path):
    made = reward(tmp_path, kind="demo_gold")
    prompt = Prompt(0, ReviewPrompt("hotel", ("food", "view")).text)
    good, bad = "the food is great and the view is fair .", "great great ."
    found = values(made, good, bad, prompt=prompt)
    assert found == pytest.approx([gold_score(prompt.text, text) for text in (good, bad)])
    assert found[0] > found[1]


# ---- reward models ---------------------------------------------------------------------------

CASES = [
    (Prompt(0, "w1 w2"), "w3 w4 w5"),
    (Prompt(1, "w6"), "w7"),
    (Prompt(2, "x", {}, tuple({"role": r, "content": c} for r, c in
                              [("user", "w1"), ("assistant", "w2"), ("user", "w3")])), "w8 w9"),
]  # fmt: skip


def model_reward(folder, **settings):
    settings = {"dtype": "float32", "model": str(folder)} | settings
    return RewardModel(RewardModelConfig(**settings), CPU)


def scored(made, cases=CASES):
    return made([Completion(text) for _, text in cases], [prompt for prompt, _ in cases])


def by_transformers(folder, cases=CASES):
    """One conversation at a time, as the model's card would have it."""
    model = Qwen3ForSequenceClassification.from_pretrained(folder).eval()
    tokenizer, found = tiny_tokenizer(), []
    for prompt, text in cases:
        messages = [*prompt.conversation, {"role": "assistant", "content": text}]
        ids = tokenizer(
            tokenizer.apply_chat_template(messages, tokenize=False), return_tensors="pt"
        )
        found.append(model(input_ids=ids["input_ids"]).logits[0, 0].detach())
    return torch.stack(found)


@pytest.mark.parametrize("batch", [1, 2, 8])
def test_a_batch_gives_the_logits_of_single_conversations(tmp_path, batch):
    folder = save_tiny_reward(tmp_path)
    made = model_reward(folder, batch=batch)
    assert_near(scored(made), by_transformers(folder))


def test_a_conversation_that_ends_in_what_the_tokenizer_pads_with_keeps_its_end(tmp_path):
    """Its logit is that of its last token, as the model was published: without a pad token."""
    folder = save_tiny_reward(tmp_path, pad_token_id=None)
    tokenizer = tiny_tokenizer()
    tokenizer.pad_token = tokenizer.eos_token
    tokenizer.chat_template = TEMPLATE.replace("<|im_end|> ' }}", "<|im_end|>' }}")
    tokenizer.save_pretrained(folder)
    made = model_reward(folder)
    ids = [made.tokens(prompt, text) for prompt, text in CASES]
    assert {row[-1] for row in ids} == {tokenizer.eos_token_id}
    model = Qwen3ForSequenceClassification.from_pretrained(folder).eval()
    expected = torch.stack([model(torch.tensor([row])).logits[0, 0].detach() for row in ids])
    assert_near(scored(made), expected)


def test_sharded_and_replicated_agree_in_one_process(tmp_path):
    folder = save_tiny_reward(tmp_path / "rm")
    whole = reward(tmp_path, kind="reward_model", model=str(folder), dtype="float32")
    config = text_config(
        tmp_path / "model",
        [f'rewards=[{{kind="reward_model", placement="sharded", model="{folder}"}}]'],
    )
    engine = build_engine(config)
    (sharded,) = build_rewards(config, engine)
    assert sharded.sharded is not None and whole.sharded is None
    with engine.sampling(sharded.sharded):
        assert_near(scored(sharded), scored(whole))


def test_there_is_one_beginning_of_sequence_token(tmp_path):
    folder = save_tiny_reward(tmp_path)
    tokenizer = tiny_tokenizer(
        "{{ '<|im_start|> ' }}{% for m in messages %}{{ m['content'] + ' ' }}{% endfor %}"
    )
    tokenizer.bos_token = "<|im_start|>"
    tokenizer.add_bos_token = True
    tokenizer.save_pretrained(folder)
    ids = model_reward(folder).tokens(Prompt(0, "w1"), "w2")
    assert tokenizer.decode(ids) == "<|im_start|> w1 w2"


def test_what_is_too_long_loses_its_oldest_tokens_and_says_so(tmp_path, caplog):
    folder = save_tiny_reward(tmp_path)
    made, whole = model_reward(folder, max_tokens=6), model_reward(folder)
    prompt = Prompt(5, "w1 w2 w3 w4 w5 w6")
    with caplog.at_level(logging.WARNING):
        ids = made.tokens(prompt, "w7 w8")
        made.tokens(prompt, "w7 w9")
    assert ids == whole.tokens(prompt, "w7 w8")[-6:]
    assert len(caplog.records) == 1 and "prompt 5 and its completion" in caplog.text


@pytest.mark.parametrize("how", ["merge", "keep", "drop"])
def test_system_messages(tmp_path, how):
    messages = ({"role": "system", "content": "w8"}, {"role": "user", "content": "w1"})
    made = model_reward(save_tiny_reward(tmp_path), system=how)
    text = tiny_tokenizer().decode(made.tokens(Prompt(0, "x", {}, messages), "w2"))
    end = "<|im_end|> <|im_start|> assistant w2 <|im_end|>"
    begin = {
        "merge": "user w8 w1",
        "drop": "user w1",
        "keep": "system w8 <|im_end|> <|im_start|> user w1",
    }
    assert text == f"<|im_start|> {begin[how]} {end}"


def test_thinking_can_be_left_out(tmp_path):
    made = model_reward(save_tiny_reward(tmp_path), strip_thinking=True)
    prompt = Prompt(0, "w1")
    assert made.tokens(prompt, "<think> w5 </think> w2") == made.tokens(prompt, "w2")
    assert made.tokens(prompt, "<think> w5 w6") == made.tokens(prompt, "")  # cut off in it


def test_a_model_that_gives_nan_masks_its_samples_by_name(tmp_path, caplog):
    made = model_reward(save_tiny_reward(tmp_path))
    with torch.no_grad():
        made._model.score.weight.fill_(torch.nan)
    with caplog.at_level(logging.WARNING):
        found = rewards_of(made, [Completion(text) for _, text in CASES], [p for p, _ in CASES])
    assert bool(found.isnan().all())
    assert "reward reward_model is nan on 3 samples: prompt 0 'w1 w2', prompt 1" in caplog.text


def test_models_that_are_no_reward_models_are_refused(tmp_path):
    folder = save_tiny_reward(tmp_path / "two", num_labels=2)
    with pytest.raises(ConfigError, match="has 2 outputs, a reward model has one"):
        model_reward(folder)
    folder = save_tiny_reward(tmp_path / "small", vocab_size=40)
    with pytest.raises(ConfigError, match="token 63, the model a vocabulary of 40"):
        model_reward(folder)
    folder = save_tiny_reward(tmp_path / "mute")
    (folder / "chat_template.jinja").unlink()
    with pytest.raises(ConfigError, match="no chat template"):
        model_reward(folder)
    with pytest.raises(ModelNotFoundError, match="hf download weqweasdas/RM-Gemma-2B"):
        model_reward("weqweasdas/RM-Gemma-2B")


def test_a_reward_model_without_its_head_is_refused(tmp_path):
    from transformers import AutoModelForCausalLM

    from tests.support.tiny_text import save_tiny

    folder = save_tiny(tmp_path)
    config = json.loads((folder / "config.json").read_text())
    config |= {"id2label": {"0": "reward"}, "label2id": {"reward": 0}}
    (folder / "config.json").write_text(json.dumps(config))
    assert AutoModelForCausalLM.from_pretrained(folder) is not None
    with pytest.raises(WeightsError, match=r"1 missing \['score.weight'\]"):
        model_reward(folder)


def test_a_model_that_repeats_a_tag_costs_no_time():
    """A search for pairs of tags took 6 s for 64,000 characters, and four times that for twice."""
    begin = time.process_time()
    assert extract_answer("<answer>" * 125_000) is None
    assert extract_answer("<answer>" * 125_000 + "4</answer>").endswith("<answer>4")
    pairs = "<answer>3</answer>" * 50_000
    assert extract_answer(pairs + "<answer>4</ANSWER><answer>5") == "4"
    assert Format(FormatConfig(), CPU)([Completion("<think>" * 150_000)], [SUM]).tolist() == [0]
    assert time.process_time() - begin < 5
