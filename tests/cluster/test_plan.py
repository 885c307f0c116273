"""`plan` on the CPU: shapes, rehearsals against real runs, advice, calibration, the command."""

from __future__ import annotations

import json
import subprocess
import sys
import warnings
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from accelerate import init_empty_weights
from typer.testing import CliRunner

from adrpo_scale.cli import main as cli
from adrpo_scale.cluster.plan import memory, rehearsal, times
from adrpo_scale.cluster.plan.advice import cheapest_change, ladder, refusal
from adrpo_scale.cluster.plan.base import DoesNotFitError, ForeignTrialError, Gpu, Hardware
from adrpo_scale.cluster.plan.calibrate import calibrated, read_trial
from adrpo_scale.cluster.plan.communication import _gathers, _reductions
from adrpo_scale.cluster.plan.dealing import load_of, needs_reference
from adrpo_scale.cluster.plan.hardware import GPUS, build_hardware, find_gpu, gpu_of_device
from adrpo_scale.cluster.plan.measure import BLOCK, Live, cost_of, empty_model
from adrpo_scale.cluster.plan.planner import plan_of, with_time_limit
from adrpo_scale.cluster.plan.view import facts, show
from adrpo_scale.cluster.plan.workload import engine_of, workload_of
from adrpo_scale.core.errors import ConfigError, ModelNotFoundError
from adrpo_scale.domains import omni
from adrpo_scale.domains.audio import AudioDomain
from adrpo_scale.domains.flow import FlowDomain
from adrpo_scale.engines.fake import without_memory
from adrpo_scale.engines.planning import Price, Rung, Shards
from adrpo_scale.hub.shapes import config_folder
from adrpo_scale.run import build
from adrpo_scale.run.load import load_config, overridden
from tests.support.tiny import CONFIGS, FULL, demo_config
from tests.support.tiny_audio import audio_config, sound

PARAMETERS = {  # as published
    "configs/sd3/adrpo.toml": {
        "policy": 2_028_328_000,
        "VAE": 83_819_683,
        "CLIP text encoder": 123_650_304,
        "CLIP text encoder 2": 694_659_840,
        "T5": 4_762_310_656,
        "reward clip": 427_616_513,
    },
    "configs/qwen/qwen2_0.5b_adrpo.toml": {"policy": 494_032_768},
    "configs/qwen/qwen3_0.6b_adrpo.toml": {
        "policy": 596_049_920,
        "reward reward_model": 2_506_174_464,
    },
    # The thinker has 8,931,813,888 with both of its towers; that of vision is never built.
    "configs/omni/avqa_adrpo.toml": {"policy": 7_615_616_512, "audio tower": 639_647_232},
}


def hardware(world=4, per_node=2, **changes):
    return Hardware(replace(GPUS["a6000"], **changes), world // per_node, per_node, 12.5e9)


def config_of(path, *overrides):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return load_config(Path(path), overrides).config


def parameters(spec):
    with init_empty_weights():
        model = spec.build()
    spec.tie(model)
    if hasattr(model, "tie_weights"):
        model.tie_weights()
    return sum(p.numel() for p in model.parameters())


# ---- shapes ----------------------------------------------------------------------------------


@pytest.mark.parametrize("path", PARAMETERS)
def test_shapes_have_the_published_number_of_parameters(path):
    work = workload_of(config_of(path))
    found = {"policy": parameters(work.spec)}
    found |= {model.name: parameters(model.spec) for model in work.frozen}
    assert {name: found[name] for name in PARAMETERS[path]} == PARAMETERS[path]


RUNS = sorted(path for path in CONFIGS.rglob("*.toml") if "[domain]" in path.read_text())


@pytest.mark.parametrize("path", RUNS, ids=lambda p: p.stem)
def test_every_shipped_config_is_known_without_network(path):
    assert workload_of(config_of(path)).spec is not None


def test_the_thinker_is_none_of_the_text_domains():
    with pytest.raises(ConfigError, match="'qwen2_5_omni_thinker', for which transformers has no"):
        workload_of(
            config_of("configs/qwen/qwen3_0.6b_adrpo.toml", "domain.model=Qwen/Qwen2.5-Omni-7B")
        )


def test_an_unknown_model_names_those_that_are_known():
    with pytest.raises(ModelNotFoundError, match=r"adrpo-scale prefetch.*Qwen/Qwen3-0\.6B"):
        config_folder("nobody/nothing", "domain.model")


# ---- counting --------------------------------------------------------------------------------


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


def test_whole_models_hold_what_their_real_ones_do():
    config = demo_config()
    real = FlowDomain(config.domain).policy_spec().build()
    with without_memory():
        model = empty_model(workload_of(config).spec.build, torch.float32)
        count = sum(p.numel() for p in model.parameters())
    assert count == sum(p.numel() for p in real.parameters())


# ---- what is heard ---------------------------------------------------------------------------


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


# ---- what travels ----------------------------------------------------------------------------


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


# ---- the plan --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "overrides",
    [
        ["engine.shard=1"],
        ["engine.shard=node", *FULL],
        ["engine.shard=all", "engine.dtype=bfloat16"],
        ["engine.name=zero3", "engine.shard=node", *FULL],
    ],
)
def test_a_plan_adds_up(overrides, capsys):
    config = demo_config(overrides=[*overrides, "evaluation.every=1"])
    plan = plan_of(config, hardware(), name="demo")
    assert plan.fits and not plan.warnings
    assert {m.phase for m in plan.memory} == {"load", "rollout", "reward", "update", "evaluation"}
    update = sum(i.bytes for i in plan.items if "update" in i.phases)
    assert plan.memory_of("update") == update
    assert plan.iteration_seconds > 0 and plan.days * 24 * 4 == pytest.approx(plan.gpu_hours)
    assert bool(plan.traffic) and plan.largest_micro_batch == 4  # a rank has no more rows
    json.dumps(facts(plan))
    show(plan)
    assert "policy: parameters" in capsys.readouterr().out


