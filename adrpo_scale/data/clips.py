"""Audio clips as models take them: mono float32 at 16 kHz, from files of any rate or from shards.

Contract: a clip is named by a reference, relative to a folder (that of the rows that name it):

    rain.flac                      a wav, flac, mp3 or ogg file, any rate, mono or stereo
    clips-00003.tar:1049088:81234  bytes of one FLAC file inside a plain tar, read by offset: no
                                   index in memory, no list of 40,000 names on a shared filesystem

A clip is complete, or raises ClipError: none is cut, padded or repeated here. It is a regular
file, of at most `MOST_VALUES` samples in all channels: a header of a few bytes can promise
terabytes. Channels are averaged. Clips longer than `LONGEST_SECONDS` are refused, because
Qwen2.5-Omni's feature extractor would cut them off silently; those shorter than
`SHORTEST_SECONDS`, because its audio tower makes no token of them.

soundfile and soxr are optional packages, so they are imported where they are used.
"""

from __future__ import annotations

import errno
import io
import re
import time
from collections.abc import Callable
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, TypeVar

import numpy as np
from numpy.typing import NDArray

from adrpo_scale.core.errors import ClipError, ConfigError
from adrpo_scale.core.files import open_regular
from adrpo_scale.core.paths import is_name

if TYPE_CHECKING:
    from collections.abc import Iterator

SAMPLE_RATE = 16_000  # Hz: of Qwen2.5-Omni's feature extractor
LONGEST_SECONDS = 300.0  # window of the feature extractor
SHORTEST_SECONDS = 0.1
AUDIO_SUFFIXES = (".wav", ".flac", ".mp3", ".ogg", ".oga", ".opus")
PACKAGES = "adrpo_scale[audio]"

MOST_VALUES = 300 * 192_000 * 2  # those of the longest clip in stereo at 192 kHz: 460 MB

_IN_SHARD = re.compile(r"(?P<shard>.+\.tar):(?P<offset>[0-9]{1,18}):(?P<length>[0-9]{1,18})")
_CUT_WAV = re.compile(r"^data : ([0-9]+) \(should be ([0-9]+)\)", re.MULTILINE)
_STREAMED = 0x7FFF_0000  # and above: the length in a wav that was written to a pipe
_FLAC_HEADER = 4096  # bytes that hold a member's header, of which the first 42 are needed
_WHOLE = 0.98  # of the length in the header: that of an mp3 is a frame or two off
# Passing errors of a network filesystem, and the seconds before each new attempt.
_STUMBLES = {errno.EIO, errno.ESTALE, errno.EAGAIN, errno.ETIMEDOUT}
_WAITS = (0.5, 2.0, 5.0)

Samples = NDArray[np.float32]
Result = TypeVar("Result")


def read_clip(reference: str, folder: Path, longest: float = LONGEST_SECONDS) -> Samples:
    """The samples of a clip, float32 [samples] at 16 kHz, mono, within [-1, 1].

    Raises ClipError for a clip that is missing, broken, cut short, empty, or has a length outside
    `SHORTEST_SECONDS` .. `longest` seconds; ConfigError without soundfile or soxr.
    """
    name = clip_name(reference, folder)
    with _opened(reference, folder) as stream, _sound_file(stream, name) as sound:
        check_length(_seconds(sound, name), name, longest)
        frames, rate = sound.frames, sound.samplerate
        check_size(frames * sound.channels, name)
        samples = _decoded(sound, name)
    if len(samples) < _WHOLE * frames:
        raise ClipError(
            f"{name} is cut short: {len(samples) / rate:.2f} s can be decoded, its header says "
            f"{frames / rate:.2f} s; copy or extract it again"
        )
    return to_mono_16k(samples, rate, name)


def duration(reference: str, folder: Path) -> float:
    """Seconds of a clip, from its header alone. Raises as `read_clip` does, except for faults that
    only decoding finds."""
    name = clip_name(reference, folder)
    with _opened(reference, folder, _FLAC_HEADER) as stream, _sound_file(stream, name) as sound:
        seconds = _seconds(sound, name)
        check_size(sound.frames * sound.channels, name)
    check_length(seconds, name)
    return seconds


def clip_name(reference: str, folder: Path) -> str:
    """The name of a clip in errors."""
    return f"clip {str(folder / reference)!r}"


def check_length(seconds: float, name: str, longest: float = LONGEST_SECONDS) -> None:
    """Raises ClipError for a clip that is empty, or too short or too long for the model."""
    if seconds == 0:
        raise ClipError(f"{name} is empty: it has no sample; extract it again or take it out")
    if not SHORTEST_SECONDS <= seconds <= longest:
        raise ClipError(
            f"{name} has {seconds:.3g} s, expected {SHORTEST_SECONDS:g} to {longest:g} s: a model "
            "hears nothing of a shorter clip, and only the beginning of a longer one; cut it into "
            "parts or take it out"
        )


