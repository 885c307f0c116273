"""Clips: what is heard of files of every kind, what is refused, and the prompts about them."""

from __future__ import annotations

import errno
import io
import json
import logging
import sys
import tarfile
from pathlib import Path

import numpy as np
import pytest
import soundfile

from adrpo_scale.core import watchdog
from adrpo_scale.core.errors import ClipError, ConfigError, PromptError
from adrpo_scale.data import clip_headers
from adrpo_scale.data import clips as audio_clips
from adrpo_scale.data import questions as avqa
from adrpo_scale.data.clip_headers import (
    agreed_headers,
    check_packages,
    clip_faults,
    without_broken,
)
from adrpo_scale.data.clips import duration, patiently, read_clip
from adrpo_scale.data.formats import guess_format
from adrpo_scale.data.prompt_files import load_prompts
from tests.support.sounds import avqa_row, cut, pitch, tone, write_audio, write_rows

ROW = {
    "id": 7,
    "question": "What happened in the video?",
    "choices": ["a dog's bark", "rain"],
    "answer": "rain",
    "audio": "rain.wav",
    "seconds": 1.0,
    "video": "rain",
    "type": "Happening",
}


# ---- reading -------------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", [".wav", ".flac", ".mp3", ".ogg"])
@pytest.mark.parametrize(("rate", "channels"), [(8000, 1), (16000, 1), (44100, 2), (48000, 2)])
def test_any_file_is_heard_at_16_khz_mono(
    tmp_path: Path, suffix: str, rate: int, channels: int
) -> None:
    write_audio(tmp_path / f"a{suffix}", 440, 1.0, rate, channels)
    samples = read_clip(f"a{suffix}", tmp_path)
    assert samples.dtype == np.float32 and samples.ndim == 1
    assert len(samples) == pytest.approx(16000, abs=100)
    assert pitch(samples) == pytest.approx(440, abs=2)
    # The mean of the channels: the second has half the amplitude of the first.
    level = 0.4 if channels == 1 else 0.3
    assert np.abs(samples[2000:-2000]).max() == pytest.approx(level, abs=0.03)
    assert duration(f"a{suffix}", tmp_path) == pytest.approx(1.0, abs=0.01)


def test_samples_stay_within_one(tmp_path: Path) -> None:
    loud = np.sign(tone(300, 0.5, 44100)) * 3  # a float wav may hold anything
    soundfile.write(tmp_path / "loud.wav", loud, 44100, subtype="FLOAT")
    samples = read_clip("loud.wav", tmp_path)
    assert np.abs(samples).max() == 1.0


def test_an_absolute_path_is_a_reference_too(tmp_path: Path) -> None:
    path = write_audio(tmp_path / "a.wav")
    assert len(read_clip(str(path), Path("/elsewhere"))) == 16000


def shard(folder: Path) -> tuple[str, np.ndarray]:
    """A tar made by the standard library, with a FLAC as its second member, and what it holds."""
    sound = tone(500, 1.0, 16000)
    file = io.BytesIO()
    soundfile.write(file, sound, 16000, format="FLAC", subtype="PCM_16")
    with tarfile.open(folder / "clips-00000.tar", "w") as tar:
        for name, data in (("junk.txt", b"x" * 700), ("a.flac", file.getvalue())):
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    with tarfile.open(folder / "clips-00000.tar") as tar:
        member = tar.getmember("a.flac")
    return f"clips-00000.tar:{member.offset_data}:{member.size}", sound


def test_a_member_of_a_shard_is_read_by_its_offset(tmp_path: Path) -> None:
    reference, sound = shard(tmp_path)
    assert np.abs(read_clip(reference, tmp_path) - sound).max() < 1e-4
    assert duration(reference, tmp_path) == 1.0


# ---- what is refused -----------------------------------------------------------------------------


