"""Models that write the completions of an evaluation: runs, exports, adapters, published models."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace

import huggingface_hub
import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel

from adrpo_scale.core.errors import ConfigError, ModelNotFoundError, PromptError, WeightsError
from adrpo_scale.core.types import DrawKey, Prompt
from adrpo_scale.data.prompts import load_prompts
from adrpo_scale.domains.decoding import SamplingConfig
from adrpo_scale.evaluation.language.writers import WriterModel, writer_of
from adrpo_scale.evaluation.peft_adapters import read_adapters
from adrpo_scale.export.base import Request
from adrpo_scale.export.exporter import export
from adrpo_scale.run.build import build_trainer
from tests.support.tiny_text import (
    WORDS,
    save_prompts,
    save_tiny,
    text_config,
    tiny_tokenizer,
)

SAMPLING = SamplingConfig(max_new_tokens=6)
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """Holds model/, the runs lora/ and full/ trained on it, their exports, and prompts.jsonl."""
    place = tmp_path_factory.mktemp("language")
    save_tiny(place / "model")
    save_prompts(place / "prompts.jsonl")
    lora = ["domain.train=lora", "domain.lora.rank=4", "domain.lora.alpha=2"]
    for name, settings in (("lora", lora), ("full", [])):
        (place / name).mkdir()
        overrides = [*settings, "optimizer.learning_rate=1e-2", "domain.chat.thinking=false"]
        trainer = build_trainer(text_config(place / "model", overrides), place / name)
        trainer.train()
        trainer.saver.save_now()
    for run, form in (("lora", "adapter"), ("full", "full")):
        request = Request(place / f"{run}-export", form, dtype=torch.float32, verify="none")
        export(str(place / run), request)
    return place


def asked(root, each=3):
    """(prompts, keys) of `each` samples of every prompt."""
    prompts = [p for p in load_prompts(root / "prompts.jsonl") for _ in range(each)]
    return prompts, [DrawKey(7, p.id, 0, n % each) for n, p in enumerate(prompts)]


def written(root, model, sampling=SAMPLING, batch=5):
    writer = writer_of(model, sampling, CPU)
    prompts, keys = asked(root)
    writer.prepare(prompts)
    found = []
    for start in range(0, len(prompts), batch):
        part = slice(start, start + batch)
        found += writer.write(prompts[part], keys[part])
    writer.close()
    return found


# A run trained without thinking; its template says so to a model that is asked as it was.
CHAT = {"thinking": False}


def test_a_run_writes_what_its_export_and_its_adapters_write(root):
    model, base = str(root / "model"), written(root, WriterModel(pipeline=str(root / "model")))
    of_run = written(root, WriterModel(run=str(root / "lora")))
    adapters = str(root / "lora-export")
    assert written(root, WriterModel(pipeline=model, lora=adapters, chat=CHAT)) == of_run != base
    of_run = written(root, WriterModel(run=str(root / "full")))
    exported = str(root / "full-export")
    assert written(root, WriterModel(pipeline=exported, chat=CHAT)) == of_run != base


def test_a_completion_is_a_function_of_its_prompt_and_key_and_has_its_end(root):
    model, longer = WriterModel(run=str(root / "full")), SamplingConfig(max_new_tokens=24)
    found = written(root, model, longer)
    assert [c.text for c in written(root, model, longer, batch=18)] == [c.text for c in found]
    assert len({c.text for c in found}) > 6  # the samples of a prompt differ
    for completion in found:
        ended = completion.tokens[-1] == WORDS.index("<|im_end|>")
        assert completion.finished == ended and 1 <= len(completion.tokens) <= 24
    assert {c.finished for c in found} == {True, False}


def test_prompts_of_two_sets_may_share_ids(root):
    writer = writer_of(WriterModel(run=str(root / "full")), SAMPLING, CPU)
    prompts = [Prompt(0, "w1 w2"), Prompt(0, "w3")]
    writer.prepare(prompts)
    one, other = writer.write(prompts, [DrawKey(0, 0)] * 2)
    assert writer.write([prompts[1]], [DrawKey(0, 0)])[0].text == other.text != one.text


def test_greedy_is_temperature_zero_and_the_run_s_own_distribution_is_not_asked(root):
    greedy = SAMPLING.model_copy(update={"temperature": 0.0})
    found = written(root, WriterModel(run=str(root / "full")), greedy)
    texts = [c.text for c in found]
    assert texts[::3] == texts[1::3] == texts[2::3]
    assert max(len(c.tokens) for c in found) == 6  # in training: 12 tokens, temperature 1


def test_an_identity_says_what_completions_depend_on(root, tmp_path):
    def of(**names):
        return writer_of(WriterModel(**names), SAMPLING, CPU).identity

    run = of(run=str(root / "lora"))
    assert (run["run"], run["iteration"], run["weights"]) == ("lora", 1, "raw")
    assert run["chat"]["thinking"] is False  # as in training
    model, adapters = str(root / "model"), str(root / "lora-export")
    plain, adapted = of(pipeline=model), of(pipeline=model, lora=adapters)
    assert "lora" not in plain and plain["sha256"] == adapted["sha256"]
    assert adapted["lora"] == read_adapters(adapters, "lora").sha256()
    shutil.copytree(adapters, tmp_path / "other")
    settings = json.loads((tmp_path / "other" / "adapter_config.json").read_text())
    moved = of(pipeline=model, lora=str(tmp_path / "other"))
    assert moved == adapted and len(moved["chat"]["template_file"]) == 64
    settings["lora_alpha"] *= 2
    (tmp_path / "other" / "adapter_config.json").write_text(json.dumps(settings))
    assert of(pipeline=model, lora=str(tmp_path / "other"))["lora"] != adapted["lora"]
    assert json.loads(json.dumps(run)) == run


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"use_dora": True}, "use_dora = True, which only peft computes; merge them"),
        ({"peft_type": "IA3"}, "type 'IA3', expected LORA; merge them"),
        ({"r": "four"}, "r = 'four', .* expected a rank, a number and names of modules"),
        ({"target_modules": ["q_proj"]}, "tensors missing|unknown"),
        ({"r": 2}, "has shape .* the base needs"),
    ],
)
def test_adapters_that_are_not_these_of_this_base_are_refused(root, tmp_path, change, message):
    folder = tmp_path / "adapters"
    shutil.copytree(root / "lora-export", folder)
    settings = json.loads((folder / "adapter_config.json").read_text())
    (folder / "adapter_config.json").write_text(json.dumps(settings | change))
    model = WriterModel(pipeline=str(root / "model"), lora=str(folder))
    with pytest.raises((ConfigError, WeightsError), match=message):
        written(root, model)


def test_rank_stabilised_adapters_are_scaled_by_the_root_of_the_rank(root, tmp_path):
    shutil.copytree(root / "lora-export", tmp_path / "adapters")
    path = tmp_path / "adapters" / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"use_rslora": True}))
    plain, scaled = (
        read_adapters(str(f), "lora").lora for f in (root / "lora-export", path.parent)
    )
    assert (plain.alpha, plain.rank) == (4.0, 4) and scaled == plain.model_copy(
        update={"alpha": 8.0}
    )


def test_what_cannot_be_asked_is_one_sentence_before_any_weights(root, tmp_path):
    with pytest.raises(ConfigError, match="is a run: name it as run = …"):
        writer_of(WriterModel(pipeline=str(root / "lora")), SAMPLING, CPU)
    with pytest.raises(ConfigError, match='judge it in a file with benchmark = "images"'):
        writer_of(WriterModel(pipeline="demo:image"), SAMPLING, CPU)
    (tmp_path / "adapters").mkdir()
    with pytest.raises(ModelNotFoundError, match=r"expected adapter_config\.json and ad"):
        read_adapters(str(tmp_path / "adapters"), "models.mine.lora")
    model = WriterModel(run=str(root / "full"))
    writer = writer_of(model, SAMPLING, CPU)
    long = Prompt(3, " ".join(["w1"] * 130))
    with pytest.raises(PromptError, match=r"13. tokens.* is 116.*lower sampling.max_new_tokens"):
        writer.prepare([long])
    room = replace(model, chat={"max_prompt_tokens": 4})
    with pytest.raises(PromptError, match="max_prompt_tokens is 4"):
        writer_of(room, SAMPLING, CPU).prepare([Prompt(0, "w1 w2 w3")])


def test_a_commit_of_the_hub_is_found_in_the_cache_and_said(root, tmp_path, monkeypatch):
    cached, commits = tmp_path / "models--some--model", ("a" * 40, "b" * 40)
    for commit in commits:
        shutil.copytree(root / "model", cached / "snapshots" / commit)
    (cached / "refs").mkdir()
    (cached / "refs" / "main").write_text(commits[0])
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)

    def revision(stated):
        model = WriterModel(pipeline="some/model", revision=stated)
        return writer_of(model, SAMPLING, CPU).identity["revision"]

    assert [revision(stated) for stated in (None, commits[1])] == [*commits]
    with pytest.raises(ModelNotFoundError, match="c" * 12):
        revision("c" * 40)
    model = WriterModel(pipeline=str(root / "model"), revision="c" * 40)
    with pytest.raises(ConfigError, match="goes with a hub id"):
        writer_of(model, SAMPLING, CPU)


def test_a_model_with_dropout_cannot_be_trained_and_writes_without_it(root, tmp_path):
    shutil.copytree(root / "model", tmp_path / "model")
    path = tmp_path / "model" / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"attention_dropout": 0.5}))
    found = written(root, WriterModel(pipeline=str(tmp_path / "model")))
    assert found == written(root, WriterModel(pipeline=str(root / "model")))


def test_a_base_model_of_another_family_without_a_chat_template(root, tmp_path):
    torch.manual_seed(0)
    ends = {"vocab_size": 64, "bos_token_id": 2, "eos_token_id": 2}
    config = GPT2Config(n_positions=64, n_embd=32, n_layer=2, n_head=2, **ends)
    GPT2LMHeadModel(config).save_pretrained(tmp_path)  # its dropout is .1
    tiny_tokenizer(None).save_pretrained(tmp_path)
    (tmp_path / "chat_template.jinja").unlink(missing_ok=True)
    model = WriterModel(pipeline=str(tmp_path))
    with pytest.raises(ConfigError, match=r'has no chat template .*template = "plain"'):
        writer_of(model, SAMPLING, CPU)
    found = written(root, replace(model, chat={"template": "plain"}))
    assert len(found) == 18 and all(1 <= len(c.tokens) <= 6 for c in found)


def test_adapters_bring_the_template_that_a_base_model_lacks(root, tmp_path):
    base = tmp_path / "base"
    shutil.copytree(root / "model", base)
    (base / "chat_template.jinja").unlink()
    adapters = str(root / "lora-export")
    found = written(root, WriterModel(pipeline=str(base), lora=adapters, chat=CHAT))
    assert found == written(root, WriterModel(run=str(root / "lora")))
    with pytest.raises(ConfigError, match="has no chat template"):
        writer_of(WriterModel(pipeline=str(base)), SAMPLING, CPU)
    model = WriterModel(pipeline=str(base), lora=adapters)
    assert len(writer_of(model, SAMPLING, CPU).identity["chat"]["template_file"]) == 64
