"""Attempts on what holds hostile neighbours off: folders of models that want to be more than read,
keys in texts, and messages between ranks. All are seeded."""

from __future__ import annotations

import builtins
import json
import os
import random
import shutil
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace
from urllib.parse import quote

import numpy as np
import pytest
import torch
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    CLIPModel,
    CLIPProcessor,
)

from adrpo_scale.core import secrets
from adrpo_scale.core.errors import AdrpoError
from adrpo_scale.core.paths import resolve_path
from adrpo_scale.core.plain_objects import packed, unpacked
from adrpo_scale.core.printable import printable
from adrpo_scale.core.tensor_files import FileFacts
from adrpo_scale.domains.chat import ChatConfig
from adrpo_scale.domains.language_model import LanguageModel
from adrpo_scale.domains.pipelines import load_encoder, load_vae
from adrpo_scale.domains.sd3_encoders import encoders_of
from adrpo_scale.export.diffusers_layout import other_files
from adrpo_scale.export.omni_layout import HearingLayout
from adrpo_scale.export.transformers_layout import TransformersLayout
from adrpo_scale.hub.loaders import load_settings, load_weights
from tests.support.tiny import MODEL
from tests.support.tiny_text import save_tiny

pytestmark = pytest.mark.slow

TEXT_FILES = [
    *("config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json"),
    *("chat_template.jinja", "special_tokens_map.json", "vocab.json", "merges.txt", "a.model"),
    *("LICENSE", "LICENCE.txt", "NOTICE", "USE_POLICY.md", "additional_chat_templates/x.jinja"),
]
SOUND_FILES = [
    *("preprocessor_config.json", "processor_config.json", "chat_template.json"),
    *("video_preprocessor_config.json", "spk_dict.pt", "sub/any.txt"),
]


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    folder = tmp_path_factory.mktemp("text") / "model"
    save_tiny(folder)
    return folder


# ---- the base of an export -----------------------------------------------------------------------


def link_out(folder, name, how):
    """A link at `name` to a secret outside of the folder."""
    secret, place = folder.parent / "secret.json", folder / name
    secret.write_text('{"secret": 1}')
    place.parent.mkdir(parents=True, exist_ok=True)
    place.unlink(missing_ok=True)
    above = Path(os.path.relpath(folder, place.parent))
    (folder / "chained").symlink_to("chained-2")
    (folder / "chained-2").symlink_to(secret)
    (folder / "outside").symlink_to(folder.parent)
    place.symlink_to(
        {
            "absolute": secret,
            "relative": above / ".." / "secret.json",
            "chain": above / "chained",
            "through a folder": above / "outside" / "secret.json",
        }[how]
    )


@pytest.mark.parametrize("how", ["absolute", "relative", "chain", "through a folder"])
@pytest.mark.parametrize("name", [*TEXT_FILES, *SOUND_FILES])
def test_a_link_out_of_the_base_is_refused(text, tmp_path, name, how):
    folder = tmp_path / "base"
    shutil.copytree(text, folder)
    link_out(folder, name, how)
    part = SimpleNamespace(needs=("spk_dict.pt",), whole=None)
    material = SimpleNamespace(
        folder=folder, target=SimpleNamespace(component="", part=part, chat=None)
    )
    layouts = [(HearingLayout(), "whole")]
    layouts += [(HearingLayout(), "merged")] * (name in SOUND_FILES[:4])
    layouts += [(TransformersLayout(), "merged")] * (name in TEXT_FILES)
    for layout, form in layouts:
        with pytest.raises(AdrpoError, match="outside of the model's folder"):
            layout.copies(material, form)


NAMES = ["../x", "..", ".", "/etc", "a/b", "vae/..", "~", "vae/", "./vae", "\\x", "C:\\x", "x\0y"]
NAMES += ["x\ny", "-x", "vae ", "%2e%2e", "${HOME}", "*", "\u202ex", "", " ", "é/..", "x:y"]


@pytest.mark.parametrize("name", NAMES)
def test_a_component_with_any_other_name_is_refused(tmp_path, name):
    folder = tmp_path / "sd3"
    shutil.copytree(resolve_path(MODEL), folder)
    index = json.loads((folder / "model_index.json").read_text())
    index[name] = ["diffusers", "AutoencoderKL"]
    (folder / "model_index.json").write_text(json.dumps(index))
    material = SimpleNamespace(folder=folder, target=SimpleNamespace(component="transformer"))
    with pytest.raises(AdrpoError, match="expected the name of a folder beside it"):
        other_files(material)


# ---- code that comes with a model ----------------------------------------------------------------

