"""Cells of 3x3 pixels: 27 numbers a token, so that a transformer 48 wide is enough."""

import re

lab.CELL, lab.GRID, lab.SIZE, lab.TOKENS = 3, 3, 9, 5
lab.HEADS, lab.HEAD = 3, 16
CELL, GRID, SIZE = 3, 3, 9
SHAPES = ("ring", "diamond", "star")
MASKS = np.array(
    [
        [[c == "#" for c in row] for row in g.split()]
        for g in ("### #.# ###", ".#. ### .#.", "#.# .#. #.#")
    ]
)
task.SHAPES, task._MASKS_S55 = SHAPES, MASKS
task.CELL = clip_mod.CELL = sd3_mod.CELL = 3
