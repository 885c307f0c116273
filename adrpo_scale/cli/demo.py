"""`adrpo-scale demo build`: the demos' models and prompts, made again.

The builders are named by import path: nothing of the library imports the demos.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from adrpo_scale.core.errors import ConfigError

BUILDERS = {
    "image": "adrpo_scale.demo.image.build:build_image",
    "text": "adrpo_scale.demo.text.build:build_text",
    "text_rm": "adrpo_scale.demo.text.build:build_text_rm",
    "audio": "adrpo_scale.demo.audio.build:build_audio",
}

app = typer.Typer(
    no_args_is_help=True,
    rich_markup_mode="rich",
    help="The small demos that ship with the package.\n\n"
    "Example:\n    [cyan]adrpo-scale demo build image --to /tmp/image-demo[/cyan]",
)


@app.callback()
def demo() -> None:
    """Keeps `build` a command of its own while it is the only one."""


@app.command()
def build(
    name: Annotated[str, typer.Argument(help="image, text, text_rm or audio")],
    to: Annotated[Path | None, typer.Option(help="Folder; default: the shipped assets.")] = None,
) -> None:
    """Build a demo's small models and prompts again, from code and pinned seeds.

    Example:
        [cyan]adrpo-scale demo build image --to /tmp/image-demo[/cyan]
    """
    from adrpo_scale.core.components import imported
    from adrpo_scale.core.paths import ASSETS

    if name not in BUILDERS:
        raise ConfigError(f"demo {name!r} is not known; known: {', '.join(BUILDERS)}")
    imported(BUILDERS[name])(to or ASSETS / name)