def test_a_plan_leaves_no_process_group_behind():
    plan_of(demo_config(overrides=["engine.shard=all"]), hardware())
    assert not torch.distributed.is_initialized()


def test_ranks_without_work_are_warned_of():
    plan = plan_of(demo_config(), hardware(32, 8))
    assert "16 have none" in plan.warnings[0] and "filler" in plan.warnings[1]


def test_jobs_of_a_time_limit():
    plan = replace(plan_of(demo_config(), hardware()), iterations=1000)
    seconds = 1000 * plan.iteration_seconds
    hours = (plan.seconds_of("load") + 60 + seconds / 2.5) / 3600
    assert with_time_limit(plan, hours, 60).jobs == 3
    with pytest.raises(ConfigError, match="no job would complete an iteration"):
        with_time_limit(plan, 1 / 3600, 60)


# ---- refusal ---------------------------------------------------------------------------------


def gpu_with(room, world=4):
    """One whose usable memory is `room` bytes."""
    total = int(room * (1 + memory.FRAGMENTATION)) + memory.CONTEXT + memory.NCCL + 1
    return hardware(world, 2, memory=total)


def refused(config, room):
    plan = plan_of(config, gpu_with(room))
    assert not plan.fits
    change = cheapest_change(config, plan, lambda c, h: plan_of(c, h))
    return replace(plan, change=change)


def test_the_cheapest_change_is_the_micro_batch_where_that_is_enough():
    config = demo_config(overrides=["engine.shard=1", "prompts.group_size=64", *FULL])
    config = config.model_copy(
        update={"optimizer": config.optimizer.model_copy(update={"micro_batch": 64})}
    )
    plan = plan_of(config, hardware())
    room = plan.memory_of("update") - 1_000_000
    assert room > max(m.bytes for m in plan.memory if m.phase != "update")
    found = refused(config, room)
    assert found.change is not None
    (setting,) = found.change.settings
    assert setting == f"optimizer.micro_batch={found.largest_micro_batch}"
    assert found.change.peak <= found.usable
    with pytest.raises(DoesNotFitError, match=rf"--set {setting}"):
        raise refusal(found)


SMALLEST = ["domain.rollout_chunk=1", "domain.decode_chunk=1", "rewards.0.batch=1"]
SMALLEST += ["engine.activation_checkpointing=true", "evaluation.every=0", *FULL]


@pytest.mark.slow
def test_several_changes_where_one_is_not_enough_and_no_more_than_are_needed():
    def overrides(shard, checkpointing):
        return [
            *SMALLEST,
            f"engine.shard={shard}",
            f"engine.activation_checkpointing={checkpointing}",
        ]

    def peak(shard, checkpointing):
        return plan_of(demo_config(overrides=overrides(shard, checkpointing)), hardware()).peak

    both = peak("all", "true").bytes
    assert both < min(peak("all", "false").bytes, peak("1", "true").bytes)
    config, room = demo_config(overrides=overrides("1", "false")), both + 1000
    found = refused(config, room)
    assert found.change is not None and found.change.peak <= found.usable
    settings = found.change.settings
    assert len(settings) > 1
    for setting in settings:
        fewer = [other for other in settings if other != setting]
        assert not plan_of(overridden(config, fewer), gpu_with(room)).fits


@pytest.mark.slow  # half a minute: every change there is, planned
def test_no_change_is_made_up_where_nothing_is_enough():
    settings = ["engine.name=zero3", "engine.shard=all", "engine.offload_optimizer=true", *SMALLEST]
    settings += ["engine.offload_parameters=true", "optimizer.micro_batch=1"]
    found = refused(demo_config(overrides=settings), 1000)
    assert found.change is None
    assert "GPUs with more memory" in str(refusal(found))


