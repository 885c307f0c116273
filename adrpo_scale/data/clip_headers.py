"""Checks of the prompts' clips by their headers, before a run: the same result on every rank."""

from __future__ import annotations

import functools
import logging
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from adrpo_scale.core import dist
from adrpo_scale.core.errors import ClipError, ConfigError, PromptError
from adrpo_scale.core.naming import named
from adrpo_scale.core.pace import Pace
from adrpo_scale.core.types import Prompt
from adrpo_scale.data.clips import duration, optional

log = logging.getLogger(__name__)

PACKAGES = ("soundfile", "soxr")  # the second for clips that are not at 16 kHz
PART = 1000  # headers between two beats of the watchdog: takes seconds, on a slow filesystem too
_THREADS = 16  # a look at a header only waits for the disk

Clip = tuple[str, str]  # (reference, folder)
Header = float | str  # seconds of a clip, or its fault


def check_packages() -> None:
    """Raises ConfigError on every rank where one of them lacks a package that reads audio.
    Collective: that rank would fail alone at its first clip, and the others would wait for it."""
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


def clip_of(prompt: Prompt) -> tuple[str, Path] | None:
    """(reference, folder) of a prompt's clip; None without a clip. PromptError for a clip without a
    folder, and for one whose name is no text."""
    reference, folder = (prompt.metadata.get(key) for key in ("audio", "audio_folder"))
    if not reference:
        return None
    if not folder:
        raise PromptError(
            f"{named(prompt)} names the clip {reference!r} and no folder; "
            'add "audio_folder" to its row, or write the rows with `adrpo-scale prepare`'
        )
    if not isinstance(reference, str) or not isinstance(folder, str | Path):
        raise PromptError(
            f"{named(prompt)} names the clip {reference!r} in {folder!r}, expected the name of a "
            "file and its folder; correct its row"
        )
    return reference, Path(folder)


def clip_faults(prompts: Sequence[Prompt]) -> Mapping[int, str]:
    """Faults of the clips of prompts (`metadata`: audio, audio_folder), by prompt id: missing, not
    audio by its header, empty, too short, too long. A prompt without audio has no fault."""
    return _faults(prompts, _look_at(_clips_of(prompts)))


def agreed_headers(prompts: Sequence[Prompt]) -> dict[Clip, Header]:
    """The headers of the prompts' clips, by clip, the same on every rank. Collective.

    Rank 0 alone reads them: 80 ranks with 40,000 headers each would overload a shared filesystem,
    and a rank with a stale view would train on other prompts and wait for the others for ever. The
    headers are read in parts, each of which is progress for the watchdogs of all ranks. An error on
    rank 0 is raised on every rank.
    """
    clips, found = _clips_of(prompts), dict[Clip, Header]()
    pace = Pace("looking at clips", len(clips), "clips", together=True)
    for start in range(0, len(clips), PART):
        part = clips[start : start + PART]
        found |= dist.run_on_main(functools.partial(_look_at, part))
        pace.step(len(part))
    return found


def without_broken(prompts: Sequence[Prompt], headers: Mapping[Clip, Header]) -> list[Prompt]:
    """The prompts without a clip or whose clip has no fault. headers: of all their clips. Raises
    ClipError if none is left."""
    faults = warn_of_broken(prompts, headers, "are left out")
    return [prompt for prompt in prompts if prompt.id not in faults]


def warn_of_broken(
    prompts: Sequence[Prompt], headers: Mapping[Clip, Header], consequence: str
) -> dict[int, str]:
    """Faults of the clips of prompts, by prompt id: counted in one warning, each named in the log.
    consequence: ends the warning's sentence. Raises ClipError where no prompt has its clip."""
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
    """The prompts' clips, each once: several questions may ask about one clip."""
    return list(dict.fromkeys(clip for clip in map(_clip_of, prompts) if clip is not None))


def _clip_of(prompt: Prompt) -> Clip | None:
    clip = clip_of(prompt)
    return None if clip is None else (clip[0], str(clip[1]))


def _faults(prompts: Sequence[Prompt], headers: Mapping[Clip, Header]) -> dict[int, str]:
    clips = {prompt.id: _clip_of(prompt) for prompt in prompts}
    found = {place: headers[clip] for place, clip in clips.items() if clip is not None}
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
