"""A small Qwen2.5-Omni with random weights in the real folder layouts, clips made by code, and runs
of seconds, for tests of the audio domain.

    full/      config.json of the whole model, thinker.* with talker.* and token2wav.* beside them,
               preprocessor_config.json, chat_template.json and spk_dict.pt, as the hub's
               checkpoints have them; transformers' whole class loads it
    thinker/   what transformers 5 saves of a thinker and of a processor
"""

from __future__ import annotations

import json
import tempfile
import wave
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from transformers import (
    PreTrainedTokenizerFast,
    Qwen2_5OmniConfig,
    Qwen2_5OmniForConditionalGeneration,
    Qwen2_5OmniProcessor,
    Qwen2_5OmniThinkerConfig,
    Qwen2_5OmniThinkerForConditionalGeneration,
    Qwen2VLImageProcessor,
    Qwen2VLVideoProcessor,
    WhisperFeatureExtractor,
)

from adrpo_scale.demo.audio.model import SPECIAL
from adrpo_scale.run.config import RunConfig
from adrpo_scale.run.load import assign, parse_config, parse_override

TEMPLATE = (  # Qwen2.5-Omni's, without pictures
    "{% for message in messages %}{% if loop.first and message['role'] != 'system' %}"
    "<|im_start|>system\nw50 w51<|im_end|>\n{% endif %}<|im_start|>{{ message['role'] }}\n"
    "{% if message['content'] is string %}{{ message['content'] }}<|im_end|>\n{% else %}"
    "{% for content in message['content'] %}{% if content['type'] == 'audio' or 'audio' in content "
    "%}<|audio_bos|><|AUDIO|><|audio_eos|>{% elif 'text' in content %}{{ content['text'] }}"
    "{% endif %}{% endfor %}<|im_end|>\n{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
WORDS = ["<pad>", "<|im_start|>", "<|im_end|>", *SPECIAL.values(), "user", "assistant", "system"]
WORDS += [f"w{i}" for i in range(52)]
PROMPTS = ["w1 w2", "w3", "w1 w2", "w8 w9", "w10", "w11 w12 w13"]
SECONDS = [0.31, 0.12, 0.31, 0.5, 0.2, 0.44]  # the first and the third have the same tokens
SIZES: dict[str, dict[str, Any]] = {
    "audio_config": {
        "d_model": 16,
        "encoder_layers": 2,
        "encoder_attention_heads": 2,
        "encoder_ffn_dim": 32,
        "num_mel_bins": 16,
        "max_source_positions": 64,
        "n_window": 12,  # so that clips go through in several pieces
        "output_dim": 32,
        "initializer_range": 0.3,
    },
    "vision_config": {
        "depth": 1,
        "hidden_size": 16,
        "intermediate_size": 16,
        "num_heads": 2,
        "patch_size": 4,
        "out_hidden_size": 32,
        "fullatt_block_indexes": [0],
    },
    "text_config": {
        "vocab_size": 72,
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 256,
        "initializer_range": 0.3,
        "rope_parameters": {
            "rope_type": "default",
            "rope_theta": 10000.0,
            "mrope_section": [2, 1, 1],
        },
        "tie_word_embeddings": False,
    },
}


SPEAKS: dict[str, dict[str, Any]] = {  # what a whole model speaks with
    "talker_config": {
        "vocab_size": 64,
        "embedding_size": 32,
        "hidden_size": 16,
        "intermediate_size": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "head_dim": 8,
        "rope_parameters": SIZES["text_config"]["rope_parameters"],
        **{f"tts_codec_{n}_token_id": i for i, n in enumerate(("pad", "start", "end", "mask"))},
        **{f"tts_text_{n}_token_id": i for i, n in enumerate(("pad", "start", "end"))},
        **{f"vision_{n}_token_id": 6 + i for i, n in enumerate(("start", "end"))},
        **{f"audio_{n}_token_id": 8 + i for i, n in enumerate(("start", "end"))},
        **{f"{n}_token_index": 3 + i for i, n in enumerate(("image", "audio", "video"))},
    },
    "token2wav_config": {
        "dit_config": {
            "hidden_size": 16,
            "num_hidden_layers": 1,
            "num_attention_heads": 2,
            "ff_mult": 1,
            "emb_dim": 8,
            "head_dim": 8,
            "num_embeds": 64,
            "mel_dim": 8,
            "enc_emb_dim": 8,
            "enc_dim": 8,
            "enc_channels": [8, 8, 8, 8, 24],
            "enc_attention_channels": 8,
            "enc_se_channels": 8,
            "look_ahead_layers": [0],
            "look_backward_layers": [0],
        },
        "bigvgan_config": {
            "mel_dim": 8,
            "upsample_initial_channel": 16,
            "resblock_kernel_sizes": [3],
            "resblock_dilation_sizes": [[1, 3, 5]],
            "upsample_rates": [2, 2],
            "upsample_kernel_sizes": [4, 4],
        },
    },
}


def tiny_tokenizer() -> PreTrainedTokenizerFast:
    vocabulary = {word: number for number, word in enumerate(WORDS)}
    tokenizer = Tokenizer(WordLevel(vocabulary, unk_token="w0"))
    tokenizer.pre_tokenizer = WhitespaceSplit()
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        bos_token="<|im_start|>",
        eos_token="<|im_end|>",
        unk_token="w0",
        extra_special_tokens=SPECIAL,
    )
    fast.chat_template = TEMPLATE
    return fast


def tiny_features() -> WhisperFeatureExtractor:
    return WhisperFeatureExtractor(feature_size=16, chunk_length=4, return_attention_mask=True)