def broken(folder: Path) -> dict[str, str]:
    """reference → what the error says."""
    write_audio(folder / "long.wav", seconds=301, rate=8000)
    write_audio(folder / "short.wav", seconds=0.05)
    soundfile.write(folder / "empty.wav", np.zeros(0, np.float32), 16000)
    soundfile.write(folder / "nan.wav", np.full(16000, np.nan), 16000, subtype="FLOAT")
    (folder / "junk.wav").write_bytes(b"no audio" * 99)
    (folder / "nothing.mp3").write_bytes(b"")
    (folder / "folder.wav").mkdir()
    (folder / "other.raw").write_bytes(bytes(4000))
    for name in ("cut.wav", "cut.flac", "cut.mp3"):
        cut(write_audio(folder / name, seconds=3), 0.5)
    reference, _ = shard(folder)
    name, offset, length = reference.split(":")
    return {
        "long.wav": "has 301 s, expected 0.1 to 300 s",
        "short.wav": "has 0.05 s",
        "empty.wav": "is empty",
        "nan.wav": "not finite",
        "junk.wav": "broken or no audio",
        "nothing.mp3": "broken or no audio",
        "folder.wav": "cannot be read",
        "other.raw": "broken or no audio",
        "cut.wav": "is cut short",
        "cut.flac": "broken or no audio",
        "cut.mp3": "is cut short",
        "nowhere.wav": "is missing",
        "clips-00009.tar:512:99": "is missing",
        f"{name}:{offset}:{int(length) + 10**6}": "lies beyond the end of its shard",
        f"{name}:0:{length}": "broken or no audio",
    }


def test_what_is_wrong_with_a_clip_is_said_with_its_name(tmp_path: Path) -> None:
    for reference, stated in broken(tmp_path).items():
        with pytest.raises(ClipError) as error:
            read_clip(reference, tmp_path)
        assert stated in str(error.value) and reference in str(error.value), reference


def test_the_header_alone_finds_most_of_it(tmp_path: Path) -> None:
    for reference in broken(tmp_path):
        if reference in ("nan.wav", "cut.flac", "cut.mp3"):  # their headers are right
            assert duration(reference, tmp_path) > 0.5
        else:
            with pytest.raises(ClipError):
                duration(reference, tmp_path)


def test_a_wav_from_a_pipe_has_no_length_in_its_header(tmp_path: Path) -> None:
    data = bytearray(write_audio(tmp_path / "a.wav").read_bytes())
    place = data.index(b"data") + 4
    data[place : place + 4] = b"\xff\xff\xff\xff"
    (tmp_path / "a.wav").write_bytes(data)
    assert len(read_clip("a.wav", tmp_path)) == 16000


def test_packages_that_are_not_installed_are_named_with_the_line_that_installs_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_audio(tmp_path / "a.wav", rate=8000)
    for package in ("soxr", "soundfile"):
        monkeypatch.setitem(sys.modules, package, None)  # what Python does where it is absent
        with pytest.raises(ConfigError, match=rf"{package}.*pip install 'adrpo_scale\[audio\]'"):
            read_clip("a.wav", tmp_path)


# ---- wording -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("question", "asked"),
    [
        ("What happened in the video?", "What happened in the audio?"),
        ("Video: who sings?", "Audio: who sings?"),
        (
            "Is the VIDEO loud? In the video, who sings",
            "Is the AUDIO loud? In the audio, who sings",
        ),
        ("Does a videotape play on the video-wall?", "Does a videotape play on the video-wall?"),
        ("Which of the videos? VIDEOS, Videos.", "Which of the audios? AUDIOS, Audios."),
        ("The video's end", "The audio's end"),
        ("What is heard?", "What is heard?"),
    ],
)
def test_a_video_is_an_audio_to_who_only_hears(question: str, asked: str) -> None:
    assert avqa.about_audio(question) == asked


def test_the_two_variants_of_a_prompt() -> None:
    choices = ["a dog's bark", "the video"]
    begin = (
        "What happened in the audio? Please choose the answer from the following options: "
        """["a dog's bark", 'the video']. """
    )
    question = "What happened in the video?"
    answer = avqa.prompt_text(question, choices, think=False)
    think = avqa.prompt_text(question, choices, think=True)
    assert answer == begin + "Output the final answer in <answer> </answer>."
    assert think == begin + (
        "Output the thinking process in <think> </think> and final answer in <answer> </answer>."
    )


# ---- prompt files --------------------------------------------------------------------------------


def lines(path: Path, *rows: dict) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_prepared_rows_are_prompts(tmp_path: Path) -> None:
    path = lines(tmp_path / "train.jsonl", ROW)
    assert guess_format(path) == "avqa"
    (prompt,) = load_prompts(path)
    (thinking,) = load_prompts(path, "avqa_think")
    assert prompt.text.startswith("What happened in the audio? Please choose")
    assert "<think>" not in prompt.text and "<think>" in thinking.text
    assert prompt.metadata == thinking.metadata
    assert prompt.metadata == {
        "id": 7,
        "question": "What happened in the video?",
        "choices": ["a dog's bark", "rain"],
        "answer": "rain",
        "audio": "rain.wav",
        "audio_folder": str(tmp_path),
        "seconds": 1.0,
        "type": "Happening",
    }


