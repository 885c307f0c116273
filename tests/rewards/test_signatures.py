"""Rewards as other libraries write them: refused before anything heavy, with what is expected."""

from __future__ import annotations

import asyncio
import functools
import json
import logging
import time

import numpy as np
import pytest
import torch

from adrpo_scale.cli.config import show_config
from adrpo_scale.cluster.preflight.rewards import rewards_check
from adrpo_scale.core.errors import RewardError
from adrpo_scale.core.types import Completion, Prompt
from adrpo_scale.rewards.base import PlainReward, RewardConfig
from adrpo_scale.rewards.calls import Info, read_scores, rewards_of
from adrpo_scale.rewards.function import FunctionReward, FunctionRewardConfig
from adrpo_scale.rewards.trial import made_up, tried
from adrpo_scale.run.build import build_trainer
from adrpo_scale.run.load import LoadedConfig, load_config
from adrpo_scale.run.rewards import check_code
from adrpo_scale.run.train import TrainOptions, train
from tests.support.tiny import CONFIGS
from tests.support.tiny_text import text_config

ME = "tests.rewards.test_signatures"
PROMPTS = [Prompt(number, f"w{number}", {"answer": str(number)}) for number in range(3)]


def trl_style(completions, **kwargs):
    return [float(len(c)) for c in completions]


def trl_with_prompts(prompts, completions, **kwargs):
    return [float(len(str(c))) for c in completions]


def verl_score(data_source, solution_str, ground_truth, extra_info=None):
    return 1.0


def verl_gsm8k(solution_str, ground_truth, method="strict", score=1.0):
    return score


def columns_by_name(artifacts, prompts, *, answer):
    return [1.0] * len(artifacts)


def one_list(reward_inputs):
    return [1.0] * len(reward_inputs)


async def coroutine(artifacts, prompts):
    return [1.0] * len(artifacts)


class Awaited:
    async def __call__(self, artifacts, prompts):
        return [1.0] * len(artifacts)


class Plain:
    def __call__(self, artifacts, prompts, temperature=1.0):
        return [temperature] * len(artifacts)


async def async_generator(artifacts, prompts):
    yield 1.0


async def one_judgement(artifact):
    await asyncio.sleep(0.2)
    return 0.5


def coroutines(artifacts, prompts):
    return [one_judgement(artifact) for artifact in artifacts]


async def coroutines_and_info(artifacts, prompts):
    return coroutines(artifacts, prompts), {"cost": 1.0}


class AsyncReward(PlainReward):
    Config = RewardConfig

    def __init__(self, config, device):
        super().__init__(config)
        self.loops = set()  # a client would be of one loop

    async def __call__(self, artifacts, prompts):
        self.loops.add(asyncio.get_running_loop())
        return [float(len(artifact.text)) for artifact in artifacts]


awaited, plain, number = Awaited(), Plain(), 3
half_awaited = functools.partial(coroutine)
half = functools.partial(lambda weight, artifacts, prompts: [weight] * len(artifacts), 0.5)


def scores_and_info(artifacts, prompts):
    return [1.0] * len(artifacts), {}


def anything(*arguments, **named):
    return [1.0] * len(arguments[0])


def one_by_one(artifacts, prompts):
    yield from (float(len(artifact.text)) for artifact in artifacts)


def one_number(artifacts, prompts):
    return 0.5


def nothing_given(artifacts, prompts):
    [1.0] * len(artifacts)


def one_too_few(artifacts, prompts):
    return [1.0] * (len(artifacts) - 1)


def a_column(artifacts, prompts):
    return torch.zeros(len(artifacts), 1)


def nested(artifacts, prompts):
    return [[1.0]] * len(artifacts)


def words(artifacts, prompts):
    return ["good"] * len(artifacts)


def digits(artifacts, prompts):
    return np.array(["1.0"] * len(artifacts))


def dictionaries(artifacts, prompts):
    return [{"score": 1.0}] * len(artifacts)


def a_dictionary(artifacts, prompts):
    return {"score": [1.0] * len(artifacts)}


def returns_coroutine(artifacts, prompts):
    return coroutine(artifacts, prompts)


def needs_real_samples(artifacts, prompts):
    raise ValueError("no such sample in my table")


def is_nan(artifacts, prompts):
    return [float("nan")] * len(artifacts)


