"""The command `prepare`: what it leaves, what it survives, and how it says no."""

from __future__ import annotations

import json
import tarfile
from pathlib import Path

import pytest
from typer.testing import CliRunner

from adrpo_scale.cli import main as cli
from adrpo_scale.core.errors import (
    ClipError,
    RunFolderError,
)
from adrpo_scale.data.clips import read_clip
from adrpo_scale.data.prepare import mmau
from adrpo_scale.data.prepare.extract import extract, video_sound
from adrpo_scale.data.prepare.pool import in_order
from adrpo_scale.data.prepare.shards import END, JOURNAL, Shards
from adrpo_scale.data.prepare.sources import Source
from tests.core.test_json_files import ODD
from tests.support.dying import negative, square_or_die
from tests.support.prepared import left, record_of
from tests.support.sounds import (
    cut,
    pitch,
    read_lines,
    write_audio,
    write_rows,
    write_video,
)

# ---- videos --------------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", [".mp4", ".webm"])
def test_the_sound_of_a_video(tmp_path: Path, suffix: str) -> None:
    samples = video_sound(write_video(tmp_path / f"v{suffix}", 440, 1.0))
    assert len(samples) == pytest.approx(16000, abs=400)  # the codec pads
    assert pitch(samples) == pytest.approx(440, abs=3)
    assert abs(samples[4000:-4000]).max() == pytest.approx(0.4, abs=0.08)


def test_what_is_wrong_with_a_video_is_said_with_its_name(tmp_path: Path) -> None:
    (tmp_path / "junk.mp4").write_bytes(b"junk" * 200)
    wrong = {
        write_video(tmp_path / "silent.mp4", sound=False): "has no audio track",
        cut(write_video(tmp_path / "cut.mp4"), 0.6): "is broken or no video",
        cut(write_video(tmp_path / "fast.mp4", seconds=2, fast=True), 0.6): "is cut short",
        cut(write_video(tmp_path / "cut.webm", seconds=2), 0.6): "is cut short",
        write_video(tmp_path / "brief.webm", seconds=0.05): "expected 0.1 to 300 s",
        tmp_path / "junk.mp4": "is broken or no video",
        tmp_path / "nowhere.mp4": "is broken or no video",
    }
    for path, stated in wrong.items():
        with pytest.raises(ClipError) as error:
            video_sound(path)
        assert stated in str(error.value) and path.name in str(error.value), path


def test_an_odd_file_is_a_fault_and_never_an_error(tmp_path: Path) -> None:
    (tmp_path / "v.mp4").mkdir()
    found = extract(Source("v", tmp_path / "v.mp4", is_video=True))
    assert found.flac is None and "v.mp4" in str(found.fault)


# ---- shards --------------------------------------------------------------------------------------


def fill(folder: Path, names: range, limit: int = 3000) -> Shards:
    folder.mkdir(exist_ok=True)
    with Shards(folder, limit) as shards:
        for n in names:
            if f"c{n}" not in shards.entries:
                shards.append(f"c{n}", bytes([n]) * (100 + 37 * n), n)
    return shards


def names_in(path: Path) -> list[str]:
    with tarfile.open(path) as tar:
        return tar.getnames()


def test_shards_are_plain_tars_and_entries_lead_to_their_members(tmp_path: Path) -> None:
    shards = fill(tmp_path, range(9))
    tars = sorted(tmp_path.glob("*.tar"))
    assert len(tars) > 2 and all(p.stat().st_size <= 3000 for p in tars)
    assert [name for tar in tars for name in names_in(tar)] == [f"c{n}.flac" for n in range(9)]
    for n, entry in enumerate(shards.entries.values()):
        name, offset, length = entry.reference.split(":")
        data = (tmp_path / name).read_bytes()[int(offset) :][: int(length)]
        assert data == bytes([n]) * (100 + 37 * n) and entry.samples == n
        assert (tmp_path / name).read_bytes().endswith(END)


def test_long_and_foreign_names_and_large_clips_have_room(tmp_path: Path) -> None:
    names = ["x" * 150, "größe/../a", "b"]
    with Shards(tmp_path, 1000) as shards:
        for name in names:
            shards.append(name, b"flac" * 999, 1)
    found = [names_in(p) for p in sorted(tmp_path.glob("*.tar"))]
    assert found == [["x" * 150 + ".flac"], ["größe_.._a.flac"], ["b.flac"]]
    for entry in shards.entries.values():
        name, offset, length = entry.reference.split(":")
        assert (tmp_path / name).read_bytes()[int(offset) :][: int(length)] == b"flac" * 999


ODD_ENTRY = {"clip": "c1", "shard": 0, "offset": 512, "length": 100, "samples": 1}


@pytest.mark.parametrize(
    "line",
    [
        *ODD.values(),
        *(
            json.dumps(ODD_ENTRY | {name: value}).encode()
            for name, value in (("clip", 1), ("shard", "0"), ("offset", -1), ("length", 1.5))
        ),
        json.dumps(ODD_ENTRY | {"more": 1}).encode(),
    ],
)
def test_a_bad_line_of_the_journal_is_where_the_next_start_goes_on(
    tmp_path: Path, line: bytes
) -> None:
    fill(tmp_path, range(9))
    expected = left(tmp_path)
    lines = expected[JOURNAL].splitlines(keepends=True)
    (tmp_path / JOURNAL).write_bytes(b"".join([*lines[:4], line + b"\n", *lines[4:]]))
    fill(tmp_path, range(9))
    assert left(tmp_path) == expected


