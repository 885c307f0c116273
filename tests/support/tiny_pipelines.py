"""Small random pipelines in the layouts in which FLUX.1, SANA-1.5, SD3.5 and SDXL are published.

`save_pipeline("flux", folder)` writes one; every one takes multiples of its real VAE's factor, and
knows the words of the image demo. Weights are random, wide enough for a picture to depend on prompt
and noise.
"""

from __future__ import annotations

import string
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import (
    AutoencoderDC,
    AutoencoderKL,
    DPMSolverMultistepScheduler,
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
    FluxPipeline,
    FluxTransformer2DModel,
    SanaPipeline,
    SanaTransformer2DModel,
    SD3Transformer2DModel,
    StableDiffusion3Pipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)
from torch import nn
from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    Gemma2Config,
    Gemma2Model,
    GemmaTokenizerFast,
    T5Config,
    T5EncoderModel,
)

from adrpo_scale.demo.image.clip import build_clip_tokenizer, build_t5_tokenizer

SIZES = {"flux": 32, "sana": 64, "sd35": 32, "sdxl": 32}  # pixels of the tests' pictures
WIDTH = 8  # of CLIP-L's part; CLIP-G's is twice that


def quick(*kinds: str) -> list[Any]:
    """The keys of SIZES as parameters of a test, slow except for `kinds`."""
    return [kind if kind in kinds else pytest.param(kind, marks=pytest.mark.slow) for kind in SIZES]


def save_pipeline(kind: str, folder: Path) -> Path:
    """Writes the pipeline of a key of SIZES. The global random state is left as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(5)
        made = {"flux": _flux, "sana": _sana, "sd35": _sd35, "sdxl": _sdxl}[kind]()
    made.save_pretrained(folder, safe_serialization=True)
    return folder


def _flux() -> FluxPipeline:
    transformer = FluxTransformer2DModel(
        patch_size=1,
        in_channels=64,
        num_layers=1,
        num_single_layers=1,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=16,
        pooled_projection_dim=WIDTH,
        guidance_embeds=True,
        axes_dims_rope=(4, 6, 6),
    )
    return FluxPipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0, use_dynamic_shifting=True),
        vae=_vae(16, 0.3611, 0.1159),
        text_encoder=_clip(CLIPTextModel, WIDTH),
        tokenizer=build_clip_tokenizer(),
        text_encoder_2=_t5(16),
        tokenizer_2=build_t5_tokenizer(),
        transformer=_wide(transformer),
    )


def _sd35() -> StableDiffusion3Pipeline:
    """With SD3.5 medium's dual attention in its first block, and its normed queries and keys."""
    transformer = SD3Transformer2DModel(
        sample_size=16,
        patch_size=2,
        in_channels=16,
        num_layers=2,
        attention_head_dim=8,
        num_attention_heads=2,
        joint_attention_dim=32,
        caption_projection_dim=16,
        pooled_projection_dim=3 * WIDTH,
        out_channels=16,
        pos_embed_max_size=8,
        dual_attention_layers=(0,),
        qk_norm="rms_norm",
    )
    return StableDiffusion3Pipeline(
        transformer=_wide(transformer),
        scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0),
        vae=_vae(16, 1.5305, 0.0609),
        text_encoder=_clip(CLIPTextModelWithProjection, WIDTH),
        tokenizer=build_clip_tokenizer(),
        text_encoder_2=_clip(CLIPTextModelWithProjection, 2 * WIDTH),
        tokenizer_2=build_clip_tokenizer(),
        text_encoder_3=_t5(32),
        tokenizer_3=build_t5_tokenizer(),
    )


