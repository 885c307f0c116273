"""Rollouts by another process: the policy's own tokens, and which back-end can start."""

from __future__ import annotations

import dataclasses
import sys

import pytest
import torch

from adrpo_scale.core.errors import ConfigError, GenerationError
from adrpo_scale.domains.backend_choice import check_backend, check_share
from adrpo_scale.domains.backends import OwnProcess, generated, plain_weights
from adrpo_scale.domains.decoding import SamplingConfig
from adrpo_scale.domains.logprobs_check import check_drawn
from adrpo_scale.domains.text_config import TextConfig
from adrpo_scale.engines.adapters import adapters_off
from adrpo_scale.run.build import build_domain
from tests.domains.test_text import KEY, Parts


def move(policy, seed):
    """Another policy than that of the files."""
    with torch.no_grad():
        for name, parameter in policy.named_parameters():
            noise = torch.Generator().manual_seed(seed + len(name))
            parameter += 0.03 * torch.randn(parameter.shape, generator=noise)


def test_a_copy_in_another_process_draws_the_policys_tokens_to_the_bit(tmp_path):
    made = Parts(tmp_path, "domain.rollout.top_p=0.9")
    other = build_domain(dataclasses_replaced(made.config, backend="process"))
    other.prepare(made.prompts, made.engine.device, made.engine.dtype)
    chosen = [made.prompts[i] for i in (0, 0, 1, 2, 2, 2)]
    before = None
    for seed in (1, 2):
        move(made.policy, seed)
        expected = made.sample()
        other.begin_rollout(made.policy)
        found = other.sample(made.policy, chosen, torch.arange(6), KEY)
        other.end_rollout()
        assert isinstance(other._backend, OwnProcess)
        assert found.tensors.keys() == expected.tensors.keys()
        for name, tensor in expected.tensors.items():
            assert torch.equal(found.tensors[name], tensor), (seed, name)
        assert before is None or not torch.equal(before, found.tensors["completion"])
        before = found.tensors["completion"]
    process = other._backend._process
    with pytest.raises(
        GenerationError, match=r"WeightsError: the policy's lm_head.weight of shape"
    ):
        process.load([("lm_head.weight", torch.zeros(64, 32))])
    assert process.process.returncode is not None


def dataclasses_replaced(config, **settings):
    return config.model_copy(update={"domain": config.domain.model_copy(update=settings)})


def test_weights_without_their_adapters_are_those_of_the_base(tmp_path):
    made = Parts(tmp_path, "domain.train=lora")
    base = {name: tensor.clone() for name, tensor in plain_weights(made.policy)}
    move(made.policy, 1)
    assert any(not torch.equal(t, base[n]) for n, t in plain_weights(made.policy))
    with adapters_off(made.policy):
        bare = dict(plain_weights(made.policy))
    layers = {n for n in base if ".q_proj." in n}
    assert layers
    parameters = dict(made.policy.named_parameters())
    for name in layers:
        stored = name.replace(".weight", ".base_layer.weight")
        assert torch.equal(bare[name], parameters[stored]), name


def test_an_answer_of_another_shape_is_refused():
    made = {"tokens": torch.zeros(2, 3), "lengths": torch.ones(2), "finished": torch.ones(3)}
    with pytest.raises(RuntimeError, match=r"has sent .*'finished': \(3,\)"):
        generated(made, torch.rand(2, 3))


def test_a_program_that_draws_from_another_model_is_refused(tmp_path):
    sampling = SamplingConfig()
    logp = torch.tensor([-1.0, -2.0])
    check_drawn(logp, logp + 0.005, sampling, torch.float32)
    check_drawn(logp, logp - 0.4, sampling, torch.bfloat16)
    check_drawn(logp, logp - 3, sampling.model_copy(update={"top_p": 0.9}), torch.float32)
    for off, dtype in ((0.4, torch.float32), (0.6, torch.bfloat16), (torch.nan, torch.float32)):
        with pytest.raises(ConfigError, match="it draws from another model") as caught:
            check_drawn(logp, logp + off, sampling, dtype)
        assert not caught.value.agreed

    made = Parts(tmp_path / "model")

    class Half(type(made.domain._backend)):
        """Says that it drew at half the temperature."""

        def generate(self, policy, prompts, seeds, uniforms, sampling, audio=None):
            found = super().generate(policy, prompts, seeds, uniforms, sampling, audio)
            return dataclasses.replace(found, logp_NT=torch.zeros(found.tokens_NT.shape))

    made.domain._backend = Half(made.domain.model.ends, made.domain.model.pad)
    with pytest.raises(ConfigError, match="it draws from another model"):
        made.sample()


def test_what_cannot_start_is_refused_before_anything_is_loaded():
    config = TextConfig(model="x", backend="vllm", vllm_python="/no/such/python")
    with pytest.raises(ConfigError, match="is no program here: give the path of the Python"):
        check_backend(config)
    check_backend(config.model_copy(update={"vllm_python": sys.executable}))
    with pytest.raises(ValueError, match="merged adapters round otherwise"):
        TextConfig(model="x", backend="process", train="lora")


def test_a_share_of_a_gpu_that_cannot_hold_the_weights():
    check_share(0.3, 10 << 30, 48 << 30)
    with pytest.raises(ConfigError, match=r"vllm_memory = 0.3 is 15.5 GB .* set it above 0.36"):
        check_share(0.3, 15 << 30, 48 << 30)
    with pytest.raises(ConfigError, match="cannot hold them on one GPU"):
        check_share(0.9, 60 << 30, 48 << 30)
