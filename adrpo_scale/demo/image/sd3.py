"""The small Stable Diffusion 3 of the image task: transformer, identity VAE, text encoders.

Text layout, in training and with `max_sequence_length = 12` in the pipeline: 12 CLIP positions (two
identical encoders, 64 + 64 = 128 channels), then 12 T5 positions, which are zero without the third
encoder and of size `T5_SCALE` with it. The pooled vector has 48 + 48 = 96 channels. Another number
of T5 positions breaks such a small model.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from diffusers import AutoencoderKL, SD3Transformer2DModel
from torch import Tensor
from transformers import (
    CLIPModel,
    CLIPTextModelWithProjection,
    T5Config,
    T5EncoderModel,
)

from adrpo_scale.demo.image.clip import (
    PROJECTION,
    WIDTH,
    build_clip_tokenizer,
    render_dataset,
    to_pixels,
    token_ids,
)
from adrpo_scale.demo.image.world import IMAGE, World

T5_SCALE = 0.001  # size of the T5 features, too small to change pictures
_CONSTANT = 1000.0  # value of the VAE's helper channels; pixels are in [-1, 1]


@dataclass(frozen=True)
class Sd3Recipe:
    """Pretraining of the transformer; about 240 CPU-seconds on one thread.

    Stopped early on purpose: reinforcement learning needs errors to fix.
    """

    steps: int = 4400
    batch: int = 32
    learning_rate: float = 4e-3
    beta2: float = 0.99
    warmup: int = 100
    shift: float = 2.5  # sigma = shift·u / (1 + (shift − 1)·u), u ~ U(0, 1): more of the noisy end
    dropout: float = 0.1  # share of rows with the empty prompt, for guidance
    copies: int = 60  # rendered images per prompt


def build_text_encoder(clip: CLIPModel) -> CLIPTextModelWithProjection:
    """The text tower of the CLIP as a text encoder of Stable Diffusion 3; float32, frozen."""
    encoder = CLIPTextModelWithProjection(clip.config.text_config)
    wanted = encoder.state_dict().keys()
    encoder.load_state_dict({k: v for k, v in clip.state_dict().items() if k in wanted})
    return encoder.eval().requires_grad_(False)


def build_t5(seed: int, vocab_size: int) -> T5EncoderModel:
    """A tiny random T5 encoder, output float32 [B, L, 128] with a root mean square of T5_SCALE.

    `from_pretrained` refuses a folder without a third encoder.
    """
    torch.manual_seed(seed)
    config = T5Config(
        vocab_size=vocab_size, d_model=2 * WIDTH, d_kv=16, d_ff=WIDTH, num_layers=1, num_heads=2,
        feed_forward_proj="gated-gelu", is_encoder_decoder=False, use_cache=False,
        tie_word_embeddings=False,
    )  # fmt: skip
    encoder = T5EncoderModel(config)
    encoder.encoder.final_layer_norm.weight.data.fill_(T5_SCALE)
    return encoder.eval().requires_grad_(False)


def _centre(weight: Tensor, out_channel: int, in_channel: int, value: float) -> None:
    weight.data[out_channel, in_channel, 1, 1] = value


def build_identity_vae(world: World = IMAGE) -> AutoencoderKL:
    """An AutoencoderKL whose latents are the image: encode and decode are identities.

    Every colour x becomes a group of four channels (x, −x, K, −K). The pair cancels the group's
    mean, K = 1000 dominates its variance, so GroupNorm only divides by a constant, which its weight
    restores; and SiLU(x) − SiLU(−x) = x exactly undoes the non-linearity. Residual branches are
    zero. The log-variance is −30, so even `sample()` of the posterior is the image within 1e-5.
    """
    vae = AutoencoderKL(
        in_channels=3, out_channels=3, latent_channels=3, sample_size=world.sheet.size,
        down_block_types=("DownEncoderBlock2D",), up_block_types=("UpDecoderBlock2D",),
        block_out_channels=(12,), norm_num_groups=3, layers_per_block=1,
        scaling_factor=1.0, shift_factor=0.0, mid_block_add_attention=False,
        use_quant_conv=False, use_post_quant_conv=False, force_upcast=False,
    )  # fmt: skip
    for parameter in vae.parameters():
        parameter.data.zero_()
    for half in (vae.encoder, vae.decoder):
        for color in range(3):
            first = 4 * color
            _centre(half.conv_in.weight, first, color, 1.0)
            _centre(half.conv_in.weight, first + 1, color, -1.0)
            half.conv_in.bias.data[first + 2] = _CONSTANT
            half.conv_in.bias.data[first + 3] = -_CONSTANT
            half.conv_norm_out.weight.data[first : first + 2] = _CONSTANT / 2**0.5
            _centre(half.conv_out.weight, color, first, 1.0)
            _centre(half.conv_out.weight, color, first + 1, -1.0)
    vae.encoder.conv_out.bias.data[3:] = -30.0
    return vae.eval().requires_grad_(False)


def build_transformer(seed: int, world: World = IMAGE) -> SD3Transformer2DModel:
    """The transformer before pretraining, one patch per cell of the grid; 0.98 M parameters in the
    image demo."""
    torch.manual_seed(seed)
    sheet = world.sheet
    return SD3Transformer2DModel(
        sample_size=sheet.size, patch_size=sheet.cell, in_channels=3, out_channels=3, num_layers=3,
        num_attention_heads=world.heads, attention_head_dim=world.head,
        joint_attention_dim=2 * WIDTH, pooled_projection_dim=2 * PROJECTION,
        caption_projection_dim=world.heads * world.head, pos_embed_max_size=sheet.grid,
        qk_norm="rms_norm",
    )  # fmt: skip


@torch.no_grad()
def encode_texts(
    encoder: CLIPTextModelWithProjection, texts: Sequence[str], world: World = IMAGE
) -> tuple[Tensor, Tensor]:
    """The pipeline's embeddings without T5: [N, tokens + t5_tokens, 128], and pooled [N, 96]."""
    out = encoder(token_ids(build_clip_tokenizer(world), texts), output_hidden_states=True)
    hidden = out.hidden_states[-2].repeat(1, 1, 2)
    t5 = (len(hidden), world.t5_tokens, hidden.shape[-1])
    return torch.cat([hidden, hidden.new_zeros(t5)], dim=1), out.text_embeds.repeat(1, 2)


