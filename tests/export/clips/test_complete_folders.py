"""Exports of the thinker of Qwen2.5-Omni: of a whole checkpoint and of a folder of its own, loaded
with nothing of this package, equal to the policy, and whole.

The runs are trained once. Verifications happen in processes forked from one which has imported
transformers and peft, because that import takes seconds.
"""

from __future__ import annotations

import json

import peft
import pytest
import torch
from safetensors.torch import load_file
from transformers import Qwen2_5OmniProcessor, Qwen2_5OmniThinkerForConditionalGeneration

from adrpo_scale.checkpoint.locate import open_checkpoint
from adrpo_scale.domains.heard import example_clip
from adrpo_scale.domains.omni import SPEAKERS, thinker_name
from adrpo_scale.evaluation.sample import Source, find_source, sample_to, stands_for
from adrpo_scale.export.adapter import PEFT_FILE
from adrpo_scale.hub.foreign import same_bytes
from adrpo_scale.run.build import build_domain
from adrpo_scale.run.load import parse_config
from adrpo_scale.training.media import COMPLETIONS
from tests.support.audio_parts import BANNED
from tests.support.exported import tensors_of, trained
from tests.support.exported_thinkers import SYSTEM, THINKER, WHOLE
from tests.support.tiny_audio import PROMPTS

QUERY = "model.language_model.layers.0.self_attn.q_proj"
SPOKEN = ("talker.", "token2wav.")


# ---- equal to the policy -------------------------------------------------------------------------


def test_every_export_is_what_the_policy_computes_of_a_clip(exports):
    for name, exported in exports.items():
        assert exported.written.changed == exported.written.trained > 0
        if exported.verdict is None:
            continue
        figures = exported.verdict.figures
        if exported.verdict.level == "tensors":
            assert figures["largest error / rounding"] <= 1
            continue
        off = {how: value for how, value in figures.items() if how.endswith("off by")}
        assert len(off) == (3 if "adapter" in name else 2)
        assert any(how.startswith("greedy generate") for how in off)
        assert max(off.values()) <= (1e-4 if name == "all" else 1e-5), (name, figures)
        assert figures["training moved outputs by"] > 1e-3


def test_the_verified_prompt_has_a_clip(root):
    document = open_checkpoint(str(root / "runs/lora")).manifest.document["config"]
    target = build_domain(parse_config(document)).export_target()
    given = target.policy_inputs()
    heard = int((given["input_ids"] == 4).sum())
    assert len(target.inputs["clip"]) == 16000
    assert heard == len(given["input_features"]) == 25  # a second
    assert tuple(given["input_ids"][0].tolist()) == target.chat.ids


GREEDY = """
import json, sys, wave
from pathlib import Path

import numpy as np
import torch
import transformers
from peft import PeftModel

job = json.loads(Path(sys.argv[1]).read_text())
processor = transformers.Qwen2_5OmniProcessor.from_pretrained(job["export"])
model_class = getattr(transformers, job["class"])
model = model_class.from_pretrained(job["model"], dtype=torch.float32)
if job["export"] != job["model"]:
    model = PeftModel.from_pretrained(model, job["export"])
if "talker" in dict(model.named_children()):
    assert sorted(model.speaker_map) == ["Chelsie", "Ethan"]
found = []
for path, prompt in job["prompts"]:
    with wave.open(path) as file:
        clip = np.frombuffer(file.readframes(-1), "<i2").astype(np.float32) / 32768
    content = [{"type": "audio", "audio": path}, {"type": "text", "text": prompt}]
    text = processor.apply_chat_template(
        [{"role": "user", "content": content}], add_generation_prompt=True, tokenize=False
    )
    inputs = processor(text=text, audio=[clip], return_tensors="pt")
    tokens = model.generate(**inputs, **job["call"])
    found.append(tokens[0, inputs["input_ids"].shape[1] :].tolist())
Path(job["to"]).write_text(json.dumps(found))
"""


def policys_tokens(root, run, to):
    """Greedy, by this package."""
    settings = {"per_prompt": 1, "seed": 0, "weights": "trained"}
    sample_to(find_source(run), root / "prompts.jsonl", to, **settings)
    lines = (to / COMPLETIONS).read_text().splitlines()
    return [json.loads(line)["tokens"] for line in lines]


@pytest.mark.parametrize(
    ("name", "run"), [("adapter", "lora"), ("merged", "lora"), ("whole", "lora"), ("chat", "chat")]
)
def test_a_users_greedy_text_about_clips_is_the_policys(root, exports, plain, tmp_path, name, run):
    expected = policys_tokens(root, str(root / "runs" / run), tmp_path)
    place = str(exports[name].folder)
    call = {"max_new_tokens": 12, "do_sample": False, "eos_token_id": [2]}
    call |= {"suppress_tokens": BANNED}
    if name == "whole":
        call = {"generation_mode": "text"} | {f"thinker_{n}": v for n, v in call.items()}
    job = {
        "export": place,
        "model": str(root / "full") if name == "adapter" else place,
        "class": WHOLE if name == "whole" else THINKER,
        "prompts": [(str(root / f"clip-{n}.wav"), text) for n, text in enumerate(PROMPTS)],
        "call": call,
        "to": str(tmp_path / "found.json"),
    }
    (tmp_path / "job.json").write_text(json.dumps(job))
    (tmp_path / "script.py").write_text(GREEDY)
    done = plain(tmp_path / "script.py", tmp_path / "job.json")
    assert done.returncode == 0, done.stderr
    assert json.loads((tmp_path / "found.json").read_text()) == expected


