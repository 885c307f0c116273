"""The file that has the sound of a clip: ready audio where there is some, the video otherwise."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from adrpo_scale.core.errors import ConfigError
from adrpo_scale.data.clips import AUDIO_SUFFIXES
from adrpo_scale.data.foreign_rows import stays_in

VIDEO_SUFFIXES = (".mp4", ".webm", ".mkv", ".mov", ".avi", ".flv", ".m4v", ".m4a", ".3gp")


@dataclass(frozen=True)
class Source:
    """The file of a clip. clip: the clip's name, that of the video. is_video: decoded by PyAV, not
    by soundfile."""

    clip: str
    path: Path
    is_video: bool


def index(folder: Path, suffixes: Iterable[str]) -> dict[str, Path]:
    """Name without suffix → file, of all files below `folder` with one of the suffixes. Among files
    of one name the earliest suffix wins, then the first path. Raises ConfigError for a missing
    folder."""
    if not folder.is_dir():
        raise ConfigError(f"{folder}: no such folder; correct the path")
    rank = {suffix: place for place, suffix in enumerate(suffixes)}
    found: dict[str, tuple[int, str]] = {}
    seen: set[tuple[int, int]] = set()  # folders: links may lead back to those above them
    for below, folders, names in os.walk(folder, followlinks=True):
        folders.sort()
        facts = os.stat(below)
        if (facts.st_dev, facts.st_ino) in seen:
            folders.clear()
            continue
        seen.add((facts.st_dev, facts.st_ino))
        for name in names:
            stem, suffix = os.path.splitext(name)
            if suffix.lower() in rank:
                file = (rank[suffix.lower()], os.path.join(below, name))
                # The smallest, not the first: no filesystem lists its names in a fixed order.
                found[stem] = min(file, found.get(stem, file))
    return {stem: Path(path) for stem, (_, path) in found.items()}


def find(
    clip: str,
    named: str | None,
    audio: Mapping[str, Path],
    videos: Mapping[str, Path],
    folders: Sequence[Path],
) -> Source | None:
    """The source of `clip`; None if there is none.

    named: the file that the row names (`audio_path`), relative to one of `folders`; it is taken
    where it exists inside that folder: rows of others name no other file of this machine. audio,
    videos: results of `index`, in which the clip's name is looked up, then its name in R1-AQA, and
    in `audio` last the name of the file that the row names, because its folder may be of another
    machine.
    """
    for folder in folders if named is not None else ():
        path = folder / str(named)
        if stays_in(str(named), folder) and _is_file(path):
            return Source(clip, path, path.suffix.lower() not in AUDIO_SUFFIXES)
    name = _stem(clip)
    names = [name, short_name(name)]
    for each in [*names, *([] if named is None else [_stem(named)])]:
        if each in audio:
            return Source(clip, audio[each], is_video=False)
    for each in names:
        if each in videos:
            return Source(clip, videos[each], is_video=True)
    return None


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except OSError:  # a name that is too long
        return False


def _stem(file: str) -> str:
    """A file's name without folder and without a suffix of audio or video; ids may have dots."""
    stem, suffix = os.path.splitext(os.path.basename(file))
    return stem if suffix.lower() in (*VIDEO_SUFFIXES, *AUDIO_SUFFIXES) else stem + suffix


def short_name(video: str) -> str:
    """`-HG3Omg_89c_000030` → `-HG3Omg_89c_30`: AVQA pads the second at which a clip begins with
    zeros, the files of R1-AQA (github.com/xiaomi-research/r1-aqa) do not."""
    return re.sub(r"_0+(?=[0-9]+$)", "_", video)