def _learning_rate(step: int, recipe: Sd3Recipe) -> float:
    """Share of the peak rate: linear warm-up, then cosine to zero."""
    cosine = 0.5 * (1 + math.cos(math.pi * step / recipe.steps))
    return min(1.0, (step + 1) / recipe.warmup) * cosine


def _draw_batch(
    images: Tensor, recipe: Sd3Recipe, generator: torch.Generator
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """(image [B, 3, S, S], text row [B], noise like image, sigma [B]) of one training step.

    images: [P, copies, 3, S, S]. The text row P is the empty prompt.
    """
    count, copies = images.shape[:2]
    rows = torch.randint(count, (recipe.batch,), generator=generator)
    image = images[rows, torch.randint(copies, (recipe.batch,), generator=generator)]
    empty = torch.rand(recipe.batch, generator=generator) < recipe.dropout
    noise = torch.randn(image.shape, generator=generator)
    uniform = torch.rand(recipe.batch, generator=generator)
    sigma = recipe.shift * uniform / (1 + (recipe.shift - 1) * uniform)
    return image, torch.where(empty, count, rows), noise, sigma


def pretrain_transformer(
    encoder: CLIPTextModelWithProjection,
    seed: int,
    recipe: Sd3Recipe,
    log: Callable[[str], object],
    world: World = IMAGE,
) -> SD3Transformer2DModel:
    """Conditional flow matching on rendered images; returns the transformer in eval mode, float32.

    x_sigma = (1 − sigma)·image + sigma·noise; the network predicts noise − image and receives
    timestep = 1000·sigma (diffusers' convention: sigma = 1 is noise).
    """
    prompts = world.prompts
    embeds, pooled = encode_texts(encoder, [*(prompt.text for prompt in prompts), ""], world)
    rendered = render_dataset(prompts, recipe.copies, seed + 1, world.draw)
    images = torch.stack([to_pixels(copies) for copies in rendered])
    model = build_transformer(seed, world).train()
    optimizer = torch.optim.AdamW(
        model.parameters(), recipe.learning_rate, betas=(0.9, recipe.beta2), weight_decay=0.01
    )
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda k: _learning_rate(k, recipe))
    generator = torch.Generator().manual_seed(seed + 2)
    for step in range(recipe.steps):
        image, text, noise, sigma = _draw_batch(images, recipe, generator)
        share = sigma[:, None, None, None]
        velocity = model(
            hidden_states=(1 - share) * image + share * noise,
            timestep=1000 * sigma,
            encoder_hidden_states=embeds[text],
            pooled_projections=pooled[text],
        ).sample
        loss = (velocity - (noise - image)).square().mean()
        model.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        if (step + 1) % 100 == 0:
            log(f"sd3 step {step + 1}/{recipe.steps}: loss {loss.item():.4f}")
    return model.eval().requires_grad_(False)
