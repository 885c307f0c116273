"""Given pairs of pictures as rows of latents (`algorithm.rollouts = "file"`).

A picture is scaled until it covers the domain's height and width, cut to them around its middle,
and encoded by the VAE, whose mean is the row's x1: nothing is drawn. Each is encoded on its own, so
that its latents depend neither on the others nor on the number of ranks. A rank keeps latents in
host memory while they fit `KEPT`.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from adrpo_scale.core import dist
from adrpo_scale.core.errors import PromptError
from adrpo_scale.core.naming import named
from adrpo_scale.core.pace import paced
from adrpo_scale.core.types import Prompt, Rows
from adrpo_scale.data.pairs import COLUMNS, check_file, each_pair, files_of
from adrpo_scale.domains.base import Domain

KEPT = 1 << 30  # bytes of latents


class GivenPictures(Domain):
    """The part of a picture domain that takes given pairs."""

    latent_shape: tuple[int, int, int]
    device: torch.device
    _vae: Any

    def take_pairs(self, prompts: Sequence[Prompt], folder: Path) -> list[Prompt]:
        self._pairs = each_pair(prompts, lambda prompt: files_of(prompt, folder))
        self._latents: dict[Path, Tensor] = {}
        dist.run_on_main(lambda: self._check_files(prompts))
        return list(prompts)

    def _check_files(self, prompts: Sequence[Prompt]) -> None:
        def check(prompt: Prompt) -> None:
            for key, path in zip(COLUMNS, self._pairs[prompt.id], strict=True):
                check_file(prompt, key, path)

        each_pair(paced(prompts, "looking at pictures", "pairs"), check)

    def pair_files(self) -> list[Path]:
        return sorted({path for pair in self._pairs.values() for path in pair})

    @torch.no_grad()
    def given(self, prompts_N: Sequence[Prompt], sample_ids_N: Tensor) -> Rows:
        x1 = torch.empty(len(prompts_N), *self.latent_shape, device=self.device)
        for n, (prompt, sample) in enumerate(zip(prompts_N, sample_ids_N.tolist(), strict=True)):
            x1[n] = self._latent(prompt, self._pairs[prompt.id][sample % 2])
        ids_N = torch.tensor([prompt.id for prompt in prompts_N], dtype=torch.int64)
        return Rows(sample_ids_N, ids_N, {"x1": x1})

    def _latent(self, prompt: Prompt, path: Path) -> Tensor:
        """float32 [C, H, W], the inverse of `artifacts`."""
        kept = self._latents.get(path)
        if kept is not None:
            return kept
        config = self._vae.config
        factor = 2 ** (len(config.block_out_channels) - 1)
        height, width = (side * factor for side in self.latent_shape[1:])
        try:
            pixels = read_picture(path, height, width)
        except (OSError, ValueError, SyntaxError) as error:  # Pillow's, of a broken file
            raise PromptError(
                f"{named(prompt)}: {path} cannot be read ({error}); bring the file again"
            ) from error
        batch = pixels[None].to(self.device, self._vae.dtype)
        mean = self._vae.encode(batch, return_dict=False)[0].mode()[0].float()
        latent: Tensor = (mean - config.shift_factor) * config.scaling_factor
        if (len(self._latents) + 1) * latent.nbytes <= KEPT:
            self._latents[path] = latent.cpu()
        return latent


def read_picture(path: Path, height: int, width: int) -> Tensor:
    """float32 [3, height, width] in [-1, 1]: the picture scaled to cover this size, and its
    middle."""
    with Image.open(path) as picture:
        upright = ImageOps.exif_transpose(picture).convert("RGB")
    fitted = ImageOps.fit(upright, (width, height), Image.Resampling.LANCZOS)
    values = torch.from_numpy(np.asarray(fitted, dtype=np.float32).copy())
    return values.permute(2, 0, 1) / 127.5 - 1
