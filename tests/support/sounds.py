"""Audio and video files made by code: a tone each, so that what is read back can be recognised."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import av
import numpy as np
import soundfile

VIDEO = {".mp4": ("mpeg4", "aac", 44100), ".webm": ("libvpx", "libopus", 48000)}


def tone(hertz: float, seconds: float, rate: int) -> np.ndarray:
    """[samples] float32, amplitude 0.4."""
    times = np.arange(round(seconds * rate)) / rate
    return (0.4 * np.sin(2 * np.pi * hertz * times)).astype(np.float32)


def pitch(samples: np.ndarray, rate: int = 16_000) -> float:
    """Hz of the strongest frequency."""
    return float(np.abs(np.fft.rfft(samples)).argmax() * rate / len(samples))


def write_audio(
    path: Path, hertz: float = 440, seconds: float = 1.0, rate: int = 16_000, channels: int = 1
) -> Path:
    """A file of the kind that its suffix says; a second channel has half the amplitude."""
    path.parent.mkdir(parents=True, exist_ok=True)
    sound = tone(hertz, seconds, rate)
    both = np.stack([sound * 0.5**channel for channel in range(channels)], axis=1)
    soundfile.write(path, both, rate)
    return path


def write_video(
    path: Path, hertz: float = 440, seconds: float = 1.0, sound: bool = True, fast: bool = False
) -> Path:
    """An mp4 or webm, 32 × 32, stereo. sound: False for no audio track; fast: the index of an mp4
    comes first, so that a cut file can be opened."""
    path.parent.mkdir(parents=True, exist_ok=True)
    video_codec, audio_codec, rate = VIDEO[path.suffix]
    options = {"movflags": "faststart"} if fast else {}
    with av.open(str(path), "w", options=options) as container:
        pictures = container.add_stream(video_codec, rate=10)
        pictures.width = pictures.height = 32
        pictures.pix_fmt = "yuv420p"
        track = container.add_stream(audio_codec, rate=rate, layout="stereo") if sound else None
        for place in range(round(seconds * 10)):
            pixels = np.full((32, 32, 3), place * 20 % 256, np.uint8)
            container.mux(pictures.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        container.mux(pictures.encode())
        if track is not None:
            _write_track(container, track, tone(hertz, seconds, rate), rate)
    return path


def _write_track(container: Any, track: Any, samples: np.ndarray, rate: int) -> None:
    for start in range(0, len(samples), 1024):
        block = np.ascontiguousarray(np.tile(samples[start : start + 1024], (2, 1)))
        frame = av.AudioFrame.from_ndarray(block, format="fltp", layout="stereo")
        frame.sample_rate, frame.pts = rate, start
        container.mux(track.encode(frame))
    container.mux(track.encode())


def cut(path: Path, share: float) -> Path:
    """Keeps the beginning of a file."""
    data = path.read_bytes()
    path.write_bytes(data[: int(share * len(data))])
    return path


def avqa_row(number: int, video: str, **other: Any) -> dict[str, Any]:
    """A row as AVQA publishes it."""
    return {
        "id": number,
        "video_name": video,
        "video_id": number,
        "question_text": "What is the main sound source of the video?",
        "multi_choice": ["dog", "motorboat", "wind noise", "church bell"],
        "answer": number % 4,
        "question_relation": "Sound",
        "question_type": "Come From",
        **other,
    }


def write_rows(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text(json.dumps(rows))
    return path


def read_lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]
