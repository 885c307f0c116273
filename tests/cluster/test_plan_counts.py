"""The counts of `plan` against real runs: bytes, floating-point operations, rows."""

from __future__ import annotations

import pytest
import torch
from transformers import AutoModelForCausalLM

from adrpo_scale.cluster.plan import rehearsal, times
from adrpo_scale.cluster.plan.advice import ladder
from adrpo_scale.cluster.plan.communication import _gathers, _reductions
from adrpo_scale.cluster.plan.dealing import load_of, needs_reference
from adrpo_scale.cluster.plan.measure import BLOCK, Live, cost_of, empty_model
from adrpo_scale.cluster.plan.planner import plan_of
from adrpo_scale.cluster.plan.workload import engine_of, workload_of
from adrpo_scale.domains import omni
from adrpo_scale.domains.audio import AudioDomain
from adrpo_scale.domains.decoding import SamplingConfig, generate
from adrpo_scale.domains.flow import FlowDomain
from adrpo_scale.engines.fake import without_memory
from adrpo_scale.engines.planning import Price, Rung, Shards
from adrpo_scale.run import build
from tests.support.plans import hardware
from tests.support.tiny import FULL, demo_config
from tests.support.tiny_audio import audio_config, sound
from tests.support.tiny_text import text_config


def test_live_bytes_of_a_chain_are_those_of_its_largest_moment():
    with without_memory():
        cost = cost_of(lambda: torch.empty(1024).add(1).mul(2).sum())
    assert cost.peak == 3 * 4096 - 4096 + 0  # two at a time: the next is made before the last goes
    assert cost.kept == 512  # the allocator's least


def test_views_cost_nothing_and_resized_storages_do():
    with Live() as live:
        tensor = torch.empty(1024)
        view = tensor[:10].view(2, 5)
        assert live.now == 4096
        tensor.untyped_storage().resize_(0)
        assert live.now == 0
        tensor.untyped_storage().resize_(8192)
        assert live.now == live.peak == 8192
    assert view.shape == (2, 5)


def real_update(config, rows):
    """Peak bytes beyond what is held, of a real backward on real tensors."""
    engine = build.build_engine(config)
    policy = engine.build_policy(FlowDomain(config.domain).policy_spec())
    with Live() as live:
        engine.backward(workload_of(config).train(policy, rows), last=True)
    return live.peak


@pytest.mark.parametrize("checkpointing", ["true", "false"])
@pytest.mark.parametrize("kind", ["lora", "full"])
def test_the_rehearsed_update_needs_what_the_real_one_does(kind, checkpointing):
    settings = ["engine.shard=1", f"engine.activation_checkpointing={checkpointing}"]
    config = demo_config(overrides=[*settings, *(FULL if kind == "full" else [])])
    one = hardware(1, 1)
    for rows in (2, 8):
        found = rehearsal.update(config, one, engine_of(config), workload_of(config), rows, 1)
        real = real_update(config, rows)
        assert found.peak == pytest.approx(real, rel=0.02)
    # Where parameters' gradients are most of it, it does not grow by the same with every row.
    assert 0.9 <= found.peak_at(2) / real_update(config, 2) <= 1.3


@pytest.mark.parametrize("kind", ["lora", "full"])
def test_the_rehearsed_update_counts_the_exact_kl(kind, tmp_path):
    settings = [f"domain.train={kind}", "domain.head_chunk=40", "domain.attention=eager"]
    configs = [
        text_config(tmp_path / "model", [*settings, f'algorithm.kl_estimator="{estimator}"'])
        for estimator in ("k3", "exact")
    ]
    one, peaks, flops = hardware(1, 1), [], []
    for config in configs:
        engine, work = build.build_engine(config), workload_of(config)
        policy = engine.build_policy(build.build_domain(config).policy_spec())
        with Live() as live:
            engine.backward(work.train(policy, 4), last=True)
        found = rehearsal.update(config, one, engine_of(config), work, 4, 1)
        assert found.peak == pytest.approx(live.peak, rel=0.02)
        peaks.append(found.peak)
        flops.append(found.flops)
    # The reference's logits, once forward and once backward: two products of 12 tokens a row.
    head = 2 * 12 * 64 * 32
    assert flops[1] - flops[0] == 2 * head
    copied = 4 * 64 * 32 if kind == "full" else 0
    assert peaks[1] - peaks[0] >= copied