def test_rows_of_avqa_with_audio_of_their_own_are_prompts_too(tmp_path: Path) -> None:
    rows = [avqa_row(n, f"v{n}", audio_path=f"wavs/v{n}.wav") for n in range(3)]
    path = write_rows(tmp_path / "train_qa.json", rows)
    assert guess_format(path) == "avqa"
    prompts = load_prompts(path)
    assert [p.metadata["answer"] for p in prompts] == ["dog", "motorboat", "wind noise"]
    assert [p.metadata["audio"] for p in prompts] == [f"wavs/v{n}.wav" for n in range(3)]
    assert [p.text for p in load_prompts(lines(tmp_path / "rows.jsonl", *rows))] == [
        p.text for p in prompts
    ]


@pytest.mark.parametrize(
    ("change", "stated"),
    [
        ({"answer": 4}, "'answer' is 4, expected an integer 0 to 3"),
        ({"answer": True}, "'answer' is True"),
        ({"multi_choice": ["one"]}, "expected a list of two texts or more"),
        ({"question_text": " "}, "'question_text' is ' ', expected a text"),
        ({}, "run `adrpo-scale prepare avqa` on this file"),
    ],
)
def test_a_wrong_row_is_refused_with_its_place(tmp_path: Path, change: dict, stated: str) -> None:
    good = avqa_row(0, "v", audio_path="v.wav")
    bad = avqa_row(1, "w", **({"audio_path": "w.wav"} if change else {})) | change
    with pytest.raises(PromptError) as error:
        load_prompts(write_rows(tmp_path / "rows.json", [good, bad]))
    assert stated in str(error.value) and "entry 2" in str(error.value)


def test_prompts_without_their_clip_are_counted_and_named(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    write_audio(tmp_path / "rain.wav")
    (tmp_path / "junk.wav").write_bytes(b"junk" * 50)
    clips = ("rain.wav", "nowhere.wav", "rain.wav", "junk.wav")
    prompts = load_prompts(lines(tmp_path / "t.jsonl", *({**ROW, "audio": c} for c in clips)))
    assert list(clip_faults(prompts)) == [1, 3]
    headers = agreed_headers(prompts)
    assert headers["rain.wav", str(tmp_path)] == 1.0 and len(headers) == 3
    with caplog.at_level(logging.INFO):
        kept = without_broken(prompts, headers)
    assert [prompt.id for prompt in kept] == [0, 2]  # ids stay those of the file
    assert "2 of 4 prompts have a missing or broken clip" in caplog.text
    assert "nowhere.wav" in caplog.text and "junk.wav" in caplog.text
    with pytest.raises(ClipError, match="none of the 2 prompts has its clip"):
        without_broken([prompts[1], prompts[3]], headers)


def test_looking_at_many_clips_is_progress_and_each_is_looked_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = [{**ROW, "audio": f"{n % 5}.wav"} for n in range(10)]
    for row in rows[:5]:
        write_audio(tmp_path / row["audio"])
    beats, seen = [], []
    look = clip_headers.duration
    monkeypatch.setattr(clip_headers, "PART", 2)
    monkeypatch.setattr(clip_headers, "duration", lambda *clip: (seen.append(clip), look(*clip))[1])
    monkeypatch.setattr(watchdog, "beat", lambda: beats.append(len(seen)))
    headers = agreed_headers(load_prompts(lines(tmp_path / "t.jsonl", *rows)))
    assert set(headers.values()) == {1.0} and len(headers) == 5
    assert beats == [2, 4, 5]


def test_a_filesystem_that_stumbles_is_asked_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(audio_clips, "_WAITS", (0.0, 0.0))
    errors = [OSError(errno.ESTALE, "stale"), OSError(errno.EIO, "input/output")]

    def action() -> str:
        if errors:
            raise errors.pop()
        return "there"

    assert patiently(action) == "there"
    errors += [OSError(errno.EIO, "input/output")] * 3
    with pytest.raises(OSError, match="input/output"):
        patiently(action)
    errors[:] = [FileNotFoundError(errno.ENOENT, "gone")] * 2
    with pytest.raises(FileNotFoundError):
        patiently(action)
    assert len(errors) == 1


def test_a_missing_package_is_said_before_any_clip(monkeypatch: pytest.MonkeyPatch) -> None:
    check_packages()
    monkeypatch.setattr(clip_headers, "PACKAGES", ("soundfile", "no_such_package"))
    with pytest.raises(ConfigError, match=r"needs the package no_such_package .*pip install"):
        check_packages()
