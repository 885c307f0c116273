"""What may stand where a file or a folder of ours is expected."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest


class Precious:
    """Somebody's folder and file, which no removal and no writer may change."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.file = folder, folder / "inner" / "thesis.tex"
        self.file.parent.mkdir(parents=True)
        self.file.write_text("precious")

    def is_whole(self) -> bool:
        return self.file.read_text() == "precious" and os.listdir(self.folder) == ["inner"]


def _device(place: Path) -> None:
    try:
        os.mknod(place, 0o20666, os.makedev(1, 5))  # /dev/zero
    except PermissionError:
        pytest.skip("no device can be made here")


OBSTACLES: dict[str, Callable[[Path, Precious], object]] = {
    "a link to a folder": lambda place, precious: place.symlink_to(precious.folder),
    "a link to a file": lambda place, precious: place.symlink_to(precious.file),
    "a link to nothing": lambda place, _: place.symlink_to(place.parent / "nothing" / "here"),
    "a loop": lambda place, _: place.symlink_to(place.name),
    "a file": lambda place, _: place.write_text("mine"),
    "a FIFO": lambda place, _: os.mkfifo(place),
    "a device": lambda place, _: _device(place),
    "a folder": lambda place, precious: _folder(place, precious),
}
"""By name: makes one at a place. All but the folder hold nothing of ours."""


def _folder(place: Path, precious: Precious) -> None:
    (place / "inner").mkdir(parents=True)
    (place / "inner" / "link").symlink_to(precious.folder)
    (place / "inner" / "file").write_text("mine")
