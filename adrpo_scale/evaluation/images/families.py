"""The first noise of each family of pipelines: its shape, and the form in which the call takes it.

Noise has the shape [C, H, W] of a picture's latents in every family, so that models of one latent
shape begin with the same noise. A pipeline of another family draws its first noise itself, from a
generator of each sample.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from adrpo_scale.core.errors import ConfigError

Shape = tuple[int, int, int]


@dataclass(frozen=True)
class Family:
    """channels: in_channels of the model for one channel of latents. patch: latents a side that the
    model joins; None: its config's patch_size, 1 without one. pack: from [N, C, H, W] to what the
    call takes as `latents`."""

    channels: int = 1
    patch: int | None = None
    pack: Callable[[Any, Tensor], Tensor] = lambda pipeline, noise: noise


def _packed(pipeline: Any, noise: Tensor) -> Tensor:
    """[N, (H/2)(W/2), 4C] from [N, C, H, W]."""
    return pipeline._pack_latents(noise, *noise.shape)


FAMILIES: Mapping[str, Family] = {
    "FluxPipeline": Family(channels=4, patch=2, pack=_packed),
    "SanaPipeline": Family(),
    "StableDiffusion3Pipeline": Family(),
    "StableDiffusionPipeline": Family(),
    "StableDiffusionXLPipeline": Family(),
}


def family_of(pipeline: Any) -> Family | None:
    """The family of a pipeline by its class; None for one that draws its noise itself."""
    return FAMILIES.get(type(pipeline).__name__)


def own_size(pipeline: Any, body: Any, stated: Any, is_binned: bool) -> tuple[int, int] | None:
    """(height, width) in pixels that the pipeline has without being asked; None where it does not
    say. stated: the default of its call's `height`. is_binned: the call would replace a size by the
    nearest that the model was trained with, which is its own."""
    side = None if is_binned else getattr(pipeline, "default_sample_size", None)
    if isinstance(stated, int) and not is_binned:
        return stated, stated
    side = body.config.get("sample_size") if side is None else side
    factor = getattr(pipeline, "vae_scale_factor", None)
    if side is None or factor is None:
        return None
    height, width = (side, side) if isinstance(side, int) else side
    return int(height) * factor, int(width) * factor


def latent_shape(pipeline: Any, body: Any, height: int, width: int) -> Shape | None:
    """[C, H, W] of a picture's first noise; None for a family that is not known. Raises ConfigError
    for a size that the VAE's factor and the model's patches do not divide, and for one that is
    larger than the model's positions."""
    factor, family = getattr(pipeline, "vae_scale_factor", 1), family_of(pipeline)
    patch = (family.patch if family else None) or body.config.get("patch_size") or 1
    positions = body.config.get("pos_embed_max_size")
    for size in (height, width):
        _check_size(size, factor * patch, positions, type(pipeline).__name__)
    if family is None:
        return None
    return body.config["in_channels"] // family.channels, height // factor, width // factor


def _check_size(size: int, multiple: int, positions: int | None, name: str) -> None:
    largest = size + multiple if positions is None else positions * multiple
    if size % multiple == 0 and size <= largest:
        return
    up_to = "" if positions is None else f" up to {largest}"
    nearest = min(max(1, round(size / multiple)) * multiple, largest)
    raise ConfigError(
        f"size = {size}: {name} paints multiples of {multiple} pixels here{up_to} (the factor of "
        f"its VAE, times the patches of its model); the nearest is {nearest}"
    )