@pytest.mark.parametrize("name", ["merged", "merged_alone", "whole"])
def test_an_export_is_a_model_to_train_and_to_sample_from(root, exports, tmp_path, name):
    """It goes through the audio domain as the run itself does."""
    run = {"merged_alone": "alone"}.get(name, "lora")
    expected = policys_tokens(root, str(root / "runs" / run), tmp_path / "run")
    place = str(exports[name].folder)
    assert stands_for(place) == "audio"
    source = find_source(place)
    domain = parse_config(
        open_checkpoint(str(root / "runs" / run)).manifest.document["config"]
    ).domain
    changed = domain.model_copy(update={"model": place, "train": "full", "lora": None})
    source = Source(source.config.model_copy(update={"domain": changed}))
    settings = {"per_prompt": 1, "seed": 0, "weights": "trained"}
    sample_to(source, root / "prompts.jsonl", tmp_path, **settings)
    lines = (tmp_path / COMPLETIONS).read_text().splitlines()
    assert [json.loads(line)["tokens"] for line in lines] == expected


# ---- what lies in a folder -----------------------------------------------------------------------


PREPARES = {"tokenizer.json", "tokenizer_config.json"}
HUB = PREPARES | {"preprocessor_config.json", "chat_template.json"}
SAVED = PREPARES | {"processor_config.json", "chat_template.jinja"}


def test_an_adapter_folder_is_pefts_with_the_processor(root, exports):
    for name, run, beside in (("adapter", "lora", HUB), ("adapter_alone", "alone", SAVED)):
        place, expected = exports[name].folder, trained(root, run)
        names = {"README.md", "adapter_config.json", PEFT_FILE}
        names |= {"vllm"} if name == "adapter" else set()  # vLLM serves whole models alone
        assert {p.name for p in place.iterdir()} == beside | names
        config = peft.LoraConfig.from_pretrained(place)
        assert (config.task_type, config.r, config.lora_alpha) == ("CAUSAL_LM", 4, 4)
        assert "language_model" in config.target_modules
        found = load_file(place / PEFT_FILE)
        assert f"base_model.model.{QUERY}.lora_A.weight" in found and len(found) == len(expected)


def test_adapters_have_a_folder_whose_names_vllm_maps_to_its_own(exports):
    """By the rules of vLLM's source: `base_model.model.` is taken off, prefixes of the mapper are
    replaced, and what is then no module's name is silently without effect."""
    place = exports["adapter"].folder
    mapped, ours = {}, load_file(place / PEFT_FILE)
    for name, tensor in load_file(place / "vllm" / PEFT_FILE).items():
        bare = name.removeprefix("base_model.model.")
        for prefix, new in (
            ("thinker.lm_head.", "language_model.lm_head."),
            ("thinker.model.", "language_model.model."),
            ("thinker.", ""),
        ):
            bare = new + bare.removeprefix(prefix) if bare.startswith(prefix) else bare
        mapped[bare] = tensor
    # Modules of vLLM's class: a Qwen2ForCausalLM called language_model.
    expected = {
        n.replace("base_model.model.model.language_model.", "language_model.model."): t
        for n, t in ours.items()
    }
    assert mapped.keys() == expected.keys()
    assert all(torch.equal(mapped[name], tensor) for name, tensor in expected.items())
    config = peft.LoraConfig.from_pretrained(place / "vllm")
    assert (config.r, config.lora_alpha) == (4, 4)
    assert config.target_modules == {"q_proj", "k_proj", "v_proj", "o_proj"} | {
        f"{each}_proj" for each in ("gate", "up", "down")
    }
    assert "--lora-modules trained=./vllm" in (place / "README.md").read_text()


def test_a_thinkers_folder_holds_the_thinker_and_nothing_else(exports):
    files = {"README.md", "config.json", "model.safetensors"}
    for name, beside in (("merged", HUB), ("merged_alone", SAVED)):
        # It silences the tokens of modalities, and ids without a token.
        more = {"generation_config.json"}
        assert {p.name for p in exports[name].folder.iterdir()} == beside | files | more
        stated = json.loads((exports[name].folder / "generation_config.json").read_text())
        assert (stated["suppress_tokens"], stated["eos_token_id"]) == (BANNED, [2])
    for name in ("merged", "all"):
        place = exports[name].folder
        config = json.loads((place / "config.json").read_text())
        assert config["model_type"] == "qwen2_5_omni_thinker"
        assert config["architectures"] == [THINKER]
        assert not [n for n in tensors_of(place) if n.startswith(SPOKEN)]
    assert json.loads((exports["all"].folder / "config.json").read_text())["dtype"] == "bfloat16"


