"""Exports of language models: loaded with nothing of this package, equal to the policy, complete.

The base models lie in folders of their own, with what a download brings along. Their runs are
trained once. All verifications but one happen in processes that are forked from one which has
imported transformers and peft, and nothing of this package, because that import takes seconds.
"""

from __future__ import annotations

import json
import shutil
import subprocess
from types import SimpleNamespace

import peft
import pytest
import torch
from huggingface_hub import ModelCard
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from adrpo_scale.checkpoint.locate import open_checkpoint
from adrpo_scale.core.types import Prompt
from adrpo_scale.evaluation.sample import find_source, sample_to
from adrpo_scale.export import folder, transformers_layout, verify
from adrpo_scale.export.adapter import PEFT_FILE
from adrpo_scale.export.base import Request
from adrpo_scale.export.exporter import export
from adrpo_scale.export.transformers_layout import is_class, with_system
from adrpo_scale.run.build import build_domain, build_trainer
from adrpo_scale.run.load import parse_config
from adrpo_scale.training.media import COMPLETIONS
from tests.support.exported import refused, tensors_of, trained
from tests.support.plain_processes import plain_processes
from tests.support.tiny_text import (
    PROMPTS,
    TEMPLATE,
    save_prompts,
    save_tiny,
    text_config,
    tiny_tokenizer,
)

SECRET = "ada-lovelace"  # part of every path of this file: no export may tell it
EMBEDDING, HEAD, QUERY = (
    "model.embed_tokens.weight",
    "lm_head.weight",
    "model.layers.0.self_attn.q_proj",
)
LORA = ["domain.train=lora", "domain.lora.rank=4", "domain.lora.alpha=6"]
SYSTEM = 'w20 "w21" {{ w22 }} %}\n w23 \\ é 😀'


# ---- what is exported ------------------------------------------------------------------------


def save_base(to, *, stored=torch.float32, stale_head=False, **changes):
    """A model as a download has it."""
    save_tiny(to, **changes)
    weights = {
        name: tensor.to(stored) for name, tensor in load_file(to / "model.safetensors").items()
    }
    if stale_head:
        assert HEAD not in weights
        weights[HEAD] = 0.3 * torch.randn(64, 32).to(stored)
    save_file(weights, to / "model.safetensors", {"format": "pt"})
    (to / "README.md").write_text("---\nlicense: apache-2.0\n---\n# Base\n")
    (to / "LICENSE").write_text("The terms of the tiny model.\n")
    (to / "pytorch_model.bin").write_bytes(b"a pickle")
    (to / "trainer_state.json").write_text("{}")
    config = json.loads((to / "config.json").read_text())
    config.pop("dtype")
    config |= {"torch_dtype": "float32", "_name_or_path": f"/home/{SECRET}/tiny"}
    (to / "config.json").write_text(json.dumps(config))


def train_run(root, name, base, settings, trained=True):
    run = root / "runs" / name
    run.mkdir(parents=True)
    overrides = ["optimizer.learning_rate=1e-2", *settings]
    trainer = build_trainer(text_config(root / base, overrides), run)
    if trained:
        trainer.train()
    trainer.saver.save_now()


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """Holds the base models tied, stale and untied, and runs/."""
    place = tmp_path_factory.mktemp(SECRET)
    save_base(place / "tied")
    save_base(place / "stale", stored=torch.bfloat16, stale_head=True)
    save_base(place / "untied", tie_word_embeddings=False)
    (place / "tied" / "mine.jinja").write_text("\n" + TEMPLATE.replace("assistant", "w30"))
    chat = {"template_file": str(place / "tied" / "mine.jinja"), "system": SYSTEM}
    chat_settings = [
        f"domain.chat.{name}={json.dumps(value, ensure_ascii=False)}"
        for name, value in chat.items()
    ]
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ADRPO_CACHE", str(place / "cache"))
        evaluated = ["domain.evaluation.temperature=0", "domain.chat.thinking=false"]
        train_run(place, "lora", "tied", [*LORA, *evaluated, "evaluation.every=1", "ema_decay=0.5"])
        train_run(place, "untied_lora", "untied", LORA)
        longer = [*chat_settings, "domain.chat.max_prompt_tokens=64", "domain.lora.alpha=1.5"]
        train_run(place, "chat", "tied", [*LORA, *longer])
        train_run(place, "plain", "tied", [*LORA, "domain.chat.template=plain"])
        train_run(place, "untied", "untied", [])
        # As runs that began before a second copy was compared.
        patch.setattr("adrpo_scale.run.build.check_models", lambda *_, **__: None)
        train_run(place, "stale", "stale", [])
        train_run(place, "stale_lora", "stale", LORA)
        train_run(place, "untrained", "tied", LORA, trained=False)
        yield place


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    """Runs `script arguments…` in a process with transformers and peft, imported before."""
    imports = "from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig\n"
    imports += "from transformers.models.qwen3 import modeling_qwen3"
    with plain_processes(tmp_path_factory.mktemp("plain"), imports) as run:
        yield run


