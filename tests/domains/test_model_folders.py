"""Folders of language models as people have them: what is trained is what transformers loads, or an
error names the tensor or file, and what helps."""

from __future__ import annotations

import itertools
import json
import shutil
from pathlib import Path

import peft
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, Qwen3ForCausalLM

from adrpo_scale.checkpoint.locate import open_checkpoint
from adrpo_scale.cluster.preflight.models import model_findings
from adrpo_scale.core.errors import AdrpoError, DamagedFileError, ModelNotFoundError, WeightsError
from adrpo_scale.evaluation.sample import domain_of, model_source
from adrpo_scale.hub.beside import unlike_variants
from adrpo_scale.hub.weight_files import read_instead, weight_files
from adrpo_scale.hub.weights import SafetensorsFolder
from adrpo_scale.run.build import build_domain, build_engine, build_trainer
from adrpo_scale.run.resume import Start
from adrpo_scale.run.soundness import check_models
from tests.support.tiny_text import save_tiny, text_config, tiny_config

WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"
EMBEDDING, HEAD = "model.embed_tokens.weight", "lm_head.weight"
CHAT = "domain.chat.max_prompt_tokens=16"
IDS = torch.arange(10, 20)[None]


def tensors(folder):
    return load_file(folder / WEIGHTS)


def write(folder, tensors):
    save_file(tensors, folder / WEIGHTS, {"format": "pt"})


def other_model(seed=9, **changes):
    torch.manual_seed(seed)
    return Qwen3ForCausalLM(tiny_config(**changes))


def shard(folder, model=None):
    """The folder's weights, or another model's, in shards with an index."""
    model = model or AutoModelForCausalLM.from_pretrained(folder)
    parts = folder.with_name(folder.name + "-parts")
    model.save_pretrained(parts, max_shard_size="20KB")
    for path in parts.glob("model*"):
        shutil.move(path, folder)
    shutil.rmtree(parts)


def faults_of(config):
    """What a preflight says of the models of a run that has not begun."""
    found = model_findings(config, Path("none"))
    return [finding.value for finding in found if finding.severity == "fault"]


@torch.no_grad()
def trained(folder):
    """Logits of the model that a first start trains."""
    config = text_config(folder)
    source = model_source(str(folder), "text", ["domain.evaluation.max_new_tokens=12", CHAT])
    domain = domain_of(source)  # as `sample` does
    check_models(config.needs_from_hub(), domain)
    policy = build_engine(config).build_frozen(domain.policy_spec()).eval()
    return policy(input_ids=IDS, use_cache=False).logits


@torch.no_grad()
def loaded(folder):
    return AutoModelForCausalLM.from_pretrained(folder).eval()(input_ids=IDS).logits


def same(folder):
    torch.testing.assert_close(trained(folder), loaded(folder), rtol=0, atol=0)
    assert faults_of(text_config(folder)) == []


def refused(folder, *words, error=WeightsError):
    """A first start is refused in these words, and so is a preflight."""
    with pytest.raises(AdrpoError) as caught:
        trained(folder)
    assert type(caught.value) is error, caught.value
    (line,) = faults_of(text_config(folder))
    for word in words:
        assert word in str(caught.value), str(caught.value)
        assert word in line, line


# ---- which file counts -----------------------------------------------------------------------


def test_a_single_file_and_other_shards_are_an_error_that_names_both(tmp_path):
    folder = save_tiny(tmp_path / "m")
    shard(folder, other_model())
    refused(folder, WEIGHTS, INDEX, "has other values", "transformers reads the latter")


def test_a_single_file_and_shards_of_other_tensors(tmp_path):
    folder = save_tiny(tmp_path / "m")
    shard(folder, other_model(num_hidden_layers=1))
    refused(folder, WEIGHTS, INDEX, f"is in {WEIGHTS} alone")


def test_a_single_file_and_the_same_in_shards_are_one_model(tmp_path):
    folder = save_tiny(tmp_path / "m")
    shard(folder)
    assert (folder / WEIGHTS).is_file() and (folder / INDEX).is_file()
    same(folder)


def test_a_single_file_counts_where_the_shards_of_an_old_index_are_gone(tmp_path):
    folder = save_tiny(tmp_path / "m")
    shard(folder, other_model())
    for path in folder.glob("model-*"):
        path.unlink()
    same(folder)


def test_an_index_may_place_a_tensor_in_the_wrong_shard(tmp_path):
    folder = save_tiny(tmp_path / "m")
    shard(folder)
    (folder / WEIGHTS).unlink()
    index = json.loads((folder / INDEX).read_text())
    first, *_, last = sorted(index["weight_map"])
    index["weight_map"][first] = index["weight_map"][last]
    (folder / INDEX).write_text(json.dumps(index))
    same(folder)