# ---- calibration -----------------------------------------------------------------------------


def trial_of(config, plan, factor=2.0, device="cuda"):
    phases = ("load", "rollout", "reward", "update")
    return {
        "format": 1,
        "config": "demo",
        "digest": config.digest(),
        "world": plan.hardware.world,
        "device": device,
        "gpu": "NVIDIA RTX A6000" if device == "cuda" else None,
        "samples_per_iteration": plan.samples,
        "iterations": 2,
        "seconds": {p: factor * plan.seconds_of(p) for p in phases},
        "peak_bytes": {p: int(1.5 * plan.memory_of(p)) for p in phases},
        "settings": config.resolved(),
    }


def test_a_trial_scales_what_it_measured_and_says_so(capsys):
    config = demo_config()
    here = plan_of(config, hardware(1, 1))
    plan = plan_of(config, hardware())
    found = calibrated(plan, trial_of(config, here), here)
    for phase in ("load", "rollout", "reward", "update"):
        assert found.memory_of(phase) == pytest.approx(1.5 * plan.memory_of(phase), rel=1e-3)
    times = {t.phase: t for t in found.times}
    before = {t.phase: t for t in plan.times}
    assert times["reward"].seconds == pytest.approx(2 * before["reward"].seconds)
    assert times["update"].compute == pytest.approx(2 * before["update"].compute)
    assert {t.basis for t in found.times} == {"measured"}
    show(found)
    assert "scaled by a trial" in capsys.readouterr().out


def test_a_trial_on_cpus_says_nothing_of_memory():
    config = demo_config()
    here = plan_of(config, Hardware(GPUS["cpu"], 1, 1, 1e9))
    plan = plan_of(config, hardware(), trial=trial_of(config, here, device="cpu"))
    assert {m.basis for m in plan.memory} == {"predicted"}
    assert any("its measurements are rough" in text for text in plan.warnings)


def test_a_trial_of_something_else_is_refused(tmp_path):
    config = demo_config()
    here = plan_of(config, hardware(1, 1))
    with pytest.raises(ForeignTrialError, match=r"algorithm\.name = 'adrpo'.*'grpo'"):
        plan_of(demo_config("grpo"), hardware(), trial=trial_of(config, here))
    path = tmp_path / "trial.json"
    for text in ("", "{}", '{"format": 2}', "[1]"):
        path.write_text(text)
        with pytest.raises(ForeignTrialError, match="--trial"):
            read_trial(path)


# ---- hardware, and the command ---------------------------------------------------------------


def test_machines_that_are_none_are_refused():
    with pytest.raises(ConfigError, match=r"did you mean a6000\? known: a6000, l40s"):
        find_gpu("a600")
    with pytest.raises(ConfigError, match="--nodes 0"):
        build_hardware("a6000", 0, 8, 100)
    with pytest.raises(ConfigError, match="--network-gbit"):
        build_hardware("a6000", 1, 8, 0)
    assert gpu_of_device("NVIDIA A100-SXM4-80GB").name == "a100-80"
    assert isinstance(gpu_of_device("NVIDIA H200"), Gpu)
    with pytest.raises(ConfigError, match="Tesla T4"):
        gpu_of_device("Tesla T4")


def test_the_verb_prints_json():
    path = str(CONFIGS / "demo" / "image_adrpo.toml")
    arguments = ["plan", path, "--nodes", "2", "--gpus-per-node", "2", "--json"]
    result = CliRunner().invoke(cli.app, arguments)
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)
    assert found["fits"] and found["hardware"]["nodes"] == 2


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_the_thinker_on_ten_nodes_takes_under_a_minute_and_4_gb():
    """Of processor time: what else runs on this machine shall not count."""
    program = (
        "import resource, sys; from adrpo_scale.cli.main import app\n"
        "try: app(sys.argv[1:], standalone_mode=False)\n"
        "finally:\n"
        "    used = resource.getrusage(resource.RUSAGE_SELF)\n"
        "    print(used.ru_utime + used.ru_stime, used.ru_maxrss / 1e6, file=sys.stderr)\n"
    )
    arguments = ["plan", "configs/omni/avqa_adrpo.toml", "--nodes", "10", "--json"]
    command = [sys.executable, "-c", program, *arguments]
    result = subprocess.run(command, capture_output=True, text=True, cwd=CONFIGS.parent)
    assert result.returncode == 0, result.stderr
    found = json.loads(result.stdout)
    assert found["fits"] and found["hardware"]["nodes"] == 10
    seconds, gigabytes = map(float, result.stderr.split()[-2:])
    assert seconds < 60 and gigabytes < 4
