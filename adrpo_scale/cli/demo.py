"""The command `demo build`: rebuilds the demos' models and prompts.

The builders are named by import path, because nothing of the library imports the demos.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from adrpo_scale.cli.help import Commands
from adrpo_scale.core.errors import ConfigError

BUILDERS = {
    "image": "adrpo_scale.demo.image.build:build_image",
    "dice": "adrpo_scale.demo.dice.build:build_dice",
    "text": "adrpo_scale.demo.text.build:build_text",
    "text_rm": "adrpo_scale.demo.text.build:build_text_rm",
    "audio": "adrpo_scale.demo.audio.build:build_audio",
}

app = Commands(
    """Rebuild the small demos that ship with the package.

    Example:
        adrpo-scale demo build image --to /tmp/image-demo
    """
)


@app.callback()
def demo() -> None:
    """Keeps `build` a command: typer would merge a single one into its group."""


@app.add
def build(
    name: Annotated[str, typer.Argument(help="The demo: image, dice, text, text_rm or audio.")],
    to: Annotated[
        Path | None, typer.Option(help="Folder to write; default: the shipped assets.")
    ] = None,
) -> None:
    """Rebuild a demo's small models and prompts from code and pinned seeds.

    Example:
        adrpo-scale demo build image --to /tmp/image-demo
    """
    from adrpo_scale.core.components import imported
    from adrpo_scale.core.paths import ASSETS

    if name not in BUILDERS:
        raise ConfigError(f"demo {name!r} is not known; known: {', '.join(BUILDERS)}")
    imported(BUILDERS[name])(to or ASSETS / name)