@pytest.mark.parametrize("of", ["fewer", "more"])
def test_an_index_of_other_tensors_than_its_shards_is_named(tmp_path, of):
    folder = save_tiny(tmp_path / "m")
    shard(folder)
    (folder / WEIGHTS).unlink()
    index = json.loads((folder / INDEX).read_text())
    listed = index["weight_map"]
    if of == "fewer":
        del listed["model.norm.weight"]
    else:
        listed["model.gone.weight"] = listed["model.norm.weight"]
    (folder / INDEX).write_text(json.dumps(index))
    if of == "fewer":
        refused(folder, INDEX, "does not list model.norm.weight")
    else:
        refused(folder, INDEX, "is stale: it lists model.gone.weight", error=DamagedFileError)


def test_a_tensor_in_two_shards(tmp_path):
    folder = save_tiny(tmp_path / "m")
    shard(folder)
    (folder / WEIGHTS).unlink()
    first, *_, last = sorted(folder.glob("model-*"))
    name = next(iter(load_file(first)))
    save_file(load_file(last) | {name: load_file(first)[name].clone()}, last, {"format": "pt"})
    same(folder)
    save_file(load_file(last) | {name: load_file(first)[name] + 1}, last, {"format": "pt"})
    refused(folder, name, first.name, last.name, "different values")


def test_a_variant_alone_shards_without_an_index_and_other_layouts(tmp_path):
    folder = save_tiny(tmp_path / "m")
    renamed = {
        "model.fp16.safetensors": "a variant",
        "model.fp16-00001-of-00002.safetensors": "a variant",
        "model-00001-of-00002.safetensors": "shards without their index; bring " + INDEX,
        "adapter_model.safetensors": "merge_and_unload",
        "consolidated.safetensors": "the layout of another program",
        "diffusion_pytorch_model.safetensors": "another library's name",
        "weights.gguf": "llama.cpp",
    }
    before = folder / WEIGHTS
    for name, words in renamed.items():
        before = before.rename(folder / name)
        refused(folder, f"holds neither {WEIGHTS} nor", name, words, error=ModelNotFoundError)


def noticed(folder, caplog, *words):
    """A first start and a preflight say it in one line each, and go on."""
    caplog.clear()
    same(folder)
    said = [record.getMessage() for record in caplog.records]
    (line,) = {words for words in said if "beside the safetensors" in words}
    (found,) = model_findings(text_config(folder), Path("none"))
    assert found.severity == "warning" and found.value == line
    assert all(word in line for word in words), line


def test_files_that_nothing_reads_are_named_in_one_line(tmp_path, caplog):
    folder = save_tiny(tmp_path / "m")
    same(folder)
    (folder / "model.fp16.safetensors").write_bytes(b"not read")
    (folder / "model.safetensors.index.fp16.json").write_text("")
    noticed(folder, caplog, "model.fp16.safetensors", "is not opened")
    for name in ("pytorch_model.bin", "pytorch_model-00001-of-00002.bin"):
        (folder / name).write_bytes(b"never opened")
    noticed(folder, caplog, "pytorch_model.bin", "pytorch_model-00001-of-00002.bin")


def variant(folder, tensors, name="model.fp16.safetensors"):
    save_file(tensors, folder / name, {"format": "pt"})


def test_a_variant_of_the_same_model_is_left_alone(tmp_path):
    folder = save_tiny(tmp_path / "m")
    exact = tensors(folder)  # both may be rounded from a third
    types = (torch.float32, torch.float16, torch.bfloat16)
    for stored, dtype in itertools.product(types, types):
        write(folder, {n: t.to(stored) for n, t in exact.items()})
        other = {n: t.to(dtype) for n, t in exact.items()}
        variant(folder, other | {HEAD: other[EMBEDDING].clone(), "position_ids": torch.arange(3)})
        assert list(unlike_variants(weight_files(folder, "model"), "model")) == []


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda t: t | {EMBEDDING: t[EMBEDDING] + 0.01}, f"{EMBEDDING} has other values"),
        (lambda t: t | {EMBEDDING: t[EMBEDDING][1:]}, f"{EMBEDDING} has the shapes"),
        (lambda t: {n: v for n, v in t.items() if n != EMBEDDING}, f"{EMBEDDING} is in {WEIGHTS}"),
        (lambda t: t | {"model.more": torch.ones(2)}, "model.more is in model."),
    ],
)
def test_a_variant_of_another_model_is_an_error_that_names_both(tmp_path, change, words):
    folder = save_tiny(tmp_path / "m")
    other = {n: v.half() for n, v in tensors(folder).items()}
    for name in ("fp16", "non_ema", "fp16-00001-of-00001"):
        variant(folder, change(other), f"model.{name}.safetensors")
        (line,) = faults_of(text_config(folder))
        assert f"{WEIGHTS} and model.{name}.safetensors" in line and words in line
        if name != "fp16-00001-of-00001":
            (folder / f"model.{name}.safetensors").unlink()
    refused(folder, WEIGHTS, words, "reads the former")


