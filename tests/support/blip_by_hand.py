"""BLIP written out, on a dictionary of tensors with the names that its authors gave them."""

from __future__ import annotations

import torch
from torch.nn.functional import conv2d, gelu, layer_norm, linear, softmax

HEAD = 64


def shapes(width=64, hidden=128, layers=2, side=32, patch=16, words=60, places=40, head=True):
    """name → shape, as in `ImageReward.pt` without its prefix; head: with the projections."""
    found = {
        "visual_encoder.cls_token": (1, 1, width),
        "visual_encoder.pos_embed": (1, 1 + (side // patch) ** 2, width),
        "visual_encoder.patch_embed.proj": (width, 3, patch, patch),
        "visual_encoder.norm": (width,),
        "text_encoder.embeddings.word_embeddings": (words, hidden),
        "text_encoder.embeddings.position_embeddings": (places, hidden),
        "text_encoder.embeddings.LayerNorm": (hidden,),
    }
    for k in range(layers):
        block, layer = f"visual_encoder.blocks.{k}.", f"text_encoder.encoder.layer.{k}."
        found |= {block + "norm1": (width,), block + "norm2": (width,)}
        found |= {block + "attn.qkv": (3 * width, width), block + "attn.proj": (width, width)}
        found |= {block + "mlp.fc1": (2 * width, width), block + "mlp.fc2": (width, 2 * width)}
        for attention, seen in (("attention", hidden), ("crossattention", width)):
            place = layer + attention
            found |= {f"{place}.self.query": (hidden, hidden)}
            found |= {f"{place}.self.{name}": (hidden, seen) for name in ("key", "value")}
            found |= {f"{place}.output.dense": (hidden, hidden)}
            found |= {f"{place}.output.LayerNorm": (hidden,)}
        found |= {layer + "intermediate.dense": (2 * hidden, hidden)}
        found |= {
            layer + "output.dense": (hidden, 2 * hidden),
            layer + "output.LayerNorm": (hidden,),
        }
    if head:
        found |= {"vision_proj": (16, width), "text_proj": (16, hidden), "itm_head": (2, hidden)}
    return found


def random_weights(seed=0, **sizes):
    """The tensors of a small BLIP, random."""
    generator = torch.Generator().manual_seed(seed)

    def draw(shape, middle=0.0):
        return middle + 0.2 * torch.randn(shape, generator=generator)

    found = {}
    for name, shape in shapes(**sizes).items():
        if name.endswith(("cls_token", "pos_embed")):
            found[name] = draw(shape)
            continue
        is_norm = name.endswith(("norm", "norm1", "norm2", "LayerNorm"))
        found[f"{name}.weight"] = draw(shape, float(is_norm))
        if not name.endswith("_embeddings"):
            found[f"{name}.bias"] = draw(shape[:1])
    return found


def picture_states(weights, pixels):
    """The vision transformer's states [N, 1 + patches, width]: layers are normalised before."""

    def of(name, x):
        return linear(x, weights[f"{name}.weight"], weights[f"{name}.bias"])

    def norm(name, x):
        return layer_norm(x, x.shape[-1:], weights[f"{name}.weight"], weights[f"{name}.bias"], 1e-6)

    first = "visual_encoder.patch_embed.proj"
    kernel = weights[f"{first}.weight"]
    x = conv2d(pixels, kernel, weights[f"{first}.bias"], stride=kernel.shape[-1])
    x = x.flatten(2).transpose(1, 2)
    start = weights["visual_encoder.cls_token"].expand(len(x), 1, -1)
    x = torch.cat([start, x], dim=1) + weights["visual_encoder.pos_embed"]
    k = 0
    while f"visual_encoder.blocks.{k}.norm1.weight" in weights:
        block = f"visual_encoder.blocks.{k}."
        query, key, value = of(block + "attn.qkv", norm(block + "norm1", x)).chunk(3, dim=-1)
        x = x + of(block + "attn.proj", attended(query, key, value))
        x = x + of(block + "mlp.fc2", gelu(of(block + "mlp.fc1", norm(block + "norm2", x))))
        k += 1
    return norm("visual_encoder.norm", x)


def prompt_states(weights, ids, mask, seen=None):
    """BERT's states [N, T, hidden]: layers are normalised after. seen: states of pictures that the
    prompts attend to."""

    def of(name, x):
        return linear(x, weights[f"{name}.weight"], weights[f"{name}.bias"])

    def norm(name, x):
        at = weights[f"{name}.weight"], weights[f"{name}.bias"]
        return layer_norm(x, x.shape[-1:], *at, 1e-12)

    place = "text_encoder.embeddings."
    x = weights[place + "word_embeddings.weight"][ids]
    x = norm(place + "LayerNorm", x + weights[place + "position_embeddings.weight"][: ids.shape[1]])
    k = 0
    while f"text_encoder.encoder.layer.{k}.output.dense.weight" in weights:
        layer = f"text_encoder.encoder.layer.{k}."

        def attend(kind, x, other, mask, layer=layer):
            place = layer + kind
            parts = (
                of(f"{place}.self.{n}", y)
                for n, y in zip(("query", "key", "value"), (x, other, other), strict=True)
            )
            return norm(
                f"{place}.output.LayerNorm", of(f"{place}.output.dense", attended(*parts, mask)) + x
            )

        x = attend("attention", x, x, mask)
        if seen is not None:
            x = attend("crossattention", x, seen, None)
        inner = of(layer + "output.dense", gelu(of(layer + "intermediate.dense", x)))
        x = norm(layer + "output.LayerNorm", inner + x)
        k += 1
    return x


def attended(query, key, value, mask=None):
    """Attention in heads of 64."""
    query, key, value = (x.unflatten(-1, (-1, HEAD)).transpose(1, 2) for x in (query, key, value))
    scores = query @ key.transpose(-1, -2) / HEAD**0.5
    if mask is not None:
        scores = scores.masked_fill(mask[:, None, None] == 0, -torch.inf)
    return (softmax(scores, -1) @ value).transpose(1, 2).flatten(2)
