"""Passes of one shape each: the tokens of eager decoding, whatever leaves and grows meanwhile."""

from __future__ import annotations

import pytest
import torch

from adrpo_scale.core.errors import ConfigError
from adrpo_scale.domains import decoding, graph_decoding
from adrpo_scale.domains.decoding import SamplingConfig
from adrpo_scale.domains.text_checks import check_settings
from adrpo_scale.domains.text_config import TextConfig
from tests.pretend_cuda.test_waits import EVEN, UNEVEN, model_of
from tests.support.audio_parts import Parts
from tests.support.pretend_cuda import pretend_cuda

ENDS, PAD, ROWS, STEPS = [2, 5], 0, 6, 26
PROMPTS = [[7, 8, 9], [7, 8, 9], [11], [12, 13, 14, 15, 16], [7, 8, 9], [11]]


def both(model, prompts, uniforms, sampling, ends=ENDS, audio=None):
    made = [
        program.generate(model, prompts, uniforms, sampling, ends, PAD, audio)
        for program in (decoding, graph_decoding)
    ]
    return [[m.tokens_NT.tolist(), m.lengths_N.tolist(), m.finished_N.tolist()] for m in made]


def uniforms(steps, seed=0, rows=ROWS):
    return torch.rand(rows, steps, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("kind", ["qwen2", "qwen3"])
@pytest.mark.parametrize("few", [3, 128])
@pytest.mark.parametrize(
    "settings",
    [{}, {"temperature": 0.0}, {"temperature": 2.0, "top_p": 0.7}, {"top_k": 5}],
    ids=str,
)
def test_its_tokens_are_those_of_eager_decoding(kind, few, settings, monkeypatch):
    monkeypatch.setattr(graph_decoding, "GRAPH_TOKENS", few)
    model = model_of(kind)
    for seed, steps in enumerate((1, 2, STEPS)):
        sampling = SamplingConfig(max_new_tokens=steps, **settings)
        expected, found = both(model, PROMPTS, uniforms(steps, seed), sampling)
        assert found == expected
        if steps == STEPS and settings != {"temperature": 0.0}:
            assert len(set(expected[1])) > 1  # rows end at different times


def test_all_rows_may_end_at_once_and_before_the_last_pass():
    model, every = model_of(), list(range(model_of().config.vocab_size))
    for steps in (1, 2, 3):
        sampling = SamplingConfig(max_new_tokens=steps)
        expected, found = both(model, PROMPTS, uniforms(steps), sampling, ends=every)
        assert found == expected and set(found[1]) == {1}


def test_rows_that_have_ended_leave_when_the_cache_grows(monkeypatch):
    monkeypatch.setattr(graph_decoding, "GRAPH_TOKENS", 8)
    seen, run = [], graph_decoding.run

    def watched(batch, *more):
        seen.append((len(batch.lengths_n), batch.layers[0].get_max_length()))
        return run(batch, *more)

    monkeypatch.setattr(graph_decoding, "run", watched)
    both(model_of(), PROMPTS, uniforms(STEPS), SamplingConfig(max_new_tokens=STEPS))
    rows, columns = zip(*seen, strict=True)
    assert rows[0] == ROWS > rows[-1] and sorted(rows, reverse=True) == list(rows)
    assert columns == (16, 24, 32, 32)  # five tokens of a prompt; whole multiples of 8


def test_a_model_that_hears_draws_the_same_tokens(tmp_path):
    parts = Parts(tmp_path / "m")
    prompts = parts.prompts[:3]
    ids = [parts.domain._tokens(prompt.id) for prompt in prompts]
    audio = parts.domain._audio([prompt.id for prompt in prompts])
    sampling = SamplingConfig(max_new_tokens=12)
    numbers = uniforms(12, rows=len(ids))
    expected, found = both(parts.policy.eval(), ids, numbers, sampling, audio=audio)
    parts.policy.train()
    assert found == expected


@pytest.mark.parametrize("prompts", [EVEN, UNEVEN], ids=["even", "uneven"])
def test_the_host_waits_once_in_sixteen_tokens(prompts, monkeypatch):
    """The pretended device has no graphs: the same passes run one by one."""
    monkeypatch.setattr(graph_decoding, "captured", lambda work: work)
    model, numbers = model_of(), uniforms(33, rows=len(prompts))
    sampling = SamplingConfig(max_new_tokens=33)
    expected, _ = both(model, prompts, numbers, sampling, ends=())
    with pretend_cuda() as seen:
        found = graph_decoding.generate(
            model.to("cuda"), prompts, numbers.to("cuda"), sampling, [], PAD
        )
        found = [found.tokens_NT.tolist(), found.lengths_N.tolist(), found.finished_N.tolist()]
    assert found == expected
    here = "domains/graph_decoding.py"
    assert seen.syncs_at(here) == 2  # after 16 of 32 passes, and at their end
    assert max(n for (_, line), n in seen.copies.items() if here in line) == 1  # none in a pass


def test_a_pass_is_captured_once_for_each_length_of_the_cache(monkeypatch):
    monkeypatch.setattr(graph_decoding, "GRAPH_TOKENS", 16)
    captures = []

    def captured(work):
        captures.append(work)
        return work

    monkeypatch.setattr(graph_decoding, "captured", captured)
    model, numbers = model_of(), uniforms(53, rows=len(EVEN))
    with pretend_cuda():
        graph_decoding.generate(
            model.to("cuda"), EVEN, numbers.to("cuda"), SamplingConfig(max_new_tokens=53), [], PAD
        )
    assert len(captures) == 3  # of 16, 16, 16 and 4 passes: the last are too few


def test_what_has_no_fixed_length_is_refused():
    few = {"max_new_tokens": 8}
    config = TextConfig(
        model="m", decoding="graph", rollout=few, evaluation=few, chat={"max_prompt_tokens": 8}
    )
    check_settings(config, model_of().config)
    windows = model_of("qwen2", use_sliding_window=True, sliding_window=4, max_window_layers=1)
    with pytest.raises(ConfigError, match=r"another attention than full.*decoding = \"eager\""):
        check_settings(config, windows.config)
    with pytest.raises(ValueError, match='set attention = "sdpa"'):
        TextConfig(model="m", decoding="graph", attention="eager")