def test_a_large_tensor_is_compared_at_three_places(tmp_path):
    folder = save_tiny(tmp_path / "m")
    shape = (10_000, 32)
    write(folder, {"a": torch.zeros(shape)})
    for place in (0, 5_000, 9_999):
        variant(folder, {"a": torch.zeros(shape).index_fill(0, torch.tensor([place]), 1)})
        files = weight_files(folder, "model")
        assert "a has other values" in next(unlike_variants(files, "model"))


@pytest.mark.parametrize("file", ["adapter_model.safetensors", "adapter_model.bin"])
def test_adapters_without_their_config_are_refused_by_name(tmp_path, file):
    folder = save_tiny(tmp_path / "m")
    (folder / file).write_bytes(b"")
    refused(folder, file, "without adapter_config.json", "merge them")


@pytest.mark.parametrize("dtype", [torch.int8, torch.uint8, torch.int32, torch.float8_e4m3fn])
def test_integers_and_eight_bits_without_a_word_in_the_config_are_refused(tmp_path, dtype):
    folder = save_tiny(tmp_path / "m")
    name = "model.layers.0.mlp.up_proj.weight"
    found = tensors(folder)
    write(folder, found | {name: (found[name] * 100).to(dtype)})
    refused(folder, f"stores {name} as", "quantised", "dequantize()")


def test_files_that_transformers_reads_instead(tmp_path):
    folder = save_tiny(tmp_path / "m")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(
        json.dumps(config | {"transformers_weights": "other.safetensors"})
    )
    refused(folder, "transformers_weights = 'other.safetensors'", "delete the key")
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "shard-00001-model-00001-of-00001.safetensors").write_bytes(b"")
    refused(folder, "shard-00001-model-00001-of-00001.safetensors", "transformers reads first")


# ---- tensors that disagree or are left over --------------------------------------------------


def test_a_tied_output_layer_with_other_values_is_an_error(tmp_path):
    folder = save_tiny(tmp_path / "m")
    write(folder, tensors(folder) | {HEAD: torch.randn(64, 32)})
    assert not torch.equal(loaded(folder), loaded(save_tiny(tmp_path / "plain")))
    refused(folder, HEAD, EMBEDDING, "tie_word_embeddings to false")


def test_two_names_of_one_weight_are_compared(tmp_path):
    """As of a thinker that is stored under the names of two versions of transformers."""
    file = tmp_path / WEIGHTS
    for other, lines in ((torch.ones(2), 0), (torch.zeros(2), 1)):
        save_file({"model.a": torch.ones(2), "thinker.model.a": other}, file, {"format": "pt"})
        weights = SafetensorsFolder(tmp_path, "model", name=lambda n: n.removeprefix("thinker."))
        assert weights.names() == {"model.a"}
        assert len(list(weights.untrue_copies())) == lines


@pytest.mark.parametrize("stored", ["twice", "under the other name"])
def test_tied_weights_load_under_either_name(tmp_path, stored):
    folder = save_tiny(tmp_path / "m")
    found = tensors(folder)
    found[HEAD] = found[EMBEDDING].clone()
    if stored != "twice":
        del found[EMBEDDING]
    write(folder, found)
    same(folder)


def test_adapters_beside_the_base_are_refused_by_name(tmp_path):
    folder = save_tiny(tmp_path / "m")
    lora = peft.LoraConfig(target_modules=["q_proj"], init_lora_weights=False)
    model = AutoModelForCausalLM.from_pretrained(folder)
    peft.get_peft_model(model, lora).save_pretrained(folder)
    assert not torch.equal(loaded(folder), loaded(save_tiny(tmp_path / "plain")))
    refused(folder, "adapter_config.json", "merge them")
    (alone := tmp_path / "alone").mkdir()
    for path in folder.glob("adapter_*"):
        path.rename(alone / path.name)
    same(folder)
    with pytest.raises(ModelNotFoundError, match=r"adapters alone, of the base .* merge them"):
        build_domain(text_config(folder, [f"domain.model={alone}"]))


