"""Iterations of an SD3-medium-shaped model with random weights: peak memory, samples/s, MFU.

    python -m benchmarks.sd3_medium [--cap-gib 48] [--iterations 3] [--set section.key=value]

Writes a real Stable Diffusion 3 pipeline folder (transformer and VAE of SD3-medium's shape; text
encoders of its widths with one layer each, because they only compute embeddings once), then runs
`configs/sd3/adrpo.toml` on it: 512 px, LoRA r = 32, bfloat16. The process may use at most --cap-gib
of the GPU. MFU counts policy forward, reference forward and backward through the activations (the
FLOPs of 3 forwards per row, no recomputation) over `seconds_update`.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, FlowMatchEulerDiscreteScheduler, SD3Transformer2DModel
from torch.utils.flop_counter import FlopCounterMode
from transformers import (
    AutoTokenizer,
    CLIPConfig,
    CLIPImageProcessor,
    CLIPModel,
    CLIPProcessor,
    CLIPTextConfig,
    CLIPTextModelWithProjection,
    T5Config,
    T5EncoderModel,
)

from adrpo_scale.core.paths import resolve_path
from adrpo_scale.run.build import build_trainer
from adrpo_scale.run.load import load_config

MEDIUM = {
    "sample_size": 128,
    "patch_size": 2,
    "in_channels": 16,
    "out_channels": 16,
    "num_layers": 24,
    "num_attention_heads": 24,
    "attention_head_dim": 64,
    "joint_attention_dim": 4096,
    "caption_projection_dim": 1536,
    "pooled_projection_dim": 2048,
    "pos_embed_max_size": 192,
}
CLIP_TOKENS = 77  # length of SD3's own CLIP prompts; the demo's are shorter
# Dense bfloat16 FLOP/s from the vendors' data sheets.
PEAK = {"H200": 989e12, "H100": 989e12, "A100": 312e12, "A6000": 154.8e12}


def write_pipeline(folder: Path, layers: int, vae_channels: tuple[int, ...]) -> None:
    """A pipeline folder in the real layout; weights are random, in bfloat16."""
    torch.manual_seed(0)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    with torch.device(device):
        transformer = SD3Transformer2DModel(**MEDIUM | {"num_layers": layers})
        vae = AutoencoderKL(
            block_out_channels=vae_channels,
            down_block_types=["DownEncoderBlock2D"] * len(vae_channels),
            up_block_types=["UpDecoderBlock2D"] * len(vae_channels),
            layers_per_block=2,
            latent_channels=16,
            scaling_factor=1.5305,
            shift_factor=0.0609,
            use_quant_conv=False,
            use_post_quant_conv=False,
        )
    transformer.to(torch.bfloat16).save_pretrained(folder / "transformer")
    vae.save_pretrained(folder / "vae")
    FlowMatchEulerDiscreteScheduler(shift=3.0).save_pretrained(folder / "scheduler")
    for number, width in (("", 768), ("_2", 1280)):
        tokenizer = AutoTokenizer.from_pretrained(resolve_path(f"demo:image/tokenizer{number}"))
        tokenizer.model_max_length = CLIP_TOKENS
        tokenizer.save_pretrained(folder / f"tokenizer{number}")
        encoder = CLIPTextModelWithProjection(text_config(len(tokenizer), width, tokenizer))
        encoder.save_pretrained(folder / f"text_encoder{number}")
    tokenizer = AutoTokenizer.from_pretrained(resolve_path("demo:image/tokenizer_3"))
    tokenizer.save_pretrained(folder / "tokenizer_3")
    t5 = T5Config(
        vocab_size=len(tokenizer), d_model=4096, d_kv=64, d_ff=64, num_layers=1, num_heads=2
    )
    T5EncoderModel(t5).save_pretrained(folder / "text_encoder_3")
    parts = {
        "scheduler": ["diffusers", "FlowMatchEulerDiscreteScheduler"],
        "text_encoder": ["transformers", "CLIPTextModelWithProjection"],
        "text_encoder_2": ["transformers", "CLIPTextModelWithProjection"],
        "text_encoder_3": ["transformers", "T5EncoderModel"],
        "tokenizer": ["transformers", "CLIPTokenizer"],
        "tokenizer_2": ["transformers", "CLIPTokenizer"],
        "tokenizer_3": ["transformers", "T5TokenizerFast"],
        "transformer": ["diffusers", "SD3Transformer2DModel"],
        "vae": ["diffusers", "AutoencoderKL"],
    }
    index = {"_class_name": "StableDiffusion3Pipeline", "_diffusers_version": "0.42.1"}
    (folder / "model_index.json").write_text(json.dumps(index | parts))


def text_config(vocabulary: int, width: int, tokenizer: Any) -> CLIPTextConfig:
    return CLIPTextConfig(
        vocab_size=vocabulary,
        hidden_size=width,
        projection_dim=width,
        intermediate_size=width,
        num_hidden_layers=1,
        num_attention_heads=width // 64,
        eos_token_id=tokenizer.eos_token_id,
        bos_token_id=tokenizer.bos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )


def write_clip(folder: Path, layers: int) -> None:
    """A CLIP of ViT-L/14's shape with random weights."""
    tokenizer = AutoTokenizer.from_pretrained(resolve_path("demo:image/tokenizer"))
    vision = {
        "hidden_size": 1024,
        "intermediate_size": 4096,
        "num_hidden_layers": layers,
        "num_attention_heads": 16,
        "patch_size": 14,
        "image_size": 224,
    }
    config = CLIPConfig(
        text_config=text_config(len(tokenizer), 768, tokenizer).to_dict(),
        vision_config=vision,
        projection_dim=768,
    )
    CLIPModel(config).save_pretrained(folder)
    CLIPProcessor(CLIPImageProcessor(), tokenizer).save_pretrained(folder)