def abstains(artifacts, prompts):
    return [None] * len(artifacts)


def config(name):
    return FunctionRewardConfig(path=f"{ME}:{name}", name="mine")


def trial_of(name, medium="completions"):
    reward = FunctionReward(config(name), torch.device("cpu"))
    return tried(reward, made_up(medium, PROMPTS, (8, 8)), PROMPTS)


REFUSED = {
    "trl_style": r"trl_style\(completions, \*\*kwargs\) cannot be called: .*completions=\[a\.text",
    "trl_with_prompts": "first parameter of .* is prompts, but it is called as reward.artifacts,",
    "verl_score": r"missing a required argument.*\[verl_score\(\"mine\", a\.text, p\.metadata",
    "verl_gsm8k": "is for one sample, but it is called as reward.artifacts, prompts., two lists",
    "columns_by_name": "missing a required.*'answer'",
    "one_list": "too many positional arguments",
    "async_generator": "is an async generator, which gives no list; return the list",
    "Plain": "Plain is a class and no function: derive it from adrpo_scale.Reward",
    "number": "a int is no function",
    "no_such": "path = 'tests.rewards.test_signatures:no_such' cannot be imported",
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_called_is_refused_without_a_call(name):
    with pytest.raises(RewardError, match="reward mine: ") as error:
        FunctionReward.check_code(config(name))
    assert error.match(REFUSED[name])


CALLED = ["plain", "half", "scores_and_info", "anything", "one_by_one", "coroutine", "awaited"]
CALLED += ["half_awaited", "returns_coroutine", "coroutines", "coroutines_and_info"]


@pytest.mark.parametrize("name", CALLED)
def test_what_can_be_called_is_tried_without_a_word(name):
    FunctionReward.check_code(config(name))
    assert trial_of(name) == ""


def test_coroutines_are_awaited_at_once_in_one_loop_for_all_calls():
    section = RewardConfig(kind=f"{ME}:AsyncReward")
    AsyncReward.check_code(section)
    made = AsyncReward(section, torch.device("cpu"))
    artifacts = [Completion("ab"), Completion("c")]
    for _ in range(2):
        assert rewards_of(made, artifacts, PROMPTS[:2]).tolist() == [2.0, 1.0]
    assert len(made.loops) == 1
    many = FunctionReward(config("coroutines_and_info"), torch.device("cpu"))
    begin, info = time.monotonic(), Info()
    given = rewards_of(many, artifacts * 20, PROMPTS[:2] * 20, info)
    assert given.tolist() == [0.5] * 40 and info.means() == {"mine_cost": 1.0}
    assert time.monotonic() - begin < 8  # one after another: 8 s of sleep alone

    async def notebook():
        return rewards_of(made, artifacts, PROMPTS[:2]).tolist()

    assert asyncio.run(notebook()) == [2.0, 1.0]


def test_remedies_name_keys_that_the_rows_have(tmp_path):
    def remedy(function, *rows):
        file = tmp_path / "rows.jsonl"
        file.write_text("\n".join(json.dumps({"prompt": "a"} | row) for row in rows))
        with pytest.raises(RewardError) as error:
            check_code(text_run(tmp_path, function, prompts=file))
        return str(error.value)

    answer = 'answer=[p.metadata["answer"] for p in prompts])`'
    assert remedy("trl_style", {"answer": 1}, {"answer": 2}).endswith(answer)
    lacking = remedy("trl_style", {"answer": 1, "topic": "a"}, {"topic": "b", "level": 3})
    assert lacking.endswith(
        "answer=[p.metadata[KEY] for p in prompts])`, where KEY is 'topic', as your rows have"
    )
    assert 'p.metadata["ground_truth"])' in remedy("verl_score", {"ground_truth": 4})
    assert remedy("verl_score", {}).endswith("but your rows have no key beside their prompt")


@pytest.mark.parametrize(
    ("name", "came"),
    {
        "one_number": r"gave shape \(\), the one number 0.5, for 3 samples; one number per sample",
        "nothing_given": r"gave nothing \(None\) for 3 samples",
        "one_too_few": r"gave shape \(2,\) for 3 samples",
        "a_column": r"gave shape \(3, 1\) for 3 samples",
        "nested": r"gave shape \(3, 1\) for 3 samples",
        "words": "gave 'good' in the place of a number for made-up samples",
        "digits": "gave np.str_.'1.0'. in the place of a number",
        "dictionaries": "gave a list of dict in the place of numbers",
        "a_dictionary": "gave a dict for 3 samples",
    }.items(),
)
def test_an_answer_that_no_sample_could_mend_is_refused(name, came):
    with pytest.raises(RewardError, match=f"reward mine {came}"):
        trial_of(name)


def test_what_may_depend_on_the_samples_is_a_warning_with_the_place():
    line = trial_of("needs_real_samples")
    assert line.startswith("reward mine raised ValueError('no such sample in my table') (")
    assert "test_signatures.py:" in line and "it may need real ones" in line
    assert "gave no finite number" in trial_of("is_nan")
    assert trial_of("abstains") == ""


def test_made_up_samples_are_of_the_medium():
    (picture, *_) = made_up("pictures", PROMPTS, (8, 16))
    assert picture.shape == (8, 16, 3) and picture.dtype == np.uint8
    (completion, *_) = made_up("completions", PROMPTS, (8, 8))
    assert "<answer>" in completion.text and completion.finished


def test_a_pair_is_scores_and_info_only_with_a_dictionary():
    assert read_scores(([1.0, 2.0], {}), 2, "mine").values_N.tolist() == [1.0, 2.0]
    assert read_scores((1.0, 2.0), 2, "mine").values_N.tolist() == [1.0, 2.0]


# ---- before anything heavy -----------------------------------------------------------------------


def text_run(folder, *names, prompts=None):
    rewards = ", ".join(f'{{kind="function", path="{ME}:{n}", name="r{n}"}}' for n in names)
    more = [] if prompts is None else [f"prompts.train={prompts}"]
    return text_config(folder / "model", [f"rewards=[{rewards}]", *more])


def test_the_commands_find_every_reward_that_cannot_be_used(tmp_path, capsys):
    path = CONFIGS / "demo" / "image_adrpo.toml"
    sections = [f'{{kind="function", path="{ME}:{name}", name="{name}"}}' for name in REFUSED]
    settings = [f"rewards=[{', '.join(sections[:2])}]"]
    with pytest.raises(RewardError) as error:
        show_config(path, None, False, settings)
    assert "trl_style" in str(error.value) and "trl_with_prompts" in str(error.value)
    run = tmp_path / "run"
    loaded: LoadedConfig = load_config(path, settings)
    with pytest.raises(RewardError) as error:
        train(loaded, TrainOptions(run))
    assert error.value.agreed and len(str(error.value).splitlines()) == 2
    assert not run.exists() and "run folder" not in capsys.readouterr().out


def test_a_run_tries_its_rewards_before_a_model_is_loaded(tmp_path, caplog):
    config = text_run(tmp_path, "needs_real_samples", "one_too_few")
    (tmp_path / "model" / "model.safetensors").unlink()
    caplog.set_level(logging.WARNING)
    with pytest.raises(RewardError, match=r"rone_too_few gave shape \(2,\) for 3 samples") as error:
        build_trainer(config, tmp_path / "run")
    assert error.value.agreed


def test_preflight_says_what_train_would(tmp_path):
    run = tmp_path / "run"
    (fault,) = rewards_check(text_run(tmp_path, "trl_style"), run, 60).findings
    assert fault.severity == "fault" and "rtrl_style" in fault.value
    check = rewards_check(text_run(tmp_path, "needs_real_samples", "scores_and_info"), run, 60)
    (warning,) = check.findings
    assert check.state == "warning" and "rneeds_real_samples raised" in warning.value
    answers = text_config(tmp_path / "model", ['rewards=[{kind="exact_answer", answer_key="a"}]'])
    (fault,) = rewards_check(answers, run, 60).findings
    assert f"the same holds for {answers.prompts.train}, lines 2-6" in fault.value


@pytest.mark.slow
def test_preflight_does_not_wait_for_a_judge_that_does_not_answer(tmp_path):
    path = "tests.support.misbehaving:waits"
    config = text_config(tmp_path / "model", [f'rewards=[{{kind="function", path="{path}"}}]'])
    (warning,) = rewards_check(config, tmp_path / "run", 2).findings
    assert warning.severity == "warning" and "took longer than time_limit = 2 s" in warning.value