def quantised(found, *endings):
    name = "model.layers.0.mlp.up_proj."
    made = {name + ending: torch.ones(2) for ending in endings}
    return {n: t for n, t in found.items() if n != name + "weight" or "weight" in endings} | made


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda t: quantised(t, "weight", "weight.absmax"), ["bitsandbytes", "dequantize()"]),
        (lambda t: quantised(t, "qweight", "qzeros"), ["GPTQ", "dequantize()"]),
        (lambda t: quantised(t, "weight", "weight_scale_inv"), ["FP8", "dequantize()"]),
        (lambda t: {f"_orig_mod.{n}": v for n, v in t.items()}, ["'_orig_mod.'", "torch.compile"]),
        (lambda t: {f"module.{n}": v for n, v in t.items()}, ["'module.'", "take the prefix off"]),
        (lambda t: {f"base_model.model.{n}": v for n, v in t.items()}, ["peft"]),
        (lambda t: t | {"v_head.summary.weight": torch.ones(1, 32)}, ["value or reward head"]),
        (
            lambda t: (
                {f"pretrained_model.{n}": v for n, v in t.items()}
                | {"v_head.summary.weight": torch.ones(1, 32)}
            ),
            ["'pretrained_model.'", "beside a value or reward head", "take the prefix off"],
        ),
        (lambda t: {n.removeprefix("model."): v for n, v in t.items()}, ["lack 'model.'"]),
        (
            lambda t: t | {"model.layers.0.mlp.up_proj.lora_A.weight": torch.ones(2, 32)},
            ["merge_and_unload"],
        ),
        (
            lambda t: {n: torch.empty(0) if "proj" in n else v for n, v in t.items()},
            ["is empty", "zero_to_fp32.py"],
        ),
        (
            lambda t: t | {EMBEDDING: t[EMBEDDING].index_fill(0, torch.tensor([3]), torch.nan)},
            [EMBEDDING, "NaN"],
        ),
        (
            lambda t: t | {"model.norm.weight": torch.full((32,), torch.inf)},
            ["model.norm.weight", "infinity"],
        ),
    ],
)
def test_tensors_that_do_not_fit_are_explained(tmp_path, change, words):
    folder = save_tiny(tmp_path / "m")
    write(folder, change(tensors(folder)))
    with pytest.raises(WeightsError) as caught:
        trained(folder)
    assert all(word in str(caught.value) for word in words), str(caught.value)
    is_content = {"NaN", "infinity"} & set(words)  # preflight reads headers alone
    assert faults_of(text_config(folder)) == ([] if is_content else [str(caught.value)])


def test_a_config_that_states_quantisation(tmp_path):
    folder = save_tiny(tmp_path / "m")
    config = json.loads((folder / "config.json").read_text())
    stated = {"quantization_config": {"quant_method": "gptq", "bits": 4}}
    (folder / "config.json").write_text(json.dumps(config | stated))
    refused(folder, "quantization_config (gptq)", "dequantize()")
    # transformers heeds that of the language model inside a composite one, too.
    for nested in ({"text_config": stated}, {"thinker_config": {"text_config": stated}}):
        (folder / "config.json").write_text(json.dumps(nested))
        assert "(gptq)" in next(read_instead(folder))


# ---- public reports --------------------------------------------------------------------------


def test_shards_that_no_index_lists_are_not_read(tmp_path):
    """A second set of shards, left by another way of saving."""
    folder = save_tiny(tmp_path / "m")
    shard(folder)
    (folder / WEIGHTS).unlink()
    other_model().save_pretrained(tmp_path / "other", max_shard_size="40KB")
    for path in (tmp_path / "other").glob("model-*"):
        assert not (folder / path.name).exists()
        shutil.copy(path, folder)
    same(folder)


def test_an_index_of_another_set_of_shards(tmp_path):
    folder = save_tiny(tmp_path / "m")
    shard(folder)
    (folder / WEIGHTS).unlink()
    index = (folder / INDEX).read_text()
    (folder / INDEX).write_text(index.replace("-of-", "-of-1"))
    refused(folder, "is incomplete", "are there instead", "index", error=ModelNotFoundError)


def test_a_quantised_file_beside_shards_of_all_bits(tmp_path):
    folder = save_tiny(tmp_path / "m")
    shard(folder)
    write(folder, quantised(tensors(folder), "weight", "weight.absmax"))
    refused(folder, WEIGHTS, INDEX, f"absmax is in {WEIGHTS} alone")


# ---- runs that began before folders were compared --------------------------------------------


def test_a_run_that_began_on_such_a_folder_resumes(tmp_path, monkeypatch, caplog):
    """It trains what it began with: the shards, the embedding alone, no adapters."""
    folder = save_tiny(tmp_path / "m")
    shard(folder)
    write(folder, tensors(folder) | {HEAD: torch.randn(64, 32)})
    (folder / "adapter_config.json").write_text("{}")
    config, run = text_config(folder), tmp_path / "run"
    run.mkdir()
    with pytest.raises(WeightsError, match="differ"):
        build_trainer(config, run)
    with monkeypatch.context() as patch:
        patch.setattr("adrpo_scale.run.build.check_models", lambda *a, **k: None)
        trainer = build_trainer(config, run)
    trainer.train()
    trainer.saver.save_now()
    again = build_trainer(config, run, Start(open_checkpoint(str(run))))
    assert again.counters.iteration == 1
    said = caplog.text
    assert "adapter_config.json" in said and "goes on with what it began with" in said