@pytest.fixture(scope="module")
def checked(plain):
    """Verification in forks instead of fresh processes."""
    with pytest.MonkeyPatch.context() as patch:
        run = lambda command, **_: plain(*command[2:])  # noqa: E731
        patch.setattr(verify, "subprocess", SimpleNamespace(run=run))
        yield


@pytest.fixture(scope="module")
def exports(root, checked):
    """Verified exports by name."""

    def made(name, run, form, **settings):
        return export(str(root / "runs" / run), Request(root / "exports" / name, form, **settings))

    shards = {"max_shard_bytes": 30_000}
    return {
        "adapter": made("adapter", "lora", "adapter"),
        "adapter_bf16": made(
            "adapter_bf16", "lora", "adapter", dtype=torch.bfloat16, weights="ema"
        ),
        "merged": made("merged", "lora", "merged"),
        "merged_bf16": made("merged_bf16", "untied_lora", "merged", dtype=torch.bfloat16, **shards),
        "chat": made("chat", "chat", "merged"),
        "chat_adapter": made("chat_adapter", "chat", "adapter"),
        "plain": made("plain", "plain", "merged"),
        "stale": made("stale", "stale", "full"),
        "stale_merged": made("stale_merged", "stale_lora", "merged", dtype=torch.float32),
        "untied": made("untied", "untied", "full", **shards),
        "tensors": made("tensors", "untied", "full", verify="tensors", **shards),
        "adapter_tensors": made("adapter_tensors", "lora", "adapter", verify="tensors"),
    }


# ---- equal to the policy ---------------------------------------------------------------------


def test_every_export_is_what_the_policy_computes(exports):
    for name, exported in exports.items():
        figures, low = exported.verdict.figures, name in ("adapter_bf16", "merged_bf16", "stale")
        if exported.verdict.level == "tensors":
            assert figures["largest error / rounding"] <= 1
            continue
        off = {how: value for how, value in figures.items() if how.endswith("off by")}
        adapter = {"peft: off by", "tensors alone: off by"}
        loaded = adapter if "adapter" in name else {"from_pretrained: off by"}
        assert loaded == {how for how in off if not how.startswith("greedy generate")}
        assert len(off) == len(loaded) + 1
        assert max(off.values()) <= (1e-4 if low else 1e-5), (name, figures)
        assert figures["training moved outputs by"] > 1e-3
        assert exported.written.changed == exported.written.trained > 0


def test_tensors_are_compared_one_by_one(root, exports):
    assert exports["tensors"].verdict.figures["tensors compared"] == len(trained(root, "untied"))
    found = exports["adapter_tensors"].verdict.figures["tensors compared"]
    assert found == len(trained(root, "lora"))


def test_a_fresh_process_with_the_libraries_alone_agrees(root, tmp_path, monkeypatch):
    monkeypatch.setattr(verify, "subprocess", subprocess)
    exported = export(str(root / "runs/stale"), Request(tmp_path / "a", "full"))
    assert exported.verdict.versions.keys() == {"torch", "transformers", "peft"}


GREEDY = """
import json, sys
from pathlib import Path

import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer

job = json.loads(Path(sys.argv[1]).read_text())
found = []
for prompt in job["prompts"]:
    tokenizer = AutoTokenizer.from_pretrained(job["export"])
    model = AutoModelForCausalLM.from_pretrained(job["model"], dtype=torch.float32)
    if job["export"] != job["model"]:
        model = PeftModel.from_pretrained(model, job["export"])
    inputs = tokenizer.apply_chat_template(
        [{"role": "user", "content": prompt}], add_generation_prompt=True, return_dict=True,
        return_tensors="pt", enable_thinking=False,
    )
    tokens = model.generate(**inputs, do_sample=False, max_new_tokens=12)
    found.append(tokens[0, inputs["input_ids"].shape[1] :].tolist())
Path(job["to"]).write_text(json.dumps(found))
"""


