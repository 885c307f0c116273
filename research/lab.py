"""Throw-away laboratory: a small world of glyphs, its base, and the loop of ADRPO in plain torch.

The modules of demo:image are reused with other constants (3x3 cells), by patching them before use.
"""

from __future__ import annotations

import itertools
import time
from dataclasses import dataclass, replace

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

import adrpo_scale.demo.image.clip as clip_mod
import adrpo_scale.demo.image.sd3 as sd3_mod
import adrpo_scale.demo.image.task as task
from adrpo_scale.demo.image.task import ImagePrompt, Spec, Thing, prompt_text

torch.set_num_threads(1)
GRID, CELL = 3, 5
SIZE = GRID * CELL
TOKENS = 10
T5 = 1
HEADS = 3
HEAD = 32


def patch(colors: int = 3) -> None:
    for module in (task, clip_mod, sd3_mod):
        for name, value in (("GRID", GRID), ("SIZE", SIZE), ("TOKENS", TOKENS)):
            if hasattr(module, name):
                setattr(module, name, value)
    clip_mod.enumerate_prompts = sd3_mod.enumerate_prompts = enumerate_prompts
    clip_mod.render_dataset = render_dataset
    clip_mod.build_clip_tokenizer.cache_clear()


COLORS = ("red", "green", "blue")  # of task.COLORS, a prefix
KINDS_USED = ("left of", "above")


def things() -> list[Thing]:
    return [Thing(s, c) for c in COLORS for s in task.SHAPES]


def enumerate_prompts() -> tuple[ImagePrompt, ...]:
    specs = [
        Spec(pair, relation)
        for relation in KINDS_USED
        for pair in itertools.permutations(things(), 2)
    ]
    return tuple(ImagePrompt(prompt_text(s), s) for s in specs)


def wrong_modes(spec: Spec) -> list[Spec]:
    a, b = spec.things
    return [Spec((b, a), spec.relation)]  # reversed


def split(seed: int = 0, pairs_out: int = 6) -> tuple[list[ImagePrompt], list[ImagePrompt]]:
    """Held out: whole unordered pairs of things, in both orders and relations."""
    rng = np.random.default_rng(seed)
    pairs = list(itertools.combinations(things(), 2))
    out = {frozenset(pairs[i]) for i in rng.choice(len(pairs), pairs_out, replace=False)}
    train = [p for p in enumerate_prompts() if frozenset(p.spec.things) not in out]
    return train, [p for p in enumerate_prompts() if frozenset(p.spec.things) in out]


def draw_spec(spec: Spec, right: float, rng: np.random.Generator) -> Spec:
    if rng.random() < right:
        return spec
    modes = wrong_modes(spec)
    return modes[rng.integers(len(modes))]


def render_dataset(prompts, copies, seed, right=1.0):
    rng = np.random.default_rng(seed)
    return np.stack(
        [[task.render(draw_spec(p.spec, right, rng), rng) for _ in range(copies)] for p in prompts]
    )


@dataclass
class Base:
    transformer: torch.nn.Module
    clip: torch.nn.Module
    embeds: dict[str, tuple[Tensor, Tensor]]


def encode(encoder, texts):
    with torch.no_grad():
        ids = clip_mod.token_ids(clip_mod.build_clip_tokenizer(), texts)
        out = encoder(ids, output_hidden_states=True)
        hidden = out.hidden_states[-2].repeat(1, 1, 2)
        return torch.cat([hidden, torch.zeros_like(hidden[:, :T5])], 1), out.text_embeds.repeat(
            1, 2
        )


