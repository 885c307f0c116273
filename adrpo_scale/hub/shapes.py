"""The configuration files that state a model's shape, found without weights and without network.

They come from the model's folder or the hub's cache where it is there, else from the published
values of the paper's models, stored beside this module as model folders.
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
    """A folder that holds a model's file `needed`. name: as a config has it; what: its setting.

    Raises ModelNotFoundError, which lists the known shapes, where there is none.
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