@pytest.mark.parametrize("form", ["adapter", "merged"])
def test_a_users_greedy_text_is_the_policys(root, exports, plain, tmp_path, form):
    save_prompts(tmp_path / "prompts.jsonl")
    source = find_source(str(root / "runs/lora"))
    sample_to(source, tmp_path / "prompts.jsonl", tmp_path, per_prompt=1, seed=0, weights="raw")
    lines = (tmp_path / COMPLETIONS).read_text().splitlines()
    place = str(exports[form].folder)
    job = {"prompts": PROMPTS, "export": place, "to": str(tmp_path / "found.json")}
    job["model"] = str(root / "tied") if form == "adapter" else place
    (tmp_path / "job.json").write_text(json.dumps(job))
    (tmp_path / "script.py").write_text(GREEDY)
    done = plain(tmp_path / "script.py", tmp_path / "job.json")
    assert done.returncode == 0, done.stderr
    found = json.loads((tmp_path / "found.json").read_text())
    assert found == [json.loads(line)["tokens"] for line in lines]


# ---- what lies in a folder -------------------------------------------------------------------

TOKENIZER = {"tokenizer.json", "tokenizer_config.json", "chat_template.jinja"}


def test_an_adapter_folder_is_pefts_with_the_tokenizer(root, exports):
    place, expected = exports["adapter"].folder, trained(root, "lora")
    assert {p.name for p in place.iterdir()} == TOKENIZER | {
        "README.md",
        "LICENSE",
        "adapter_config.json",
        PEFT_FILE,
    }
    config = peft.LoraConfig.from_pretrained(place)
    assert (config.task_type, config.r, config.lora_alpha) == ("CAUSAL_LM", 4, 4)
    assert config.base_model_name_or_path == "tied" and "q_proj" in config.target_modules
    found = load_file(place / PEFT_FILE)
    assert f"base_model.model.{QUERY}.lora_A.weight" in found and len(found) == len(expected)
    for name, tensor in expected.items():
        written = found[f"base_model.model.{name.replace('.default', '')}"]
        assert torch.equal(written, tensor * (6 / 4 if ".lora_B." in name else 1))


def test_a_factor_below_one_is_in_the_larger_tensor(root, exports):
    """float16 would lose digits of a B that became smaller. Rank 4, alpha 1.5."""
    found = load_file(exports["chat_adapter"].folder / PEFT_FILE)
    for name, tensor in trained(root, "chat").items():
        written = found[f"base_model.model.{name.replace('.default', '')}"]
        assert torch.equal(written, tensor * (0.375 if ".lora_A." in name else 1))


def test_a_model_folder_holds_the_model_and_nothing_else(exports):
    files = {"README.md", "LICENSE", "config.json", "generation_config.json", "model.safetensors"}
    assert {p.name for p in exports["merged"].folder.iterdir()} == TOKENIZER | files


def test_merged_is_the_base_with_scaled_products_added(root, exports):
    base, adapters = tensors_of(root / "untied"), trained(root, "untied_lora")
    found = tensors_of(exports["merged_bf16"].folder)
    assert found.keys() == base.keys() and HEAD in found
    for name, weight in base.items():
        parts = [f"{name.removesuffix('.weight')}.lora_{x}.default.weight" for x in "AB"]
        expected = weight.double()
        if parts[0] in adapters:
            down, up = (adapters[part].double() for part in parts)
            expected = expected + 6 / 4 * up @ down
        bound = 2**-8 * expected.abs() + 1e-30
        assert bool(((found[name].double() - expected).abs() <= bound).all()), name


def test_shards_have_an_index_that_names_them(exports):
    place = exports["untied"].folder
    index = json.loads((place / "model.safetensors.index.json").read_text())
    names = sorted(path.name for path in place.glob("*.safetensors"))
    assert len(names) > 2 and names[0] == f"model-00001-of-{len(names):05d}.safetensors"
    for name in names:
        with safe_open(place / name, "pt") as file:
            assert {index["weight_map"][key] for key in file.keys()} == {name}  # noqa: SIM118


def test_a_tied_weight_is_written_once_and_a_stale_copy_of_it_left_out(root, exports):
    assert HEAD in tensors_of(root / "stale")
    found = tensors_of(exports["stale"].folder)
    assert found.keys() == trained(root, "stale").keys() and HEAD not in found
    expected = trained(root, "stale")[EMBEDDING].to(torch.bfloat16)
    assert torch.equal(found[EMBEDDING], expected)
    assert json.loads((exports["stale"].folder / "config.json").read_text())["tie_word_embeddings"]