def test_whole_models_hold_what_their_real_ones_do():
    config = demo_config()
    real = FlowDomain(config.domain).policy_spec().build()
    with without_memory():
        model = empty_model(workload_of(config).spec.build, torch.float32)
        count = sum(p.numel() for p in model.parameters())
    assert count == sum(p.numel() for p in real.parameters())


# ---- clips and their encoding -----------------------------------------------------------------


def shapes_of(model):
    tensors = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    return {name: (tensor.shape, tensor.is_floating_point()) for name, tensor in tensors.items()}


@pytest.fixture(scope="module")
def hearing(tmp_path_factory):
    """(config of a small thinker, its domain ready to hear)."""
    config = audio_config(tmp_path_factory.mktemp("thinker") / "m", ["evaluation.every=1"])
    domain = AudioDomain(config.domain)
    domain.prepare([], torch.device("cpu"), torch.float32)
    return config, domain


def test_the_thinker_and_its_tower_are_those_of_the_domain(hearing):
    config, domain = hearing
    work = workload_of(config)
    (tower,) = work.frozen
    assert shapes_of(work.spec.build()) == shapes_of(domain.policy_spec().build())
    assert shapes_of(tower.spec.build()) == shapes_of(domain._tower)
    mine, theirs = work.spec, domain.policy_spec()
    for name in ("blocks", "lora", "lora_targets"):
        assert getattr(mine, name) == getattr(theirs, name)
    assert rehearsal.frozen_bytes(config, tower) == sum(
        t.nbytes for t in (*domain._tower.parameters(), *domain._tower.buffers())
    )


