"""Pictures as the published scorers were trained on them.

CLIP's own: PIL's bicubic on bytes, which rounds to whole numbers. torchvision resizes tensors
without that rounding, and scores differ in the third digit.
"""

from __future__ import annotations

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn.functional import interpolate, pad

MEAN = (0.48145466, 0.4578275, 0.40821073)  # of OpenAI's CLIP
STD = (0.26862954, 0.26130258, 0.27577711)


def cropped(image: Image.Image, side: int) -> Tensor:
    """float32 [3, side, side]: the shorter side resized to `side` (PIL, bicubic), the centre cut
    out, normalised: the preprocessing of CLIP and of BLIP's evaluation."""
    width, height = image.size
    short = min(width, height)
    size = [side if each == short else side * each // short for each in (width, height)]
    resized = image.convert("RGB").resize((size[0], size[1]), Image.Resampling.BICUBIC)
    left, top = (round((each - side) / 2) for each in size)
    return normalised(_as_tensor(resized.crop((left, top, left + side, top + side))))


def whole(image: Image.Image, side: int) -> Tensor:
    """float32 [3, side, side]: the longer side resized to `side` (a tensor, bicubic, antialiased),
    black around it, normalised: the preprocessing of HPSv2."""
    pixels = _as_tensor(image.convert("RGB"))
    height, width = pixels.shape[1:]
    longer = max(height, width)
    new = [round(each * (side / longer)) for each in (height, width)]
    if longer != side:
        pixels = interpolate(
            pixels[None], size=new, mode="bicubic", align_corners=False, antialias=True
        )[0]
    above, left = ((side - each) // 2 for each in new)
    return normalised(pad(pixels, (left, side - new[1] - left, above, side - new[0] - above)))


def normalised(pixels: Tensor) -> Tensor:
    """Pixels in [0, 1] by CLIP's mean and standard deviation."""
    return (pixels - torch.tensor(MEAN)[:, None, None]) / torch.tensor(STD)[:, None, None]


def _as_tensor(image: Image.Image) -> Tensor:
    return torch.from_numpy(np.array(image)).permute(2, 0, 1).float() / 255