def test_adapters_on_a_base_with_a_stale_copy_are_refused(root, tmp_path):
    message = "stores lm_head.weight beside the weight that it is tied to"
    refused(root, "stale_lora", tmp_path / "a", "adapter", message)


def test_a_true_copy_of_a_tied_weight_is_no_obstacle(root, tmp_path, checked):
    """As in the published files of Qwen3-0.6B."""
    save_base(tmp_path / "copied")
    file = tmp_path / "copied" / "model.safetensors"
    weights = load_file(file)
    save_file(weights | {HEAD: weights[EMBEDDING].clone()}, file, {"format": "pt"})
    train_run(tmp_path, "run", "copied", LORA)
    for form in ("adapter", "merged"):
        exported = export(str(tmp_path / "runs/run"), Request(tmp_path / form, form))
        assert HEAD not in tensors_of(exported.folder)


@pytest.mark.parametrize(
    ("name", "dtype"),
    [("merged", "float32"), ("merged_bf16", "bfloat16"), ("stale", "bfloat16")],
)
def test_the_config_says_the_type_of_the_weights(exports, name, dtype):
    config = json.loads((exports[name].folder / "config.json").read_text())
    assert config["dtype"] == config["torch_dtype"] == dtype
    assert {str(t.dtype) for t in tensors_of(exports[name].folder).values()} == {f"torch.{dtype}"}


# ---- chat templates --------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["chat", "chat_adapter"])
def test_the_tokenizer_carries_the_template_and_system_message_of_training(root, exports, name):
    place = exports[name].folder
    document = open_checkpoint(str(root / "runs/chat")).manifest.document["config"]
    ids = build_domain(parse_config(document)).export_target().chat.ids
    tokenizer = AutoTokenizer.from_pretrained(place)
    messages = [{"role": "user", "content": "What is 2 + 3?"}]
    text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    assert tuple(tokenizer(text)["input_ids"]) == ids
    assert SYSTEM in text and text.endswith("w30 ")
    assert "chat_template" not in json.loads((place / "tokenizer_config.json").read_text())


def test_an_adapters_tokenizer_is_read_by_the_class_that_training_read_it_with(
    root, tmp_path, checked
):
    """Without a config.json beside it, which made it another class in the base's folder."""
    shutil.copytree(root / "tied", tmp_path / "other")
    config = json.loads((root / "tied/config.json").read_text())
    qwen2 = {"architectures": ["Qwen2ForCausalLM"], "model_type": "qwen2"}
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(AutoConfig.for_model(**config | qwen2)).save_pretrained(
        tmp_path / "other"
    )
    train_run(tmp_path, "run", "other", LORA)
    exported = export(str(tmp_path / "runs/run"), Request(tmp_path / "a", "adapter"))
    settings = json.loads((exported.folder / "tokenizer_config.json").read_text())
    assert settings["tokenizer_class"] == "Qwen2Tokenizer"


def test_a_class_is_the_same_under_its_old_name():
    assert is_class("LlamaTokenizer", "LlamaTokenizerFast")
    assert is_class("TokenizersBackend", "PreTrainedTokenizerFast")
    assert not is_class("Qwen2Tokenizer", "TokenizersBackend")
    assert not is_class("Qwen2Tokenizer", "")


def test_a_template_is_left_alone_where_the_tokenizers_own_was_used(root, exports):
    for name in ("merged", "plain", "adapter"):
        for file in TOKENIZER:
            assert (exports[name].folder / file).read_bytes() == (root / "tied" / file).read_bytes()


@pytest.mark.parametrize(
    "template", [TEMPLATE, "\n  " + TEMPLATE, "  {% if 1 %}\n" + TEMPLATE + "{% endif %}"]
)
@pytest.mark.parametrize("system", ["w1", SYSTEM, "", "{% endif %}{# ' #}"])
def test_a_system_message_in_the_template_is_one_in_the_conversation(template, system):
    user = {"role": "user", "content": "w2"}
    own, stated = {"role": "system", "content": "w9"}, {"role": "system", "content": system}

    def rendered(text, messages):
        tokenizer = tiny_tokenizer(text)
        return tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)

    changed = with_system(template, system)
    assert rendered(changed, [user]) == rendered(template, [stated, user])
    assert rendered(changed, [own, user]) == rendered(template, [own, user])


