"""Exports of the thinker of Qwen2.5-Omni: of a whole checkpoint and of a folder of its own, loaded
with nothing of this package, equal to the policy, and whole.

The runs are trained once. Verifications happen in processes forked from one which has imported
transformers and peft, because that import takes seconds.
"""

from __future__ import annotations

import json
from types import SimpleNamespace

import huggingface_hub
import peft
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import Qwen2_5OmniProcessor, Qwen2_5OmniThinkerForConditionalGeneration

from adrpo_scale.checkpoint.locate import open_checkpoint
from adrpo_scale.cluster.preflight.estimate import trained_elements
from adrpo_scale.domains.heard import example_clip
from adrpo_scale.domains.omni import SPEAKERS, thinker_name
from adrpo_scale.evaluation.sample import find_source, sample_to, stands_for
from adrpo_scale.export import folder, transformers_layout, verify
from adrpo_scale.export import omni_layout as hearing_layout
from adrpo_scale.export.adapter import PEFT_FILE
from adrpo_scale.export.base import Request
from adrpo_scale.export.exporter import export
from adrpo_scale.export.stored import StoredTensors, is_same
from adrpo_scale.run.build import build_domain, build_trainer
from adrpo_scale.run.load import parse_config
from adrpo_scale.training.media import COMPLETIONS
from tests.support.exported import refused, tensors_of, trained
from tests.support.plain_processes import plain_processes
from tests.support.tiny_audio import PROMPTS, audio_config, save_full, save_prompts, save_thinker
from tests.support.tiny_text import save_tiny, text_config

SECRET = "ada-lovelace"  # part of every path of this file: no export may tell it
LORA = ["domain.lora.rank=4", "domain.lora.alpha=6"]
FULL = ["domain.train=full"]
THINKER, WHOLE = (
    "Qwen2_5OmniThinkerForConditionalGeneration",
    "Qwen2_5OmniForConditionalGeneration",
)
QUERY = "model.language_model.layers.0.self_attn.q_proj"
SPOKEN = ("talker.", "token2wav.")
SYSTEM = 'w20 "w21" {{ w22 }}'


# ---- what is exported ------------------------------------------------------------------------


def save_base(to):
    """A whole checkpoint as a download has it: in bfloat16 but for what speaks, with more files."""
    save_full(to)
    for file in to.glob("*.safetensors"):
        stored = {
            name: tensor if name.startswith("token2wav.") else tensor.to(torch.bfloat16)
            for name, tensor in load_file(file).items()
        }
        save_file(stored, file, {"format": "pt"})
    (to / "README.md").write_text("---\nlicense: apache-2.0\n---\n# Base\n")
    (to / "LICENSE").write_text("The terms of the tiny model.\n")
    (to / "pytorch_model.bin").write_bytes(b"a pickle")
    (to / "voices").mkdir()
    (to / "voices" / "notes.txt").write_text("two voices\n")
    (to / ".cache").mkdir()
    (to / ".cache" / "trace").write_text("of the download\n")
    config = json.loads((to / "config.json").read_text())
    config |= {"torch_dtype": "bfloat16", "_name_or_path": f"/home/{SECRET}/omni"}
    (to / "config.json").write_text(json.dumps(config))


def train_run(root, name, base, settings, trained=True):
    run = root / "runs" / name
    run.mkdir(parents=True)
    if not (root / "prompts.jsonl").exists():
        save_prompts(root / "prompts.jsonl")
    overrides = [f"prompts.train={root / 'prompts.jsonl'}", "optimizer.learning_rate=1e-2"]
    greedy = ["domain.evaluation.temperature=0"]
    # A prompt file in the model's folder would be a file of the model's.
    (root / base / "prompts.jsonl").touch()
    config = audio_config(root / base, [*overrides, *greedy, *settings])
    (root / base / "prompts.jsonl").unlink()
    trainer = build_trainer(config, run)
    if trained:
        trainer.train()
    trainer.saver.save_now()


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """Holds the base models full, bf16 and thinker, and runs/."""
    place = tmp_path_factory.mktemp(SECRET)
    save_full(place / "full")
    save_base(place / "bf16")
    save_thinker(place / "thinker")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ADRPO_CACHE", str(place / "cache"))
        train_run(place, "lora", "full", LORA)
        train_run(place, "all", "bf16", FULL)
        train_run(place, "alone", "thinker", LORA)
        system = f"domain.chat.system={json.dumps(SYSTEM)}"
        train_run(place, "chat", "full", [*LORA, system, "domain.chat.max_prompt_tokens=60"])
        train_run(place, "untrained", "full", LORA, trained=False)
        yield place


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    """Runs `script arguments…` in a process with transformers and peft, imported before."""
    imports = f"from transformers import Qwen2_5OmniProcessor, {THINKER}, {WHOLE}\n"
    imports += "from transformers import Qwen2VLImageProcessor, Qwen2VLVideoProcessor\n"
    imports += "from transformers import GenerationConfig, WhisperFeatureExtractor"
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

    tensors, shards = {"verify": "tensors"}, {"max_shard_bytes": 60_000}
    return {
        "adapter": made("adapter", "lora", "adapter"),
        "adapter_alone": made("adapter_alone", "alone", "adapter", **tensors),
        "merged": made("merged", "lora", "merged"),
        "merged_alone": made("merged_alone", "alone", "merged", **tensors),
        "chat": made("chat", "chat", "merged", verify="none"),
        "all": made("all", "all", "full", **shards),
        "whole": made("whole", "lora", "whole", **shards),
        "whole_all": made("whole_all", "all", "whole", dtype=torch.float32, **tensors),
    }