def pretrain(
    encoder, seed, steps, batch, lr, right, layers=3, copies=120, log=print, evaluate=None
):
    prompts = enumerate_prompts()
    embeds, pooled = encode(encoder, [*(p.text for p in prompts), ""])
    rendered = render_dataset(prompts, copies, seed + 1, right)
    images = torch.stack([clip_mod.to_pixels(c) for c in rendered])
    recipe = sd3_mod.Sd3Recipe(steps=steps, batch=batch, learning_rate=lr)
    torch.manual_seed(seed)
    model = build(layers).train()
    opt = torch.optim.AdamW(model.parameters(), lr, betas=(0.9, recipe.beta2), weight_decay=0.01)
    sched = torch.optim.lr_scheduler.LambdaLR(opt, lambda k: sd3_mod._learning_rate(k, recipe))
    gen = torch.Generator().manual_seed(seed + 2)
    start = time.process_time()
    mean = []
    for step in range(steps):
        image, text, noise, sigma = sd3_mod._draw_batch(images, recipe, gen)
        s = sigma[:, None, None, None]
        v = model(
            hidden_states=(1 - s) * image + s * noise,
            timestep=1000 * sigma,
            encoder_hidden_states=embeds[text],
            pooled_projections=pooled[text],
        ).sample
        loss = (v - (noise - image)).square().mean()
        model.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        opt.step()
        sched.step()
        mean.append(loss.item())
        if (step + 1) % 500 == 0:
            text = evaluate(model) if evaluate else ""
            log(
                f"step {step + 1} loss {np.mean(mean[-300:]):.4f} cpu {time.process_time() - start:.0f} {text}"
            )
    return model.eval().requires_grad_(False)


def build(layers=3):
    return sd3_mod.SD3Transformer2DModel(
        sample_size=SIZE,
        patch_size=CELL,
        in_channels=3,
        out_channels=3,
        num_layers=layers,
        num_attention_heads=HEADS,
        attention_head_dim=HEAD,
        joint_attention_dim=2 * clip_mod.WIDTH,
        pooled_projection_dim=2 * clip_mod.PROJECTION,
        caption_projection_dim=HEAD * HEADS,
        pos_embed_max_size=GRID,
        qk_norm="rms_norm",
    )


def velocity(model, x, t, seq, pooled):
    return -model(
        hidden_states=x,
        timestep=1000 * (1 - t),
        encoder_hidden_states=seq,
        pooled_projections=pooled,
        return_dict=False,
    )[0]


@torch.no_grad()
def sample(model, seq, pooled, gen, steps=8, guidance=1.0, empty=None):
    x = torch.randn(len(seq), 3, SIZE, SIZE, generator=gen)
    for k in range(steps):
        t = torch.full((len(seq),), k / steps)
        v = velocity(model, x, t, seq, pooled)
        if guidance != 1.0:
            e = velocity(model, x, t, empty[0].expand_as(seq), empty[1].expand_as(pooled))
            v = e + guidance * (v - e)
        x = x + v / steps
    return x


def to_images(x):
    return ((x / 2 + 0.5).clamp(0, 1) * 255).round().to(torch.uint8).permute(0, 2, 3, 1).numpy()


def verdicts(images, specs):
    """Shares of right, known wrong mode, readable otherwise, unreadable."""
    counts = np.zeros(4)
    right = np.zeros(len(specs))
    for i, (image, spec) in enumerate(zip(images, specs)):
        glyphs = task.parse_image(image)
        if glyphs is None:
            counts[3] += 1
        elif task._satisfies(glyphs, spec):
            counts[0] += 1
            right[i] = 1
        elif any(task._satisfies(glyphs, s) for s in wrong_modes(spec)):
            counts[1] += 1
        else:
            counts[2] += 1
    return counts / max(1, len(specs)), right


@torch.no_grad()
def clip_scores(clip, x, text_embeds):
    # pixels are rounded, as the product's reward sees them
    pixels = clip_mod.to_pixels(to_images(x))
    out = clip.get_image_features(pixel_values=pixels)
    out = out if isinstance(out, Tensor) else out.pooler_output
    return 100 * (F.normalize(out, dim=-1) * text_embeds).sum(-1)