# ---- a wrong export does not get through -----------------------------------------------------


def test_what_training_has_not_changed_is_refused(root, tmp_path):
    refused(root, "untrained", tmp_path / "a", "merged", "would be the base model itself")
    refused(root, "untrained", tmp_path / "a", "adapter", "none of the 14 trained tensors")
    refused(root, "untied", tmp_path / "a", "merged", "trained all parameters: use --as full")
    refused(root, "lora", tmp_path / "a", "full", "use --as adapter or --as merged")


def test_another_chat_template_is_found(root, tmp_path, monkeypatch, checked):
    monkeypatch.setattr(transformers_layout, "tokenizer_texts", lambda material, names_class: {})
    for level in ("outputs", "tensors"):
        message = "the export's tokenizer encodes"
        refused(root, "chat", tmp_path / "a", "adapter", message, verify=level)


def test_a_wrong_merge_is_found(root, tmp_path, monkeypatch, checked):
    honest = folder.MergedWeights.read

    def wrong(self, name, start=0, stop=None):
        tensor = honest(self, name, start, stop)
        return tensor * 1.01 if name.endswith("0.self_attn.v_proj.weight") else tensor

    monkeypatch.setattr(folder.MergedWeights, "read", wrong)
    to = tmp_path / "a"
    refused(root, "lora", to, "merged", "not the policy: outputs differ", verify="outputs")
    refused(root, "lora", to, "merged", r"v_proj\.weight is off by", verify="tensors")


def test_a_config_that_unties_the_weights_is_found(root, tmp_path, monkeypatch, checked):
    honest = transformers_layout.config_text

    def untied(material, wanted):
        return json.dumps(json.loads(honest(material, wanted)) | {"tie_word_embeddings": False})

    monkeypatch.setattr(transformers_layout, "config_text", untied)
    message = "cannot be used: .*missing .*lm_head"
    refused(root, "lora", tmp_path / "a", "merged", "(?s)" + message, verify="tensors")
    refused(root, "lora", tmp_path / "a", "merged", "not the policy", verify="outputs")


# ---- what an export tells --------------------------------------------------------------------


def test_no_export_tells_paths(root, exports):
    for exported in exports.values():
        for path in exported.folder.rglob("*"):
            data = path.read_bytes()
            assert SECRET.encode() not in data and str(root).encode() not in data, path


def test_the_card_says_what_it_is(exports):
    for form in ("adapter", "merged", "stale"):
        card = ModelCard.load(exports[form].folder / "README.md")
        assert card.data.library_name == "transformers" and card.data.license == "apache-2.0"
        assert card.data.pipeline_tag == "text-generation"
        assert "vllm serve" in card.text and "greedy generate, 16 tokens" in card.text
    text = (exports["adapter"].folder / "README.md").read_text()
    for part in ("PeftModel", "enable_thinking=False", "do_sample=False", "max_new_tokens=12"):
        assert part in text
    assert "--enable-lora --max-lora-rank 8" in text and "| reward" in text
    assert "temperature=1.0" in (exports["stale"].folder / "README.md").read_text()


RUNNER = """
import os, sys
from pathlib import Path

blocks = 0
for folder in sys.argv[1:]:
    os.chdir(folder)
    for block in Path("README.md").read_text().split("```python\\n")[1:]:
        exec(compile(block.split("```")[0], folder, "exec"), {})
        blocks += 1
assert blocks == len(sys.argv) - 1
assert not [name for name in sys.modules if name.split(".")[0] == "adrpo_scale"]
"""


def test_the_cards_usage_examples_run_as_they_stand(root, exports, plain, tmp_path):
    (tmp_path / "runner.py").write_text(RUNNER)
    # The base has no id of the hub, so the example says its folder's name.
    (exports["adapter"].folder / "tied").symlink_to(root / "tied")
    try:
        names = ("adapter", "merged", "plain", "chat", "untied")
        done = plain(tmp_path / "runner.py", *(exports[name].folder for name in names))
    finally:
        (exports["adapter"].folder / "tied").unlink()
    assert done.returncode == 0, done.stderr


def test_prompts_have_the_tokens_of_training(root):
    """The example's ids come from the same function as those of prompts."""
    domain = build_domain(text_config(root / "tied"))
    domain.prepare([Prompt(0, "What is 2 + 3?")], torch.device("cpu"), torch.float32)
    assert list(domain.export_target().chat.ids) == domain._ids[0]