# ---- equal to the policy ---------------------------------------------------------------------


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
        assert len(off) == 2 and any(how.startswith("greedy generate") for how in off)
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
    call |= {"suppress_tokens": list(range(3, 10))}
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
    source = SimpleNamespace(
        config=source.config.model_copy(update={"domain": changed}), reader=None
    )
    settings = {"per_prompt": 1, "seed": 0, "weights": "trained"}
    sample_to(source, root / "prompts.jsonl", tmp_path, **settings)
    lines = (tmp_path / COMPLETIONS).read_text().splitlines()
    assert [json.loads(line)["tokens"] for line in lines] == expected


# ---- what lies in a folder -------------------------------------------------------------------

PREPARES = {"tokenizer.json", "tokenizer_config.json"}
HUB = PREPARES | {"preprocessor_config.json", "chat_template.json"}
SAVED = PREPARES | {"processor_config.json", "chat_template.jinja"}


def test_an_adapter_folder_is_pefts_with_the_processor(root, exports):
    for name, run, beside in (("adapter", "lora", HUB), ("adapter_alone", "alone", SAVED)):
        place, expected = exports[name].folder, trained(root, run)
        names = {"README.md", "adapter_config.json", PEFT_FILE}
        assert {p.name for p in place.iterdir()} == beside | names
        config = peft.LoraConfig.from_pretrained(place)
        assert (config.task_type, config.r, config.lora_alpha) == ("CAUSAL_LM", 4, 6)
        assert "language_model" in config.target_modules
        found = load_file(place / PEFT_FILE)
        assert f"base_model.model.{QUERY}.lora_A.weight" in found and len(found) == len(expected)


def test_a_thinkers_folder_holds_the_thinker_and_nothing_else(exports):
    files = {"README.md", "config.json", "model.safetensors"}
    for name, beside in (("merged", HUB), ("merged_alone", SAVED)):
        more = {"generation_config.json"} if name == "merged_alone" else set()
        assert {p.name for p in exports[name].folder.iterdir()} == beside | files | more
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
            assert is_same(tensor, before[stored]), stored
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


# ---- refused ---------------------------------------------------------------------------------


def test_a_whole_needs_the_rest_of_it(root, tmp_path):
    message = "thinker holds nothing beside what --as merged exports: .* a full checkpoint"
    refused(root, "alone", tmp_path / "a", "whole", message)
    (root / "full" / SPEAKERS).rename(root / "speakers")
    try:
        refused(root, "lora", tmp_path / "a", "whole", f"full lacks {SPEAKERS}, without which")
        export(str(root / "runs/lora"), Request(tmp_path / "b", "merged", verify="none"))
    finally:
        (root / "speakers").rename(root / "full" / SPEAKERS)


def test_a_language_model_is_no_part(tmp_path):
    save_tiny(tmp_path / "text")
    (tmp_path / "runs" / "text").mkdir(parents=True)
    trainer = build_trainer(text_config(tmp_path / "text"), tmp_path / "runs" / "text")
    trainer.saver.save_now()
    refused(tmp_path, "text", tmp_path / "a", "whole", "holds nothing beside what --as full")


def test_what_training_has_not_changed_is_refused(root, tmp_path):
    for form in ("adapter", "merged", "whole"):
        refused(root, "untrained", tmp_path / "a", form, "none of the 14 trained tensors")
    refused(root, "all", tmp_path / "a", "merged", "use --as full")


# ---- a wrong export does not get through -----------------------------------------------------


@pytest.mark.parametrize("part", ["visual", "token2wav"])
def test_a_changed_copy_is_found(root, tmp_path, monkeypatch, checked, part):
    """Of parts that none of the outputs depends on."""
    honest, done = StoredTensors.read, []

    def wrong(self, name, start=0, stop=None):
        tensor = honest(self, name, start, stop)
        is_first = part in name and stop is None and not done
        done.extend([name] * is_first)
        return tensor + 0.01 if is_first else tensor

    monkeypatch.setattr(StoredTensors, "read", wrong)
    refused(root, "lora", tmp_path / "a", "whole", part, verify="tensors")
    assert done


