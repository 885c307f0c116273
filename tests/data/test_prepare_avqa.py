"""`prepare avqa`: clips of archives and videos, kills in its middle, and what it refuses."""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest
import soundfile
from typer.testing import CliRunner

from adrpo_scale.cli import main as cli
from adrpo_scale.core import disk_space, files
from adrpo_scale.core.errors import (
    ClipError,
    ConfigError,
    DiskSpaceError,
    PromptError,
    RunFolderError,
)
from adrpo_scale.core.folder_lock import RunLock
from adrpo_scale.data.clips import duration, read_clip
from adrpo_scale.data.prepare import avqa
from adrpo_scale.data.prepare.avqa import AvqaOptions, prepare_avqa
from adrpo_scale.data.prepare.shards import COMMIT_EVERY, END, JOURNAL
from adrpo_scale.data.prepare.sources import short_name
from adrpo_scale.data.prompts import load_prompts
from tests.support.prepared import left, record_of
from tests.support.sounds import (
    avqa_row,
    cut,
    pitch,
    read_lines,
    write_audio,
    write_rows,
    write_video,
)
from tests.support.waiting import wait_until

# ---- prepare avqa --------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def avqa_data(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """(rows, videos): nine videos of which one is twice asked about, and what goes wrong."""
    folder = tmp_path_factory.mktemp("avqa")
    videos = folder / "videos"
    for n in range(4):
        write_video(videos / "part1" / f"-clip{n}.mp4", 300 + 100 * n, 0.5)
    write_video(videos / "part2" / "clip4.webm", 700, 0.5)
    write_audio(videos / "clip5.wav", 900, 0.5)  # no video: not looked at
    write_video(videos / "silent.mp4", sound=False)
    cut(write_video(videos / "cut.mp4"), 0.6)
    names = ["-clip0", "-clip1", "cut", "-clip2", "-clip1", "silent", "-clip3", "clip4", "clip5"]
    rows = [avqa_row(100 + n, name) for n, name in enumerate(names)]
    rows.insert(2, avqa_row(999, "-clip0", answer=7))
    return write_rows(folder / "train_qa.json", rows), videos


@pytest.fixture(scope="module")
def prepared(avqa_data: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    to = tmp_path_factory.mktemp("prepared") / "out"
    prepare_avqa(AvqaOptions(avqa_data[0], to, avqa_data[1]))
    return to


def test_the_rows_and_clips_of_avqa(prepared: Path) -> None:
    rows = read_lines(prepared / "train.jsonl")
    assert [row["id"] for row in rows] == [100, 101, 103, 104, 106, 107]
    assert rows[0].keys() == {
        *("id", "question", "choices", "answer", "audio", "seconds", "video", "type")
    }
    assert rows[0]["question"] == "What is the main sound source of the video?"
    assert (rows[0]["answer"], rows[1]["answer"], rows[0]["type"]) == (
        "dog",
        "motorboat",
        "Come From",
    )
    assert rows[1]["audio"] == rows[3]["audio"]  # one clip, two questions
    for row, hertz in zip(rows, (300, 400, 500, 400, 600, 700), strict=True):
        samples = read_clip(row["audio"], prepared)
        assert pitch(samples) == pytest.approx(hertz, abs=4)
        assert row["seconds"] == pytest.approx(len(samples) / 16000, abs=1e-3)
        assert duration(row["audio"], prepared) == pytest.approx(row["seconds"], abs=1e-3)


def test_what_is_left_out_is_named_with_its_reason(prepared: Path) -> None:
    skipped = read_lines(prepared / "skipped.jsonl")
    assert [(line["what"], line.get("clip", line.get("row"))) for line in skipped] == [
        ("row", "entry 3"),
        ("missing", "clip5"),
        ("broken", "cut"),
        ("broken", "silent"),
    ]
    assert skipped[2]["rows"] == [102] and "cut.mp4" in skipped[2]["reason"]


def test_the_report_says_what_was_done_and_by_what(
    prepared: Path, avqa_data: tuple[Path, Path]
) -> None:
    record = record_of(prepared)
    assert record["rows"] == {"total": 10, "usable": 6, "wrong": 1}
    assert record["clips"] == {"done": 5, "missing": 1, "broken": 2, "reused": 0}
    assert record["sample_rate"] == 16000
    assert record["seconds"] == pytest.approx(2.5, abs=0.3)
    assert len(record["source"]["sha256"]) == 64
    assert all(record["versions"][name] for name in ("av", "libavcodec", "soundfile", "soxr"))
    assert list(record["shards"]) == ["clips-00000.tar"]


def test_any_tar_reads_a_shard(prepared: Path, tmp_path: Path) -> None:
    subprocess.run(["tar", "-xf", prepared / "clips-00000.tar", "-C", tmp_path], check=True)
    assert {p.name for p in tmp_path.iterdir()} == {
        *(f"-clip{n}.flac" for n in range(4)),
        "clip4.flac",
    }
    assert soundfile.info(tmp_path / "-clip0.flac").samplerate == 16000


def test_the_prepared_rows_are_prompts(prepared: Path) -> None:
    prompts = load_prompts(prepared / "train.jsonl")
    assert len(prompts) == 6 and "of the audio?" in prompts[0].text
    folder = Path(prompts[0].metadata["audio_folder"])
    assert len(read_clip(prompts[0].metadata["audio"], folder)) > 7000


def test_more_workers_leave_the_same_bytes(
    prepared: Path, avqa_data: tuple[Path, Path], tmp_path: Path
) -> None:
    prepare_avqa(AvqaOptions(avqa_data[0], tmp_path / "two", avqa_data[1], workers=2))
    assert left(tmp_path / "two") == left(prepared)


def test_a_second_start_finds_everything_and_adds_what_has_come_since(
    prepared: Path, avqa_data: tuple[Path, Path], tmp_path: Path
) -> None:
    rows, videos = avqa_data
    first = AvqaOptions(rows, tmp_path / "out", videos / "part1")
    assert prepare_avqa(first)["clips"] == {"done": 4, "missing": 4, "broken": 0, "reused": 0}
    before = (tmp_path / "out" / "clips-00000.tar").read_bytes()
    again = prepare_avqa(AvqaOptions(rows, tmp_path / "out", videos, videos))
    assert again["clips"] == {"done": 2, "missing": 0, "broken": 2, "reused": 4}
    assert again["rows"]["usable"] == 7
    after = (tmp_path / "out" / "clips-00000.tar").read_bytes()
    assert after.startswith(before[: -len(END)])
    last = read_lines(tmp_path / "out" / "train.jsonl")[-1]  # the sound that was ready
    assert last["video"] == "clip5" and pitch(read_clip(last["audio"], tmp_path / "out")) == 900


def test_rows_that_name_their_audio_need_no_videos(tmp_path: Path) -> None:
    write_audio(tmp_path / "wavs" / "a.mp3", rate=44100, channels=2)
    rows = [avqa_row(0, "v", audio_path="wavs/a.mp3")]
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps(rows[0]) + "\n")
    record = prepare_avqa(AvqaOptions(path, tmp_path / "out", audio=tmp_path))
    assert record["clips"]["done"] == 1
    assert read_lines(tmp_path / "out" / "train.jsonl")[0]["video"] == "v"