def check_size(values: int, name: str) -> None:
    """Raises ClipError for more samples, in all channels, than are decoded at once."""
    if values > MOST_VALUES:
        raise ClipError(
            f"{name} has {values:,} samples in all channels, expected at most {MOST_VALUES:,}; "
            "convert it to mono at 16 kHz or take it out"
        )


def to_mono_16k(samples: Samples, rate: int, name: str) -> Samples:
    """[frames, channels] at `rate` Hz → [samples] at 16 kHz, within [-1, 1]: the mean of the
    channels, resampled by soxr at its high quality. ClipError where a sample is not finite."""
    mono = samples.mean(axis=1, dtype=np.float32)
    if not np.isfinite(mono).all():
        raise ClipError(f"{name} has samples that are not finite; extract it again or take it out")
    if rate != SAMPLE_RATE:
        mono = optional("soxr").resample(mono, rate, SAMPLE_RATE)
    # Resampling overshoots at a clipped peak, and float files may hold larger values.
    return np.clip(mono, -1.0, 1.0).astype(np.float32, copy=False)


def optional(package: str) -> Any:
    """Imports a package of the group `audio`. Raises ConfigError that tells how to install it."""
    try:
        return import_module(package)
    except (ImportError, OSError) as error:  # OSError: soundfile without its libsndfile
        raise ConfigError(
            f"reading audio needs the package {package} ({error}); install it with "
            f"pip install '{PACKAGES}', or pip install {package}"
        ) from None


# ---- files and members ---------------------------------------------------------------------------


@contextmanager
def _opened(reference: str, folder: Path, most: int | None = None) -> Iterator[BinaryIO]:
    """The file of a clip, or the bytes of one in a shard: the first `most`, all by default."""
    inside = _IN_SHARD.fullmatch(reference)
    name = clip_name(reference, folder)
    path = folder / (inside["shard"] if inside else reference)
    if not is_name(path):
        raise ClipError(f"{name} is the name of no file; correct it or take it out")
    try:
        if inside is None:
            with patiently(lambda: open_regular(path)) as file:
                yield file
        else:
            offset, length = int(inside["offset"]), int(inside["length"])
            yield patiently(lambda: _member(path, offset, length, most, name))
    except FileNotFoundError:
        remedy = "copy the shards of `prepare` beside its rows" if inside else "copy it there"
        raise ClipError(f"{name} is missing: expected the file {path}; {remedy}") from None
    except OSError as error:
        raise ClipError(f"{name} cannot be read ({error.strerror}); is it a file?") from None


def _member(path: Path, offset: int, length: int, most: int | None, name: str) -> BinaryIO:
    with open_regular(path) as file:
        size = file.seek(0, io.SEEK_END)
        if offset + length > size:
            raise ClipError(
                f"{name} lies beyond the end of its shard, which has {size} bytes, expected at "
                f"least {offset + length}; copy the shard again, or the rows that belong to it"
            )
        check_size(length, name)  # compressed, so fewer bytes than samples
        file.seek(offset)
        return io.BytesIO(file.read(length if most is None else min(length, most)))


def patiently(action: Callable[[], Result]) -> Result:
    """The result of `action()`, repeated after passing errors of a network filesystem: these occur
    in weeks of training, and a clip that cannot be read would be left out."""
    for seconds in _WAITS:
        try:
            return action()
        except OSError as error:
            if error.errno not in _STUMBLES:
                raise
        time.sleep(seconds)
    return action()


@contextmanager
def _sound_file(stream: BinaryIO, name: str) -> Iterator[Any]:
    soundfile = optional("soundfile")
    try:
        with soundfile.SoundFile(stream) as sound:
            yield sound
    except (soundfile.LibsndfileError, TypeError) as error:  # TypeError: a file taken for raw PCM
        raise ClipError(
            f"{name} is broken or no audio ({error}); expected wav, flac, mp3 or ogg. Copy or "
            "extract it again, or take it out"
        ) from None


def _seconds(sound: Any, name: str) -> float:
    """Length by the header. Raises ClipError for a wav that is shorter than its header states."""
    cut = _CUT_WAV.search(sound.extra_info)
    if cut and int(cut[2]) < int(cut[1]) < _STREAMED:
        raise ClipError(
            f"{name} is cut short: {cut[2]} bytes of sound, its header says {cut[1]}; copy or "
            "extract it again"
        )
    return float(sound.frames / sound.samplerate)


def _decoded(sound: Any, name: str) -> Samples:
    """All frames, [frames, channels]."""
    samples: Samples = sound.read(dtype="float32", always_2d=True)
    return samples