def tiny_processor() -> Qwen2_5OmniProcessor:
    return Qwen2_5OmniProcessor(
        Qwen2VLImageProcessor(),
        Qwen2VLVideoProcessor(),
        tiny_features(),
        tiny_tokenizer(),
        chat_template=TEMPLATE,
    )


def tiny_config(**changes: Any) -> Qwen2_5OmniThinkerConfig:
    ids = {f"{name[:-6]}_token_index": WORDS.index(SPECIAL[name]) for name in list(SPECIAL)[:3]}
    return Qwen2_5OmniThinkerConfig(
        **SIZES,
        **ids,
        audio_start_token_id=WORDS.index("<|audio_bos|>"),
        audio_end_token_id=WORDS.index("<|audio_eos|>"),
        vision_start_token_id=WORDS.index("<|vision_bos|>"),
        initializer_range=0.3,
        **changes,
    )


def save_thinker(folder: Path, *, seed: int = 0, **changes: Any) -> Path:
    """A thinker of its own, as transformers saves it."""
    torch.manual_seed(seed)
    Qwen2_5OmniThinkerForConditionalGeneration(tiny_config(**changes)).save_pretrained(folder)
    tiny_processor().save_pretrained(folder)
    return folder


def save_full(folder: Path, *, seed: int = 0) -> Path:
    """The same thinker in a whole checkpoint, in the layout of the hub's: two files of weights."""
    folder.mkdir(parents=True)
    with tempfile.TemporaryDirectory() as alone:
        tensors = load_file(save_thinker(Path(alone), seed=seed) / "model.safetensors")
    prefixed = {f"thinker.{name.removeprefix('thinker.')}": t for name, t in tensors.items()}
    config = Qwen2_5OmniConfig(thinker_config=tiny_config().to_dict(), **SPEAKS)
    torch.manual_seed(seed)
    whole = Qwen2_5OmniForConditionalGeneration(config).state_dict()
    speaks = {name: t for name, t in whole.items() if not name.startswith("thinker.")}
    files = {"model-00001-of-00002": prefixed, "model-00002-of-00002": speaks}
    where = {name: f"{file}.safetensors" for file, group in files.items() for name in group}
    for file, group in files.items():
        save_file(group, folder / f"{file}.safetensors", {"format": "pt"})
    (folder / "model.safetensors.index.json").write_text(
        json.dumps({"metadata": {}, "weight_map": where})
    )
    config.save_pretrained(folder)
    voice = {"cond": torch.randn(1, 8), "ref_mel": torch.randn(1, 10, 8), "bos_token": 1}
    torch.save({"Chelsie": voice, "Ethan": voice}, folder / "spk_dict.pt")
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = None
    tokenizer.save_pretrained(folder)
    parts = [Qwen2VLImageProcessor(), tiny_features()]
    settings = [json.loads(part.to_json_string()) for part in parts]
    (folder / "preprocessor_config.json").write_text(json.dumps(settings[0] | settings[1]))
    (folder / "chat_template.json").write_text(json.dumps({"chat_template": TEMPLATE}))
    return folder


def sound(seconds: float, seed: int) -> np.ndarray:
    """float32 samples at 16 kHz: three tones and some noise."""
    rng, t = np.random.default_rng(seed), np.arange(round(16000 * seconds)) / 16000
    tones = sum(np.sin(2 * np.pi * f * t) for f in rng.uniform(100, 4000, 3))
    return (0.2 * tones + 0.05 * rng.standard_normal(len(t))).astype(np.float32)


def save_clip(path: Path, seconds: float, seed: int) -> Path:
    with wave.open(str(path), "wb") as file:
        file.setparams((1, 2, 16000, 0, "NONE", ""))
        file.writeframes((32767 * sound(seconds, seed)).astype("<i2").tobytes())
    return path


def save_prompts(
    path: Path, texts: Sequence[str] = PROMPTS, seconds: Sequence[float | None] = SECONDS
) -> Path:
    """Rows with a clip each, beside the file; None: no clip."""
    rows = []
    for n, (text, length) in enumerate(zip(texts, seconds, strict=True)):
        row = {"prompt": text, "answer": f"w{n}"}
        if length is not None:
            clip = save_clip(path.with_name(f"clip-{n}.wav"), length, n)
            row |= {"audio": clip.name, "audio_folder": str(path.parent)}
        rows.append(json.dumps(row) + "\n")
    path.write_text("".join(rows))
    return path


def audio_config(folder: Path, overrides: Sequence[str] = ()) -> RunConfig:
    """A run of seconds on the model in `folder`, made if it is not there."""
    if not (folder / "config.json").is_file():
        save_thinker(folder)
    prompts = folder / "prompts.jsonl"
    if not prompts.is_file():
        save_prompts(prompts)
    data: dict[str, Any] = {
        "iterations": 1,
        "domain": {
            "name": "audio",
            "model": str(folder),
            "rollout_chunk": 8,
            "chat": {"max_prompt_tokens": 40},
            "rollout": {"max_new_tokens": 12},
            "evaluation": {"max_new_tokens": 12},
        },
        "algorithm": {
            "name": "adrpo",
            "beta0": 0.04,
            "advantage_min": -0.04,
            "advantage_max": 0.04,
            "scale": "group_std",
        },
        "rewards": [
            {"kind": "function", "path": "tests.support.tiny_text:many_kinds", "name": "kinds"}
        ],
        "prompts": {"train": str(prompts), "per_iteration": 4, "group_size": 4},
        "optimizer": {"micro_batch": 4, "learning_rate": 1e-3},
        "evaluation": {"every": 0, "prompts": 4, "samples_per_prompt": 2},
    }
    for override in overrides:
        assign(data, *parse_override(override))
    return parse_config(data)