def test_rows_and_files_as_r1_aqa_publishes_them(tmp_path: Path) -> None:
    """By the name of the file that a row names, or by that of the video without zeros."""
    write_audio(tmp_path / "wavs" / "deep" / "-HG3Omg_89c_30.wav", 300)
    write_audio(tmp_path / "wavs" / "b_0.wav", 400)
    write_audio(tmp_path / "wavs" / "other.name.wav", 500)
    write_audio(tmp_path / "d.wav", 600)
    write_video(tmp_path / "videos" / "e_7.mp4", 700)
    rows = [
        avqa_row(0, "-HG3Omg_89c_000030", audio_path="Path to wav dir/-HG3Omg_89c_30.wav"),
        avqa_row(1, "b_000000"),
        avqa_row(2, "c_000010", audio_path="Path to wav dir/other.name.wav"),
        avqa_row(3, "d_000010", audio_path="d.wav"),  # beside the rows
        avqa_row(4, "e_000007"),
        avqa_row(5, "f_000300", audio_path="Path to wav dir/f_300.wav"),
    ]
    path, to = write_rows(tmp_path / "rows.json", rows), tmp_path / "out"
    prepare_avqa(AvqaOptions(path, to, tmp_path / "videos", tmp_path / "wavs"))
    found = {
        row["id"]: pitch(read_clip(row["audio"], to)) for row in read_lines(to / "train.jsonl")
    }
    assert found == {n: pytest.approx(300 + 100 * n, abs=4) for n in range(5)}
    assert short_name("a_0010_000") == "a_0010_0" and short_name("a000_12") == "a000_12"


def test_a_process_of_the_pool_does_without_torch() -> None:
    """It would take each of them seconds and hundreds of megabytes."""
    words = "import sys, adrpo_scale.data.prepare.extract; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", words], check=False).returncode == 0


# ---- a kill --------------------------------------------------------------------------------------


def committed(to: Path) -> int:
    journal = to / JOURNAL
    return journal.read_bytes().count(b"\n") if journal.exists() else 0


# The command, ended before its third commit: killed it alone, as the process of its pool must end
# by itself; or signalled with all of its processes, as Slurm does.
KILLED = """if True:
    from pathlib import Path
    from adrpo_scale.cli.main import main
    from tests.support.faults import DieAt

    DieAt("adrpo_scale.data.prepare.shards:Shards._commit", 3, Path("/"))(0)
    main()"""
SIGNALLED = """if True:
    import os, signal
    from adrpo_scale.cli.main import main
    from adrpo_scale.data.prepare.shards import Shards

    commit, calls = Shards._commit, []
    def third(self, *given):
        calls.append(self)
        if len(calls) == 3:
            os.killpg(0, signal.SIGUSR1)
        commit(self, *given)
    Shards._commit = third
    main()"""