def test_a_thinkers_folder_loads_as_it_is(root, exports):
    for name, base in (("merged", "full"), ("merged_alone", "thinker")):
        place = exports[name].folder
        loaded, info = Qwen2_5OmniThinkerForConditionalGeneration.from_pretrained(
            place, output_loading_info=True
        )
        assert not info["missing_keys"] and not info["unexpected_keys"]
        before = Qwen2_5OmniThinkerForConditionalGeneration.from_pretrained(root / base)
        after = dict(loaded.named_parameters())
        same = {n for n, tensor in before.named_parameters() if torch.equal(tensor, after[n])}
        assert {n for n in after if "tower" in n or "visual" in n} <= same
        assert f"{QUERY}.weight" not in same and after.keys() - same


def test_processors_are_those_of_the_base(root, exports):
    bases = {"adapter": "full", "merged": "full", "merged_alone": "thinker", "whole": "full"}
    for name, base in bases.items():
        folders = (exports[name].folder, root / base)
        one, other = (Qwen2_5OmniProcessor.from_pretrained(place) for place in folders)
        made = [
            processor(
                text="<|audio_bos|> <|AUDIO|> w3", audio=[example_clip()], return_tensors="pt"
            )
            for processor in (one, other)
        ]
        assert one.chat_template == other.chat_template
        for key in ("input_ids", "input_features"):
            assert torch.equal(made[0][key], made[1][key])


@pytest.mark.parametrize(
    ("name", "run", "base"), [("whole", "lora", "full"), ("whole_all", "all", "bf16")]
)
def test_a_whole_is_the_base_with_the_trained_part_in_it(root, exports, name, run, base):
    place, before, changed = exports[name].folder, tensors_of(root / base), trained(root, run)
    found = tensors_of(place)
    assert found.keys() == before.keys() and [n for n in found if n.startswith(SPOKEN)]
    adapted = {f"{n.partition('.lora_')[0]}.weight" for n in changed if ".lora_" in n}
    for stored, tensor in found.items():
        own = thinker_name(stored)
        if own in changed:
            assert torch.equal(tensor, changed[own].to(tensor.dtype)), stored
        elif own in adapted:
            parts = [f"{own.removesuffix('.weight')}.lora_{x}.default.weight" for x in "AB"]
            down, up = (changed[part] for part in parts)
            torch.testing.assert_close(tensor, before[stored] + 1.5 * up @ down)
        else:
            assert same_bytes(tensor, before[stored]), stored
    count = exports[name].verdict.figures["tensors copied, the same to the byte"]
    assert count == len(found) - 27  # of the small language model and its output layer


def test_a_whole_has_every_other_file_of_the_base(root, exports):
    place, base = exports["whole_all"].folder, root / "bf16"
    names = HUB | {SPEAKERS, "config.json", "README.md", "LICENSE", "voices"}
    names |= {"model.safetensors"}
    assert {p.name for p in place.iterdir()} == names
    for name in (SPEAKERS, "LICENSE", "voices/notes.txt", "chat_template.json", "tokenizer.json"):
        assert (place / name).read_bytes() == (base / name).read_bytes()
    assert "adrpo_scale" in (place / "README.md").read_text()
    config = json.loads((place / "config.json").read_text())
    assert config["model_type"] == "qwen2_5_omni" and config["_name_or_path"] == "omni"
    assert config["dtype"] == config["torch_dtype"]


def test_a_wholes_shards_have_an_index_that_names_them(exports):
    for name in ("whole", "all"):
        place = exports[name].folder
        index = json.loads((place / "model.safetensors.index.json").read_text())
        names = sorted(path.name for path in place.glob("*.safetensors"))
        assert len(names) >= 2 and names[0] == f"model-00001-of-{len(names):05d}.safetensors"
        where = {n: file for file in names for n in load_file(place / file)}
        assert index["weight_map"] == where


def test_what_is_stored_lower_or_higher_stays_so(root, exports):
    """--dtype is of what was trained: what the policy does without stays the base's."""
    dtypes = {n: t.dtype for n, t in tensors_of(exports["whole_all"].folder).items() if t.ndim == 2}
    assert {d for n, d in dtypes.items() if n.startswith("thinker.model.")} == {torch.float32}
    assert {d for n, d in dtypes.items() if "audio_tower" in n} == {torch.bfloat16}
    assert {d for n, d in dtypes.items() if n.startswith("token2wav.")} == {torch.float32}


def test_a_system_message_of_training_goes_into_the_template(exports):
    place = exports["chat"].folder
    assert not (place / "chat_template.json").exists()
    processor = Qwen2_5OmniProcessor.from_pretrained(place)
    asked = [{"role": "user", "content": [{"type": "text", "text": "w3"}]}]
    text = processor.apply_chat_template(asked, tokenize=False, add_generation_prompt=True)
    assert SYSTEM in text and text.index(SYSTEM) < text.index("w3")
