"""The clips of prompts before any is heard: what their headers say, the same on every rank."""

from __future__ import annotations

import functools
import logging
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from adrpo_scale.core import dist, watchdog
from adrpo_scale.core.errors import ClipError, ConfigError
from adrpo_scale.core.types import Prompt
from adrpo_scale.data.clips import duration, optional

log = logging.getLogger(__name__)

PACKAGES = ("soundfile", "soxr")  # the second for clips that are not at 16 kHz
PART = 1000  # headers between two beats of the watchdog: seconds, on a slow filesystem too
_THREADS = 16  # looking at headers waits for the disk and nothing else

Clip = tuple[str, str]  # (reference, folder)
Header = float | str  # seconds of a clip, or what is wrong with it


def check_packages() -> None:
    """ConfigError on every rank where one of them cannot read audio. Collective: otherwise it would
    rise at that rank's first clip, and the others would wait for it."""
    faults = dist.gather_objects(_missing_package())
    for rank, fault in enumerate(faults):
        if fault is not None:
            raise ConfigError(f"rank {rank}: {fault}" if rank else fault)


def _missing_package() -> str | None:
    try:
        for package in PACKAGES:
            optional(package)
    except ConfigError as error:
        return str(error)
    return None


def clip_faults(prompts: Sequence[Prompt]) -> Mapping[int, str]:
    """What is wrong with the clips of prompts (`metadata`: audio, audio_folder), by prompt id:
    missing, not audio by its header, empty, too short, too long. Prompts without audio have none.
    """
    return _faults(prompts, _look_at(_clips_of(prompts)))


def agreed_headers(prompts: Sequence[Prompt]) -> dict[Clip, Header]:
    """What the headers of the prompts' clips say, by clip, the same on every rank. Collective.

    Rank 0 alone looks: a look of 80 ranks at 40,000 headers each is what a shared filesystem
    breaks down under, and ranks of which one has a stale view would train on different prompts and
    wait for each other for ever. It looks at a part of them at a time, and every part is progress
    for the watchdogs of all ranks. An error on rank 0 rises on every rank.
    """
    clips, found = _clips_of(prompts), dict[Clip, Header]()
    for start in range(0, len(clips), PART):
        part = clips[start : start + PART]
        found |= dist.run_on_main(functools.partial(_look_at, part))
        watchdog.beat()
    return found


def without_broken(prompts: Sequence[Prompt], headers: Mapping[Clip, Header]) -> list[Prompt]:
    """The prompts whose clips are there and have a sound header. headers: of all their clips.
    ClipError if none is left."""
    faults = warn_of_broken(prompts, headers, "are left out")
    return [prompt for prompt in prompts if prompt.id not in faults]


def warn_of_broken(
    prompts: Sequence[Prompt], headers: Mapping[Clip, Header], consequence: str
) -> dict[int, str]:
    """What is wrong with the clips of prompts, by prompt id: counted in one warning and named in
    the log, as `chat.without_long` does. ClipError where no prompt has its clip."""
    faults = _faults(prompts, headers)
    for place, fault in faults.items():
        log.info("prompt %d: %s: left out", place, fault)
    if prompts and len(faults) == len(prompts):
        first = next(iter(faults.values()))
        raise ClipError(f"none of the {len(prompts)} prompts has its clip; the first: {first}")
    if faults:
        log.warning(
            "%d of %d prompts have a missing or broken clip and %s; logs/ names them",
            len(faults),
            len(prompts),
            consequence,
        )
    return faults


def _clips_of(prompts: Sequence[Prompt]) -> list[Clip]:
    """Each once: several questions may ask about one."""
    heard = [prompt for prompt in prompts if prompt.metadata.get("audio")]
    return list(dict.fromkeys(map(_clip_of, heard)))


def _clip_of(prompt: Prompt) -> Clip:
    return prompt.metadata["audio"], str(prompt.metadata["audio_folder"])


def _faults(prompts: Sequence[Prompt], headers: Mapping[Clip, Header]) -> dict[int, str]:
    heard = [prompt for prompt in prompts if prompt.metadata.get("audio")]
    found = {prompt.id: headers[_clip_of(prompt)] for prompt in heard}
    return {place: header for place, header in found.items() if isinstance(header, str)}


def _look_at(clips: Sequence[Clip]) -> dict[Clip, Header]:
    optional("soundfile")
    with ThreadPoolExecutor(_THREADS) as pool:
        return dict(zip(clips, pool.map(_header, clips), strict=True))


def _header(clip: Clip) -> Header:
    try:
        return duration(clip[0], Path(clip[1]))
    except ClipError as error:
        return str(error)
