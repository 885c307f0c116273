"""Where a model's shape is read from: its own folder or the hub's cache where it is there, else the
published configuration values of the paper's models, which lie beside this module in the layout of
real model folders. No weights and no network are needed.
"""

from __future__ import annotations

from pathlib import Path

from adrpo_scale.core.errors import ModelNotFoundError
from adrpo_scale.hub.lock import find_here
from adrpo_scale.hub.needs import HubNeed

SHAPES = Path(__file__).parent / "shapes"
SAME_SHAPE = {  # another name for the same shape
    "Qwen/Qwen2-0.5B-Instruct": "Qwen/Qwen2-0.5B",
    "Qwen/Qwen2.5-0.5B": "Qwen/Qwen2-0.5B",
    "Qwen/Qwen2.5-0.5B-Instruct": "Qwen/Qwen2-0.5B",
    "Qwen/Qwen3-0.6B-Base": "Qwen/Qwen3-0.6B",
}


def config_folder(name: str, what: str, needed: str = "config.json") -> Path:
    """A folder in which `needed` is. name: as a config has it; what: the setting.

    Raises ModelNotFoundError, with the shapes that are known, where there is none.
    """
    try:
        folder = find_here(HubNeed(name, what, ("*.json", "*/*.json")))
        if (folder / needed).is_file():
            return folder
    except ModelNotFoundError:
        pass
    shape = SHAPES / SAME_SHAPE.get(name, name).replace("/", "--")
    if (shape / needed).is_file():
        return shape
    known = [path.name.replace("--", "/") for path in sorted(SHAPES.iterdir())]
    raise ModelNotFoundError(
        f"{what} = {name!r}: no {needed} of it here or in the hub's cache, and plan does not know "
        f"its shape; bring the model with `adrpo-scale prefetch`, or give the folder. Known: "
        f"{', '.join([*known, *SAME_SHAPE])}"
    )
