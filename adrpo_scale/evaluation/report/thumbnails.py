"""Pictures inside a page: thumbnails for all that is shown, full ones until the budget is spent.

The same files give the same bytes. A file that is no picture, or too large to be one of ours, is
left out and counted.
"""

from __future__ import annotations

import base64
import io
import warnings
from dataclasses import dataclass, field
from pathlib import Path

from markupsafe import Markup
from PIL import Image

THUMBNAIL = 176  # pixels of the longer side
FULL = 1024
LARGEST = 64_000_000  # pixels of a picture that is decoded
_QUALITY = {THUMBNAIL: 76, FULL: 88}


@dataclass(frozen=True)
class Picture:
    """thumbnail: a data URI. full: the key of the full picture in `Store.full`, or None.
    is_tiny: drawn without smoothing, pixel by pixel."""

    thumbnail: Markup
    width: int
    height: int
    full: str | None
    is_tiny: bool


@dataclass
class Store:
    """The pictures of one page. budget: bytes of full pictures as the page holds them."""

    budget: int
    full: dict[str, Markup] = field(default_factory=dict)
    spent: int = 0
    thumbnails: int = 0
    unreadable: int = 0
    is_full: bool = False

    def add(self, path: Path, *, side: int = THUMBNAIL, with_full: bool = True) -> Picture | None:
        """A picture of the page; None where the file cannot be read as one."""
        image = _read(path)
        if image is None:
            self.unreadable += 1
            return None
        thumbnail = _encoded(image, side)
        self.thumbnails += 1
        is_tiny, key = max(image.size) <= side, None
        if is_tiny:  # the thumbnail is the whole picture
            key = f"p{len(self.full)}"
            self.full[key] = Markup()
        elif with_full and not self.is_full:
            content = _encoded(image, FULL)
            if self.spent + len(content) <= self.budget:
                self.spent += len(content)
                key = f"p{len(self.full)}"
                self.full[key] = content
            else:
                self.is_full = True
        return Picture(thumbnail, *image.size, key, is_tiny)


def _read(path: Path) -> Image.Image | None:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(path, formats=("PNG", "JPEG", "WEBP")) as image:
                if image.width * image.height > LARGEST:
                    return None
                return image.convert("RGB")
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError, Warning):
        return None


def _encoded(image: Image.Image, side: int) -> Markup:
    """A data URI: WebP, without loss where the picture is not made smaller and is tiny."""
    small = image.copy()
    small.thumbnail((side, side), Image.Resampling.LANCZOS)
    is_lossless = max(image.size) <= THUMBNAIL
    content = io.BytesIO()
    quality = _QUALITY.get(side, 80)
    small.save(content, "WEBP", lossless=is_lossless, quality=quality, method=4)
    text = base64.b64encode(content.getvalue()).decode("ascii")
    return Markup(f"data:image/webp;base64,{text}")