@pytest.mark.parametrize(
    ("script", "code"), [(KILLED, -signal.SIGKILL), (SIGNALLED, 85)], ids=["killed", "signalled"]
)
def test_an_end_in_mid_run_and_a_new_start_leave_the_same_bytes(
    tmp_path: Path, script: str, code: int
) -> None:
    count, wavs = 10 * COMMIT_EVERY, tmp_path / "wavs"
    for n in range(count):
        write_audio(wavs / f"v{n}.wav", 200 + 3 * n, 1.0, 24000)
    rows = write_rows(tmp_path / "rows.json", [avqa_row(n, f"v{n}") for n in range(count)])
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    prepare_avqa(AvqaOptions(rows, whole, audio=wavs, workers=2))

    words = ["prepare", "avqa", "--rows", rows, "--audio", wavs, "--to", killed, "--workers", "1"]
    process = subprocess.Popen(
        [sys.executable, "-c", script, *map(str, words)], start_new_session=True
    )
    assert process.wait() == code
    kept = committed(killed)
    assert 0 < kept < count
    wait_for_the_end_of_session(process.pid)

    record = prepare_avqa(AvqaOptions(rows, killed, audio=wavs))
    assert record["clips"] == {"done": count - kept, "missing": 0, "broken": 0, "reused": kept}
    assert left(killed) == left(whole)


def wait_for_the_end_of_session(leader: int) -> None:
    """Until nothing of the session runs; what is dead and not yet reaped does not count."""
    wait_until(
        lambda: not any(is_running_in(leader, process) for process in psutil.process_iter()),
        "the end of the pool's process, whose parent is dead",
    )


def is_running_in(session: int, process: psutil.Process) -> bool:
    try:
        return os.getsid(process.pid) == session and process.status() != psutil.STATUS_ZOMBIE
    except (ProcessLookupError, psutil.NoSuchProcess):
        return False


# ---- how it says no ------------------------------------------------------------------------------


def test_orders_that_cannot_be_carried_out(
    avqa_data: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows, videos = avqa_data
    with pytest.raises(ConfigError, match="neither --videos nor --audio"):
        prepare_avqa(AvqaOptions(rows, tmp_path))
    with pytest.raises(ConfigError, match="nowhere: no such folder"):
        prepare_avqa(AvqaOptions(rows, tmp_path, videos / "nowhere"))
    with pytest.raises(PromptError, match="no such prompt file"):
        prepare_avqa(AvqaOptions(tmp_path / "no.json", tmp_path, videos))
    (tmp_path / "empty").mkdir()
    with pytest.raises(ClipError, match="none of the 10 questions has a clip"):
        prepare_avqa(AvqaOptions(rows, tmp_path / "none", tmp_path / "empty"))
    assert len(read_lines(tmp_path / "none" / "skipped.jsonl")) == 9
    monkeypatch.setattr(avqa, "disk_space", lambda _: disk_space.Space(10**6, None, "disk"))
    with pytest.raises(DiskSpaceError, match=r"they need up to 2\.2 MB, and 1\.0 MB are free"):
        prepare_avqa(AvqaOptions(rows, tmp_path / "full", videos))
    monkeypatch.setitem(sys.modules, "av", None)
    with pytest.raises(ConfigError, match=r"av .*pip install 'adrpo_scale\[audio\]'"):
        prepare_avqa(AvqaOptions(rows, tmp_path / "out", videos))


def test_a_full_disk_is_said_and_the_next_start_goes_on(
    prepared: Path, avqa_data: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = AvqaOptions(avqa_data[0], tmp_path / "out", avqa_data[1])
    written = []

    def write_half(descriptor: int, data: bytes) -> None:
        written.append(data)
        if len(written) < 3:
            return files.write_all(descriptor, data)
        files.write_all(descriptor, data[: len(data) // 2])
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patched:
        patched.setattr("adrpo_scale.data.prepare.shards.write_all", write_half)
        with pytest.raises(DiskSpaceError, match=r"No space left.*start the same command again"):
            prepare_avqa(options)
    prepare_avqa(options)
    assert left(tmp_path / "out") == left(prepared)


def test_one_process_a_folder(avqa_data: tuple[Path, Path], tmp_path: Path) -> None:
    with RunLock(tmp_path), pytest.raises(RunFolderError, match="is in use by"):
        prepare_avqa(AvqaOptions(avqa_data[0], tmp_path, avqa_data[1]))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("command", [[], ["avqa"], ["mmau"]])
def test_help_has_an_example(command: list[str]) -> None:
    answer = CliRunner().invoke(cli.app, ["prepare", *command, "--help"])
    assert answer.exit_code == 0
    assert "Example:" in answer.output and "adrpo-scale prepare" in answer.output


def test_the_verbs_say_what_they_did(avqa_data: tuple[Path, Path], tmp_path: Path) -> None:
    words = ["prepare", "avqa", "--rows", avqa_data[0], "--videos", avqa_data[1], "--to"]
    done = CliRunner().invoke(cli.app, [*map(str, words), str(tmp_path / "out")])
    assert done.exit_code == 0, done.output
    assert "clips: 5 done, 1 missing, 2 broken, 0 reused" in done.output
    assert "rows:  6 of 10 usable" in done.output