def _sdxl() -> StableDiffusionXLPipeline:
    unet = UNet2DConditionModel(
        sample_size=16,
        in_channels=4,
        out_channels=4,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        block_out_channels=(8, 16),
        layers_per_block=1,
        attention_head_dim=(1, 2),
        cross_attention_dim=3 * WIDTH,
        addition_embed_type="text_time",
        addition_time_embed_dim=4,
        transformer_layers_per_block=(1, 1),
        projection_class_embeddings_input_dim=6 * 4 + 2 * WIDTH,
        use_linear_projection=True,
        norm_num_groups=4,
    )
    return StableDiffusionXLPipeline(
        vae=_vae(4, 0.13025, None),
        text_encoder=_clip(CLIPTextModel, WIDTH),
        text_encoder_2=_clip(CLIPTextModelWithProjection, 2 * WIDTH),
        tokenizer=build_clip_tokenizer(),
        tokenizer_2=build_clip_tokenizer(),
        unet=_wide(unet),
        scheduler=EulerDiscreteScheduler(beta_schedule="scaled_linear", timestep_spacing="leading"),
        add_watermarker=False,
    )


def _sana() -> SanaPipeline:
    transformer = SanaTransformer2DModel(
        in_channels=4,
        out_channels=4,
        num_attention_heads=2,
        attention_head_dim=8,
        num_layers=2,
        num_cross_attention_heads=2,
        cross_attention_head_dim=8,
        cross_attention_dim=16,
        caption_channels=16,
        sample_size=32,
        patch_size=1,
        qk_norm="rms_norm_across_heads",
    )
    width = (4, 4, 4, 8, 8, 8)  # six levels: a factor of 32
    vae = AutoencoderDC(
        latent_channels=4,
        attention_head_dim=4,
        encoder_block_types=["ResBlock"] * 3 + ["EfficientViTBlock"] * 3,
        decoder_block_types=["ResBlock"] * 3 + ["EfficientViTBlock"] * 3,
        encoder_block_out_channels=width,
        decoder_block_out_channels=width,
        encoder_layers_per_block=(0, 1, 1, 1, 1, 1),
        decoder_layers_per_block=(1,) * 6,
        encoder_qkv_multiscales=((), (), (), (5,), (5,), (5,)),
        decoder_qkv_multiscales=((), (), (), (5,), (5,), (5,)),
        upsample_block_type="interpolate",
        downsample_block_type="Conv",
        scaling_factor=0.41407,
    )
    tokenizer = _gemma_tokenizer()
    config = Gemma2Config(
        vocab_size=len(tokenizer),
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=8,
        sliding_window=16,
    )
    return SanaPipeline(
        tokenizer=tokenizer,
        text_encoder=Gemma2Model(config).eval(),
        vae=vae.eval(),
        transformer=_wide(transformer),
        scheduler=DPMSolverMultistepScheduler(
            use_flow_sigmas=True, prediction_type="flow_prediction", flow_shift=3.0
        ),
    )


def _vae(channels: int, scale: float, shift: float | None) -> AutoencoderKL:
    return AutoencoderKL(
        block_out_channels=(4, 4, 4, 4),
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        latent_channels=channels,
        layers_per_block=1,
        norm_num_groups=2,
        sample_size=32,
        scaling_factor=scale,
        shift_factor=shift,
    ).eval()


def _clip(kind: Any, width: int) -> Any:
    tokenizer = build_clip_tokenizer()
    config = CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=width,
        intermediate_size=width,
        projection_dim=width,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=tokenizer.model_max_length,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    return kind(config).eval()


def _t5(width: int) -> T5EncoderModel:
    config = T5Config(
        vocab_size=len(build_t5_tokenizer()),
        d_model=width,
        d_ff=width,
        d_kv=8,
        num_layers=1,
        num_heads=2,
        feed_forward_proj="gated-gelu",
    )
    return T5EncoderModel(config).eval()


def _gemma_tokenizer() -> GemmaTokenizerFast:
    """One token a character, with Gemma's special tokens and its mark of a space."""
    tokens = ["<pad>", "<eos>", "<bos>", "<unk>", "<mask>", "▁", *string.printable.strip()]
    return GemmaTokenizerFast(vocab={token: k for k, token in enumerate(tokens)}, merges=[])


def _wide(model: nn.Module) -> nn.Module:
    """The model with weights that carry prompt and noise to its output: those of its library's
    beginning are small, and some are zero."""
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.copy_(torch.randn_like(parameter) * parameter[0].numel() ** -0.5)
    return model.eval()