def forward_flops(trainer: Any, tokens: int) -> float:
    """FLOPs of one row's forward pass through the transformer, counted by torch."""
    model, device, dtype = trainer.policy, trainer.engine.device, trainer.engine.dtype
    shape, width = trainer.domain.latent_shape, MEDIUM["joint_attention_dim"]
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(
            hidden_states=torch.zeros(1, *shape, device=device, dtype=dtype),
            timestep=torch.zeros(1, device=device),
            encoder_hidden_states=torch.zeros(1, tokens, width, device=device, dtype=dtype),
            pooled_projections=torch.zeros(1, 2048, device=device, dtype=dtype),
        )
    return float(counter.get_total_flops())


def iterations_peak_gib(records: list[dict[str, Any]]) -> float:
    """The largest peak of any phase, from the iterations' records: each phase resets torch's
    peak."""
    peaks = (value for r in records for key, value in r.items() if key.startswith("peak_gb_"))
    return max(peaks) * 1e9 / 2**30


def measure(arguments: argparse.Namespace) -> dict[str, Any]:
    cuda = torch.cuda.is_available()
    if cuda:
        total = torch.cuda.get_device_properties(0).total_memory
        torch.cuda.set_per_process_memory_fraction(min(1.0, arguments.cap_gib * 2**30 / total))
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_pipeline(folder / "pipeline", arguments.layers, tuple(arguments.vae_channels))
        write_clip(folder / "clip", arguments.clip_layers)
        overrides = [
            f"domain.model={folder / 'pipeline'}",
            f"rewards.0.model={folder / 'clip'}",
            f"iterations={arguments.iterations + 1}",
            "evaluation.every=0",
            "limits={}",
            "prompts.per_iteration=2",
            "engine.shard=1",
            *arguments.overrides,
        ]
        config = load_config(Path("configs/sd3/adrpo.toml"), overrides).config
        trainer = build_trainer(config, folder / "run")
        if cuda:
            torch.cuda.reset_peak_memory_stats()
        with trainer.log:
            records = [trainer._iterate() for _ in range(arguments.iterations + 1)][1:]
        flops = forward_flops(trainer, CLIP_TOKENS + config.domain.max_sequence_length)
        samples = records[0]["samples"]
        update = statistics.median(r["seconds_update"] for r in records)
        name = torch.cuda.get_device_name(0) if cuda else "cpu"
        peak = next((value for key, value in PEAK.items() if key in name), None)
        rows = samples * config.optimizer.updates * config.optimizer.draws_per_sample
        return {
            "device": name,
            "torch": torch.__version__,
            "cap_gib": arguments.cap_gib if cuda else None,
            "peak_gib": iterations_peak_gib(records) if cuda else None,
            "samples": samples,
            "samples_per_second": statistics.median(r["samples_per_second"] for r in records),
            "seconds_rollout": statistics.median(r["seconds_rollout"] for r in records),
            "seconds_reward": statistics.median(r["seconds_reward"] for r in records),
            "seconds_update": update,
            "forward_tflop_per_row": flops / 1e12,
            "update_tflops": 3 * flops * rows / update / 1e12,
            "update_mfu": 3 * flops * rows / update / peak if peak else None,
            "overrides": arguments.overrides,
        }


def parser() -> argparse.ArgumentParser:
    result = argparse.ArgumentParser(description=__doc__)
    result.add_argument("--cap-gib", type=float, default=48.0)
    result.add_argument("--iterations", type=int, default=3)
    result.add_argument("--layers", type=int, default=24, help="fewer for a dry run without a GPU")
    result.add_argument("--clip-layers", type=int, default=24)
    result.add_argument("--vae-channels", type=int, nargs="+", default=[128, 256, 512, 512])
    result.add_argument("--set", dest="overrides", action="append", default=[])
    return result


if __name__ == "__main__":
    print(json.dumps(measure(parser().parse_args()), indent=2))