def test_a_folder_that_was_taken_over_is_left_as_it_is(tmp_path: Path) -> None:
    def lost() -> None:
        raise RunFolderError("taken over")

    for names in (range(0), range(9)):
        fill(tmp_path, names)
        before = left(tmp_path)
        with pytest.raises(RunFolderError), Shards(tmp_path, 3000, lost) as shards:
            shards.append("late", b"flac" * 99, 1)
        with pytest.raises(RunFolderError), Shards(tmp_path, 3000, lost):
            pass
        assert left(tmp_path) == before


def test_whatever_a_kill_leaves_the_next_life_ends_with_the_same_bytes(tmp_path: Path) -> None:
    fill(tmp_path / "whole", range(9))
    expected = left(tmp_path / "whole")
    journal = expected[JOURNAL]
    lines = journal.splitlines(keepends=True)
    last = sorted(name for name in expected if name.endswith(".tar"))[-1]
    damages = {
        "half a line": {JOURNAL: journal[:-9]},
        "nothing committed": {JOURNAL: b""},
        "half a member": {JOURNAL: b"".join(lines[:-1]), last: expected[last][:700]},
        "no end of the tar": {last: expected[last][: -len(END)]},
        "a begun shard": {"clips-00044.tar": b"half a member"},
        "a lost shard": {"clips-00001.tar": None},
        "a line of something else": {JOURNAL: journal + b'{"clip": 1}\n'},
    }
    for name, damage in damages.items():
        folder = tmp_path / "again"
        folder.mkdir()
        for file, content in (expected | damage).items():
            if content is not None:
                (folder / file).write_bytes(content)
        fill(folder, range(9))
        assert left(folder) == expected, name
        for path in folder.iterdir():
            path.unlink()
        folder.rmdir()


def test_shards_that_are_complete_are_not_touched(tmp_path: Path) -> None:
    fill(tmp_path, range(5))
    before = {p: p.stat().st_mtime_ns for p in tmp_path.iterdir()}
    fill(tmp_path, range(5))
    assert {p: p.stat().st_mtime_ns for p in tmp_path.iterdir()} == before


# ---- the pool ------------------------------------------------------------------------------------


def test_a_task_that_takes_its_process_down_costs_nothing_but_itself() -> None:
    found = list(in_order(square_or_die, range(9), 2, negative))
    assert found == [0, 1, 4, -3, 16, 25, 36, 49, -8]


# ---- prepare mmau --------------------------------------------------------------------------------


def mmau_row(name: str, task: str, **other: object) -> dict:
    return {
        "id": name,
        "audio_id": f"./test-mini-audios/{name}.wav",
        "question": "What instrument is playing?",
        "choices": ["Piano", "Guitar"],
        "answer": "Piano",
        "dataset": "d",
        "task": task,
        "split": "test-mini",
        "category": "Reasoning",
        "sub-category": "Instruments",
        "difficulty": "easy",
    } | other


def test_mmau_is_checked_and_its_revision_stamped(tmp_path: Path) -> None:
    audio = tmp_path / "test-mini-audios"
    for name in ("s1", "m1", "odd", "twice"):
        write_audio(audio / f"{name}.wav", seconds=0.2)
    (audio / "broken.wav").write_bytes(b"")
    rows = [
        mmau_row("s1", "sound"),
        mmau_row("m1", "music"),
        mmau_row("s1", "sound"),
        mmau_row("gone", "speech"),
        mmau_row("broken", "speech"),
        mmau_row("odd", "music", answer="Drum"),
        mmau_row("twice", "music", choices=["Piano", "Piano"]),
        mmau_row("wrong", "music", question=None),
    ]
    source = write_rows(tmp_path / "mmau.json", rows)
    to = tmp_path / "out"
    record = mmau.prepare_mmau(mmau.MmauOptions(source, audio, to, "v05.15.25"))
    assert record == record_of(to)
    assert record["revision"] == "v05.15.25" and len(record["source"]["sha256"]) == 64
    assert record["tasks"] == {"sound": 1, "music": 3}
    found = read_lines(to / "mmau.jsonl")
    assert [row["id"] for row in found] == ["s1", "m1", "odd", "twice"]
    assert found[0] | {"audio": ""} == {
        "id": "s1",
        "question": "What instrument is playing?",
        "choices": ["Piano", "Guitar"],
        "answer": "Piano",
        "audio": "",
        "task": "sound",
        "category": "Reasoning",
        "sub_category": "Instruments",
        "difficulty": "easy",
        "original": rows[0],
    }
    assert len(read_clip(found[0]["audio"], to)) == 3200
    skipped = {line["row"]: line["reason"] for line in read_lines(to / "skipped.jsonl")}
    assert list(skipped) == ["entry 3", "entry 4", "entry 5", "entry 8"]
    assert "earlier row" in skipped["entry 3"] and "gone" in skipped["entry 4"]
    warnings = "\n".join(record["warnings"])
    assert "test-mini has 334 music, 333 sound, 333 speech" in warnings
    assert "1 answers are not among their choices: odd" in warnings
    assert "1 questions have a choice twice: twice" in warnings


def test_the_whole_of_mmau_gives_no_warning(tmp_path: Path) -> None:
    write_audio(tmp_path / "audio" / "a.wav", seconds=0.2)
    rows = [
        mmau_row(f"{task}{n}", task, audio_id="a.wav")
        for task, count in mmau.EXPECTED.items()
        for n in range(count)
    ]
    source, to = write_rows(tmp_path / "mmau.json", rows), tmp_path / "out"
    words = ["--json", source, "--audio", tmp_path / "audio", "--to", to, "--revision", "r1"]
    done = CliRunner().invoke(cli.app, ["prepare", "mmau", *map(str, words)])
    assert done.exit_code == 0, done.output
    assert "rows:  1,000 of 1,000 usable" in done.output and "warning" not in done.output
