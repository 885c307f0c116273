"""One file → one clip: its sound at 16 kHz, mono, as the bytes of a FLAC file.

Runs in the processes of a pool, so nothing here imports torch. The same file gives the same bytes
with the same versions of the decoders, in any process.
"""

from __future__ import annotations

import io
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from adrpo_scale.core.errors import AdrpoError, ClipError
from adrpo_scale.data.clips import (
    LONGEST_SECONDS,
    SAMPLE_RATE,
    Samples,
    check_length,
    check_size,
    clip_name,
    optional,
    read_clip,
    to_mono_16k,
)
from adrpo_scale.data.prepare.sources import Source

_WHOLE = 0.9  # of the length that a video's header promises: tracks end a little before it
_SCALE = 32768  # 16 bits


@dataclass(frozen=True)
class Extracted:
    """The result of one source. flac: None where no sound could be read; fault: the reason.
    samples: at 16 kHz."""

    clip: str
    flac: bytes | None = None
    samples: int = 0
    fault: str | None = None


def extract(source: Source) -> Extracted:
    """The clip of a source. Only an error that concerns all sources is raised, such as a missing
    package: one bad file among 40,000 must not end the work on the others."""
    try:
        if source.is_video:
            samples = video_sound(source.path)
        else:
            samples = read_clip(source.path.name, source.path.parent)
        return Extracted(source.clip, flac_bytes(samples), len(samples))
    except ClipError as error:
        return Extracted(source.clip, fault=str(error))
    except AdrpoError:
        raise
    except Exception as error:  # decoders raise anything
        return Extracted(source.clip, fault=f"{source.path}: {type(error).__name__}: {error}")


def flac_bytes(samples: Samples) -> bytes:
    """[samples] float32 at 16 kHz within [-1, 1] → a FLAC file of 16 bits."""
    integers = np.clip(np.rint(samples * _SCALE), -_SCALE, _SCALE - 1).astype(np.int16)
    file = io.BytesIO()
    optional("soundfile").write(file, integers, SAMPLE_RATE, format="FLAC", subtype="PCM_16")
    return file.getvalue()


def video_sound(path: Path) -> Samples:
    """The first audio track of a video, as `read_clip` gives it.

    A packet that the decoder refuses is skipped, as players do. Raises ClipError for a file that is
    no video or has no audio track, and where less than 90 % of the length in its header can be
    decoded.
    """
    av = optional("av")
    name = clip_name(path.name, path.parent)
    try:
        with av.open(str(path)) as container:
            if not container.streams.audio:
                raise ClipError(f"{name} has no audio track; take it out")
            stream = container.streams.audio[0]
            promised = _promised_seconds(container, stream)
            check_length(promised or 1.0, name)
            parts, rate = _decoded(av, container, stream, name)
    except av.FFmpegError as error:
        raise ClipError(
            f"{name} is broken or no video ({error.strerror}); download it again or take it out"
        ) from None
    if not parts:
        raise ClipError(f"{name} has an audio track of which nothing can be decoded; take it out")
    sound = np.concatenate(parts, axis=1)
    seconds = sound.shape[1] / rate
    check_length(seconds, name)
    if seconds < _WHOLE * promised:
        raise ClipError(
            f"{name} is cut short: {seconds:.2f} s of sound can be decoded, its header says "
            f"{promised:.2f} s; download it again"
        )
    return to_mono_16k(sound.T, rate, name)


def _promised_seconds(container: Any, stream: Any) -> float:
    """Length of the track, else of the file (webm tracks state none); 0 where neither states it."""
    if stream.duration is not None and stream.time_base is not None:
        return float(stream.duration * stream.time_base)
    return (container.duration or 0) / 1e6  # FFmpeg's microseconds


def _decoded(av: Any, container: Any, stream: Any, name: str) -> tuple[list[Samples], int]:
    """([channels, samples] a frame, sample rate); stops where the clip is too long anyway."""
    rate = int(stream.rate)
    # Planar float with the rate and channels of the beginning: both may change inside a track.
    planar = av.AudioResampler(format="fltp", layout=stream.layout, rate=rate)
    most = math.ceil(LONGEST_SECONDS * rate) + 1
    parts: list[Samples] = []
    count = 0
    for packet in container.demux(stream):
        for frame in _frames(av, packet):
            parts += [part.to_ndarray() for part in planar.resample(frame)]
            count += frame.samples
        check_size(count * stream.channels, name)
        if count > most:
            break
    else:
        parts += [part.to_ndarray() for part in planar.resample(None)]
    return parts, rate


def _frames(av: Any, packet: Any) -> list[Any]:
    try:
        return list(packet.decode())
    except av.FFmpegError:
        return []  # the loss shows in the length
