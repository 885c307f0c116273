"""Small random scorers of pictures in the layouts of their authors, and what they are shown."""

from __future__ import annotations

import json

import numpy as np
import open_clip
import torch
from transformers import BertTokenizer, CLIPConfig, CLIPModel

from adrpo_scale.core.types import Prompt
from adrpo_scale.demo.image.clip import build_clip_tokenizer
from adrpo_scale.run.registry import REWARDS
from tests.support.blip_by_hand import random_weights

CPU = torch.device("cpu")
WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "red", "ring", "two", "green"]
WORDS += ["triangles", "blue", "square", "left", "of"]
TEXTS = [
    "a red ring",
    "two green triangles",
    "A red ring",
    "a blue square left of a red ring",
    "ring",
]
PROMPTS = [Prompt(i, text) for i, text in enumerate(TEXTS)]
SIZES = [(40, 56), (64, 48), (32, 32), (80, 33), (50, 50)]
_drawn = np.random.default_rng(0)
IMAGES = [_drawn.integers(0, 256, (*size, 3), dtype=np.uint8) for size in SIZES]
HEAD = (1024, 128, 64, 16, 1)


def scorer(kind, **settings):
    reward = REWARDS[kind]
    return reward(reward.Config(kind=kind, **settings), CPU)


def head_weights(width, prefix="layers."):
    generator = torch.Generator().manual_seed(1)
    found = {}
    for place, inside, outside in zip((0, 2, 4, 6, 7), (width, *HEAD), HEAD, strict=False):
        weight = torch.randn(outside, inside, generator=generator) / inside**0.5
        found[f"{prefix}{place}.weight"] = weight
        found[f"{prefix}{place}.bias"] = torch.randn(outside, generator=generator)
    return found


def save_clip(folder):
    """A small random CLIP that reads the image demo's words: (the model, its tokenizer)."""
    tokenizer = build_clip_tokenizer()
    tower = {"hidden_size": 32, "intermediate_size": 64, "num_attention_heads": 2}
    tower |= {"num_hidden_layers": 2, "projection_dim": 24}
    text = {"vocab_size": len(tokenizer), "max_position_embeddings": 12}
    text |= {f"{name}_token_id": getattr(tokenizer, f"{name}_token_id") for name in ("bos", "eos")}
    vision_config = tower | {"image_size": 32, "patch_size": 16}
    torch.manual_seed(0)
    model = CLIPModel(
        CLIPConfig(text_config=tower | text, vision_config=vision_config, projection_dim=24)
    ).eval()
    for parameter in model.parameters():
        parameter.data.mul_(3)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return model, tokenizer


def save_bert(folder):
    """BERT's tokenizer of a few words."""
    tokenizer = BertTokenizer({word: place for place, word in enumerate(WORDS)})
    tokenizer.save_pretrained(folder)
    return tokenizer


def image_reward_weights():
    """(BLIP, head, all with the names of `ImageReward.pt`)."""
    blip, head = random_weights(), head_weights(128)
    whole = {f"blip.{name}": tensor for name, tensor in blip.items()}
    whole |= {f"mlp.{name}": tensor for name, tensor in head.items()}
    whole["blip.text_encoder.embeddings.position_ids"] = torch.arange(40)[None]
    return blip, head, whole


def write_hps(folder):
    """A small model of open_clip as HPSv2's authors write theirs, and the model."""
    settings = {
        "embed_dim": 16,
        "vision_cfg": {"image_size": 28, "layers": 1, "width": 32, "head_width": 16}
        | {"patch_size": 14},
        "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 16, "heads": 2}
        | {"layers": 1},
    }
    torch.manual_seed(0)
    model = open_clip.CLIP(**settings).eval()
    (folder / "open_clip_config.json").write_text(json.dumps({"model_cfg": settings}))
    state = {"epoch": 1, "state_dict": model.state_dict(), "name": "hps"}
    torch.save(state, folder / "HPS_v2.1_compressed.pt")
    return model
