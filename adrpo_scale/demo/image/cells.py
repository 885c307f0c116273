"""Pictures of coloured glyphs in square cells, drawn and read back.

A picture is uint8 RGB on a random grey background. A cell is empty or holds one glyph in one of
four colours, slightly jittered. `Sheet.read` gives back what `Sheet.paint` drew, so a checker
decides exactly what a picture shows.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

COLORS = ("red", "green", "blue", "yellow")

_PALETTE_C3 = np.array(
    [[214, 48, 49], [39, 174, 96], [41, 98, 222], [240, 200, 40]], dtype=np.float64
)
_GREY_RANGE = (70, 190)  # of the background, grey levels of 0–255
_COLOR_JITTER = 18  # a glyph's colour moves by at most this in each channel
_PIXEL_NOISE = 3.0  # standard deviation in grey levels

# The checker's tolerances, in grey levels. With looser ones half-formed glyphs pass, and the
# checker could be fooled like the reward that it judges. With tighter ones a sampler's usual noise
# fails.
_EMPTY_RMS = 24.0
_GLYPH_RMS = 34.0
_COLOR_DISTANCE = 85.0


@dataclass(frozen=True)
class Glyph:
    """A glyph on the grid; row 0 is the top, column 0 the left."""

    row: int
    col: int
    shape: str
    color: str


@dataclass(frozen=True)
class Sheet:
    """The form of a picture: `grid` by `grid` cells of `cell` by `cell` pixels.

    glyphs: rows of "#" and "." for each shape, e.g. ".#. ### .#.". Glyphs of a picture must cover
    less than half of it, because the background is the median.
    """

    grid: int
    cell: int
    glyphs: tuple[tuple[str, str], ...]

    @property
    def size(self) -> int:
        """Pixels per side."""
        return self.grid * self.cell

    @property
    def shapes(self) -> tuple[str, ...]:
        return tuple(shape for shape, _ in self.glyphs)

    @cached_property
    def _masks(self) -> Mapping[str, np.ndarray]:
        return {
            shape: np.array([[c == "#" for c in row] for row in drawing.split()])
            for shape, drawing in self.glyphs
        }

    def _cut(self, image: np.ndarray, row: int, col: int) -> np.ndarray:
        side = self.cell
        return image[row * side : (row + 1) * side, col * side : (col + 1) * side]

    def paint(
        self,
        glyphs: Sequence[tuple[tuple[int, int], str, str | None]],
        rng: np.random.Generator,
    ) -> np.ndarray:
        """A picture, uint8 [size, size, 3], of glyphs as ((row, column), shape, colour); None is
        any colour."""
        image = np.full((self.size, self.size, 3), rng.uniform(*_GREY_RANGE))
        for place, shape, name in glyphs:
            index = COLORS.index(name) if name else int(rng.integers(len(COLORS)))
            color = _PALETTE_C3[index] + rng.uniform(-_COLOR_JITTER, _COLOR_JITTER, size=3)
            self._cut(image, *place)[self._masks[shape]] = color
        image += rng.normal(0.0, _PIXEL_NOISE, size=image.shape)
        return np.clip(np.rint(image), 0, 255).astype(np.uint8)

    def read(self, image: np.ndarray) -> list[Glyph] | None:
        """The glyphs of an image, uint8 [size, size, 3], in reading order; None where one is
        unreadable. Raises ValueError for another shape or dtype."""
        size = self.size
        if image.shape != (size, size, 3) or image.dtype != np.uint8:
            raise ValueError(
                f"image is {image.dtype} {list(image.shape)}; expected uint8 [{size}, {size}, 3]"
            )
        pixels = image.astype(np.float64)
        grey_3 = np.median(pixels.reshape(-1, 3), axis=0)
        glyphs = []
        for row, col in itertools.product(range(self.grid), repeat=2):
            try:
                found = self._read_cell(self._cut(pixels, row, col), grey_3)
            except ValueError:
                return None
            if found is not None:
                glyphs.append(Glyph(row, col, *found))
        return glyphs

    def _read_cell(self, cell: np.ndarray, grey_3: np.ndarray) -> tuple[str, str] | None:
        """(shape, color) of a cell [cell, cell, 3], None for an empty one; ValueError for anything
        else."""
        if np.sqrt(np.mean((cell - grey_3) ** 2)) < _EMPTY_RMS:
            return None
        best = (np.inf, "", grey_3)
        for shape, mask in self._masks.items():
            color = cell[mask].mean(axis=0)
            model = np.where(mask[..., None], color, grey_3)
            rms = float(np.sqrt(np.mean((cell - model) ** 2)))
            if rms < best[0]:
                best = (rms, shape, color)
        rms, shape, color = best
        distances = np.linalg.norm(_PALETTE_C3 - color, axis=1)
        if rms > _GLYPH_RMS or distances.min() > _COLOR_DISTANCE:
            raise ValueError(f"no glyph: best fit {shape}, rms {rms:.0f}, colour {color}")
        return shape, COLORS[int(distances.argmin())]
