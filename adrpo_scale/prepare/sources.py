"""Which file has the sound of which clip: ready audio where there is some, the video otherwise."""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from adrpo_scale.audio_clips import AUDIO_SUFFIXES
from adrpo_scale.errors import ConfigError

VIDEO_SUFFIXES = (".mp4", ".webm", ".mkv", ".mov", ".avi", ".flv", ".m4v", ".m4a", ".3gp")


@dataclass(frozen=True)
class Source:
    """clip: its name, that of the video. is_video: decoded by PyAV and not by soundfile."""

    clip: str
    path: Path
    is_video: bool


def index(folder: Path, suffixes: Iterable[str]) -> dict[str, Path]:
    """name without suffix → file, of all files below `folder` with one of the suffixes. Of several
    the earliest suffix in the list, then the first path. ConfigError without such a folder."""
    if not folder.is_dir():
        raise ConfigError(f"{folder}: no such folder; correct the path")
    rank = {suffix: place for place, suffix in enumerate(suffixes)}
    found: dict[str, tuple[int, str]] = {}
    for below, _, names in os.walk(folder, followlinks=True):
        for name in names:
            stem, suffix = os.path.splitext(name)
            if suffix.lower() in rank:
                file = (rank[suffix.lower()], os.path.join(below, name))
                # The smallest, not the first: no filesystem lists its names in a fixed order.
                found[stem] = min(file, found.get(stem, file))
    return {stem: Path(path) for stem, (_, path) in found.items()}


def find(
    clip: str, named: str | None, audio: dict[str, Path], videos: dict[str, Path], folder: Path
) -> Source | None:
    """The source of `clip`; None if there is none.

    named: the file that the row names (`audio_path`), relative to `folder`; it counts where it is.
    audio, videos: what `index` found.
    """
    stem, suffix = os.path.splitext(clip)
    name = stem if suffix.lower() in (*VIDEO_SUFFIXES, *AUDIO_SUFFIXES) else clip
    name = os.path.basename(name)
    if named is not None and (folder / named).is_file():
        path = folder / named
        return Source(clip, path, path.suffix.lower() not in AUDIO_SUFFIXES)
    if name in audio:
        return Source(clip, audio[name], is_video=False)
    return Source(clip, videos[name], is_video=True) if name in videos else None