def test_another_tower_is_heard(root, tmp_path, monkeypatch, checked):
    """Before a byte is compared: the outputs are of a clip that went through it."""
    honest = StoredTensors.read

    def wrong(self, name, start=0, stop=None):
        tensor = honest(self, name, start, stop)
        return 1.1 * tensor if name.endswith("audio_tower.proj.weight") else tensor

    monkeypatch.setattr(StoredTensors, "read", wrong)
    refused(root, "lora", tmp_path / "a", "merged", "not the policy: outputs", verify="outputs")


def test_a_wrong_merge_is_found(root, tmp_path, monkeypatch, checked):
    honest = folder.MergedWeights.read

    def wrong(self, name, start=0, stop=None):
        tensor = honest(self, name, start, stop)
        return tensor * 1.01 if name.endswith("0.self_attn.v_proj.weight") else tensor

    monkeypatch.setattr(folder.MergedWeights, "read", wrong)
    refused(root, "lora", tmp_path / "a", "whole", "not the policy: outputs", verify="outputs")
    refused(root, "lora", tmp_path / "a", "whole", r"v_proj\.weight is off by", verify="tensors")


@pytest.mark.parametrize("level", ["outputs", "tensors"])
def test_what_the_folder_lacks_is_found(root, tmp_path, monkeypatch, checked, level):
    """transformers makes up what is not there, with no more than a warning."""
    honest = StoredTensors.names
    lost = {"thinker.visual.merger.ln_q.weight", "talker.codec_head.weight"}
    monkeypatch.setattr(StoredTensors, "names", lambda self: honest(self) - lost)
    refused(root, "lora", tmp_path / "a", "whole", "missing", verify=level)


def test_another_voice_or_template_is_found(root, tmp_path, monkeypatch, checked):
    honest = hearing_layout.HearingLayout.copies

    def other(self, material, form):
        found = honest(self, material, form)
        (tmp_path / "other").write_bytes(b"another voice")
        return [
            type(copy)(tmp_path / "other", copy.name) if copy.name == SPEAKERS else copy
            for copy in found
        ]

    with monkeypatch.context() as patch:
        patch.setattr(hearing_layout.HearingLayout, "copies", other)
        message = f"{SPEAKERS} is not the base model's"
        refused(root, "lora", tmp_path / "a", "whole", message, verify="tensors")
    monkeypatch.setattr(transformers_layout, "tokenizer_texts", lambda material, names_class: {})
    refused(root, "chat", tmp_path / "a", "adapter", "cannot be used|makes", verify="tensors")


# ---- what an export tells --------------------------------------------------------------------


def test_no_export_tells_paths(root, exports):
    for exported in exports.values():
        for path in (p for p in exported.folder.rglob("*") if p.is_file()):
            data = path.read_bytes()
            assert SECRET.encode() not in data and str(root).encode() not in data, path


RUNNER = """
import os, sys
from pathlib import Path

for folder in sys.argv[1:]:
    os.chdir(folder)
    (block,) = Path("README.md").read_text().split("```python\\n")[1:]
    exec(compile(block.split("```")[0], folder, "exec"), {})
assert not [name for name in sys.modules if name.split(".")[0] == "adrpo_scale"]
"""


def test_the_cards_usage_examples_run_as_they_stand(root, exports, plain, tmp_path):
    (tmp_path / "runner.py").write_text(RUNNER)
    # The base has no id of the hub, so the example says its folder's name.
    link = exports["adapter"].folder / "full"
    link.symlink_to(root / "full")
    try:
        names = ("adapter", "merged_alone", "whole")
        done = plain(tmp_path / "runner.py", *(exports[name].folder for name in names))
    finally:
        link.unlink()
    assert done.returncode == 0, done.stderr


# ---- neighbours ------------------------------------------------------------------------------


def test_a_model_on_the_hub_is_told_by_its_type(monkeypatch):
    monkeypatch.setattr(huggingface_hub, "file_exists", lambda repo, name: False)
    for model_type, domain in (("qwen2_5_omni", "audio"), ("qwen3", "text"), (None, "text")):
        stated = SimpleNamespace(config={"model_type": model_type})
        monkeypatch.setattr(huggingface_hub, "model_info", lambda repo, stated=stated: stated)
        assert stands_for("nobody/nothing") == domain


@pytest.mark.parametrize(("base", "settings"), [("full", LORA), ("full", FULL), ("thinker", FULL)])
def test_the_room_of_checkpoints_is_estimated(root, base, settings):
    run = {"full": "lora", "thinker": "all"}[base] if settings is LORA else "all"
    config = audio_config(root / base, settings)
    (root / base / "prompts.jsonl").unlink()
    elements = sum(tensor.numel() for tensor in trained(root, run).values())
    assert trained_elements(config) == elements