OWN = {"model_type": "own", "tokenizer_class": "Own", "processor_class": "Own"}
OWN |= {"image_processor_type": "Own", "feature_extractor_type": "Own", "architectures": ["Own"]}
AUTO = ["Config", "Processor", "ImageProcessor", "FeatureExtractor", "Model", "ModelForCausalLM"]
AUTO_MAP = {f"Auto{name}": "own.Own" for name in AUTO} | {"AutoTokenizer": ["own.Own", "own.Own"]}
WAYS = {
    "clip": [
        lambda f: load_settings(AutoConfig, f),
        lambda f: load_settings(CLIPProcessor, f, "processor"),
        lambda f: load_settings(AutoTokenizer, f, "tokenizer"),
        lambda f: load_weights(CLIPModel, f, "model"),
    ],
    "text": [
        lambda f: LanguageModel(f, "x", ChatConfig()).spec("eager").build(),
        lambda f: load_weights(AutoModelForCausalLM, f, "model"),
    ],
    "sd3": [
        lambda f: encoders_of(f, False, 77),
        lambda f: load_encoder(f / "text_encoder", torch.float32),
        lambda f: load_vae(f / "vae", torch.float32),
    ],
}


def poisoned(source, to, file, more, mark):
    """A copy in which every file of that name names code beside it."""
    shutil.copytree(source, to)
    code = f"from pathlib import Path\nPath({str(mark)!r}).touch()\n"
    code += "from transformers import PretrainedConfig\n"
    code += "class Own(PretrainedConfig):\n    model_type = 'own'\n"
    for folder in [to, *(path for path in to.iterdir() if path.is_dir())]:
        (folder / "own.py").write_text(code)
    for path in to.rglob(file):
        content = json.loads(path.read_text())
        path.write_text(json.dumps({**content, "auto_map": AUTO_MAP, **more}))


@pytest.mark.parametrize("more", [{}, OWN], ids=["known", "unknown"])
@pytest.mark.parametrize("kind", WAYS)
def test_no_file_of_a_model_makes_its_code_run(text, tmp_path, monkeypatch, kind, more):
    monkeypatch.setattr(builtins, "input", lambda *_: "y")
    monkeypatch.setenv("HF_MODULES_CACHE", str(tmp_path / "modules"))
    mark = tmp_path / "code-ran"
    demos = {"clip": "demo:image/reward_clip", "sd3": MODEL}
    source = text if kind == "text" else Path(resolve_path(demos[kind]))
    files = {path.name for path in source.rglob("*.json")} | {"none"}
    tried = 0
    for file in sorted(files):
        for number, load in enumerate(WAYS[kind]):
            folder = tmp_path / f"{file}-{number}"
            poisoned(source, folder, file, more, mark)
            with suppress(AdrpoError):
                load(folder)  # without the code, or not at all
            assert not mark.exists(), (file, number)
            shutil.rmtree(folder)
            tried += 1
    assert tried >= 8


# ---- keys ----------------------------------------------------------------------------------------


def written(random, key):
    return random.choice(
        [
            *(key, repr(key), json.dumps(key), quote(key, safe=""), f"Bearer {key}", key * 3),
            *(str(key.encode()), json.dumps({"e": [key]}), json.dumps(key).replace("/", "\\/")),
        ]
    )


def test_no_key_is_shown_in_any_text_or_cut(monkeypatch):
    draw = random.Random(0)
    letters = [chr(code) for code in range(0x21, 0x7F)]
    for _ in range(3000):
        for name in ("_bare", "_forms"):
            monkeypatch.setattr(secrets, name, [])
        key = "".join(draw.choice(letters) for _ in range(draw.choice([8, 9, 20, 51, 164, 2000])))
        secrets.keep(key)
        text = " " * draw.randrange(400) + written(draw, key) + " " * draw.randrange(50)
        cut = text[: draw.randrange(1, len(text) + 1)]
        for shown in (printable(text), secrets.beginning(cut, draw.choice([10, 300, 5000]))):
            assert not any(key[at : at + 8] in shown for at in range(min(len(key) - 7, 40)))


# ---- messages between ranks ----------------------------------------------------------------------


def test_a_damaged_message_is_an_error_or_a_value():
    draw = random.Random(0)
    values = [
        {"a": [1, 2.5, None, "ü"], "p": Path("/a")},
        [FileFacts(f"n{i}", i, "x") for i in range(5)],
        {"t": torch.arange(8.0)},
        np.arange(12.0).reshape(3, 4),
        (1, RuntimeError("x")),
    ]
    whole = [packed(value) for value in values]
    refused = 0
    for _ in range(6000):
        data = bytearray(draw.choice(whole))
        for _ in range(draw.randrange(1, 4)):
            at, how = draw.randrange(max(1, len(data) - 1)), draw.randrange(3)
            if how == 0:
                data[at] ^= 1 << draw.randrange(8)
            elif how == 1:
                del data[at : at + draw.randrange(1, 9)]
            else:
                data[at:at] = bytes(draw.randrange(256) for _ in range(draw.randrange(1, 5)))
            data = data or bytearray(b"x")
        try:
            unpacked(bytes(data))
        except RuntimeError:
            refused += 1
    assert refused > 1000