def test_encoding_a_clip_costs_what_it_really_does(hearing):
    """Of 40 tokens, in seven pieces; the spectrogram is made on the CPU."""
    config, domain = hearing
    (tower,) = workload_of(config).frozen
    planned = rehearsal.frozen_cost(config, tower, 1).at(1)
    with Live() as live, torch.no_grad():
        mel = torch.randn(16, 160)
        heard = domain._tower(mel, feature_lens=torch.tensor([160])).last_hidden_state
    clip = omni.encode_clip(domain._tower, domain.model.features, sound(1.6, 0))
    assert heard.shape == clip.shape == (40, 32)
    assert planned.flops == live.flops
    assert planned.kept == -(-heard.nbytes // BLOCK) * BLOCK
    assert planned.peak == pytest.approx(live.peak, rel=0.1)


def test_the_rehearsed_update_of_a_thinker_needs_what_the_real_one_does(hearing):
    config, domain = hearing
    engine, work = build.build_engine(config), workload_of(config)
    policy = engine.build_policy(domain.policy_spec())
    for rows in (2, 8):
        with Live() as live:
            engine.backward(work.train(policy, rows), last=True)
        found = rehearsal.update(config, hardware(1, 1), engine_of(config), work, rows, 1)
        assert found.peak == pytest.approx(live.peak, rel=0.02)


def test_a_plan_of_a_thinker_counts_tower_clips_and_their_encoding(hearing):
    config, _ = hearing
    (tower,) = workload_of(config).frozen
    plan = plan_of(config, hardware(4, 2), name="audio")
    items = {item.name: item for item in plan.items}
    always = ("rollout", "reward", "update", "evaluation")
    whole = items["audio tower: whole"]
    assert whole.bytes == rehearsal.frozen_bytes(config, tower) and tuple(whole.phases) == always
    kept = items["encoded clips, kept"]  # 4 of training, 1 of evaluation; 40 tokens of 32 floats
    assert kept.bytes == 5 * 40 * 32 * 4 and tuple(kept.phases) == always
    assert Rung(("domain.clip_megabytes=64",), always, Price.AGAIN) in ladder(config, plan)
    few = config.model_copy(
        update={"domain": config.domain.model_copy(update={"clip_megabytes": 0.0})}
    )
    items = {item.name: item for item in plan_of(few, hardware(4, 2)).items}
    assert items["encoded clips, kept"].bytes == 40 * 32 * 4  # the one at work
    assert "every prompt is a clip of 40 tokens (1.6 s)" in " ".join(plan.assumptions)
    assert "at most 1 an iteration to sample and 3 more to train" in " ".join(plan.assumptions)


def test_clips_of_a_rank_are_those_that_it_samples_from_and_is_dealt(hearing):
    config, _ = hearing
    for world, expected in {1: (4, 0), 2: (2, 2), 3: (2, 2), 8: (1, 2)}.items():
        load = load_of(config, hardware(world, 1))
        assert (load.sampled, load.received) == expected
    one = hardware(1, 1)
    plan, work = plan_of(config, one), workload_of(config)
    encoding = times._encoding(config, one, work, 4)
    assert encoding >= 4 * 1.2e-3 * 1.6 and times._encoding(config, one, work, 0) == 0
    assert plan.seconds_of("rollout") > encoding


# ---- communication and dealing ------------------------------------------------------------------


def shards_like(degree, copies):
    return Shards(0, 0, 0, 0, 0, whole=800, largest=0, trained=100, degree=degree, copies=copies)


def test_bytes_that_travel_of_a_mesh_by_hand():
    machine = hardware(16, 8)
    node = _gathers("update", shards_like(8, 2), machine, 3)
    assert (node.inside, node.across) == (3 * 800 * 7 / 8, 0)
    everywhere = _gathers("update", shards_like(16, 1), machine, 1)
    assert everywhere.inside == everywhere.across == 800 * 15 / 16
    hybrid = _reductions(shards_like(8, 2), machine, 1)
    assert hybrid.inside == 400 * 7 / 8
    assert hybrid.across == 8 * 2 * (400 / 8) / 2  # each GPU's eighth, to the other node and back
    plain = _reductions(shards_like(1, 16), machine, 1)
    assert plain.inside == plain.across == 2 * 400 * 15 / 16


def test_rows_are_dealt_as_the_trainer_deals_them():
    machine = hardware(4, 2)
    load = load_of(demo_config(overrides=["optimizer.micro_batch=3"]), machine)
    assert (load.samples, load.chosen, load.micro_batches, load.rows) == (4, 16, 2, 2)
    pairs = load_of(demo_config("dpo"), machine)
    assert (pairs.chosen, pairs.unit) == (8, 2)  # one pair of each group
    assert load_of(demo_config("raft"), machine).chosen == 4  # the best of each


def test_the_reference_is_counted_where_every_step_measures_it():
    counted = [n for n in ("adrpo", "grpo", "orw_cfm_w2", "dpo") if needs_reference(demo_config(n))]
    assert counted == ["adrpo", "grpo", "orw_cfm_w2", "dpo"]
    assert not needs_reference(demo_config("raft"))
    assert needs_reference(demo_config("raft", ["logging.divergence_every=1"]))


# ---- kernels of a generated token ----------------------------------------------------------------


def test_the_operators_of_a_token_are_those_of_real_decoding(tmp_path):
    """Of real tensors, by the length of the completion; views and reads of a device launch none."""
    config = text_config(tmp_path / "model")
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "model").eval()
    rows, prompts = 4, [[5, 6, 7]] * 4

    def operators(tokens):
        sampling = SamplingConfig(max_new_tokens=tokens, temperature=1.0)
        with Live() as live:
            generate(model, prompts, torch.rand(rows, tokens), sampling, ends=[], pad=0)
        return live.operators

    real = (operators(12) - operators(4)) / 8
    work = workload_of(config)
    (number,) = (n for n, step in enumerate(work.rollout) if step.has_cache)
    planned = rehearsal.rollout_step(config, work, number, rows).at(rows).operators
    # The loop's own (uniforms, ends, places of rows) are some 15 beside the model's.
    assert real - 20 <= planned <= real


def test_reading_a_device_or_making_a_scalar_on_the_host_launches_nothing():
    with without_memory():
        tensor = torch.empty(4)
        with Live() as live:
            torch.ops.prim.device(tensor)
            torch.ops.aten.scalar_tensor(1.0)
    assert live.operators == 0


def test_a_convolution_takes_copies_of_its_input_and_result():
    with without_memory():
        pictures, kernel = torch.empty(2, 16, 32, 32), torch.empty(8, 16, 3, 3)
        cost = cost_of(lambda: torch.conv2d(pictures, kernel, padding=1))
    result = 4 * 2 * 8 * 32 * 32
    assert cost.peak == result + (4 * 2 * 16 * 32 * 32 + result) and cost.kept == result
