"""Data sets that somebody else wrote: a bad row costs that row, a bad file one clear error."""

from __future__ import annotations

import contextlib
import json
import os
import struct
from pathlib import Path

import pyarrow
import pytest
import soundfile
from pyarrow import parquet

from adrpo_scale.core.errors import ClipError, PromptError
from adrpo_scale.core.json_files import json_line
from adrpo_scale.core.types import Prompt
from adrpo_scale.data import clips, parquet_files
from adrpo_scale.data.clip_headers import clip_faults
from adrpo_scale.data.clips import duration, read_clip
from adrpo_scale.data.foreign_rows import DEEPEST, parse_row, stays_in
from adrpo_scale.data.prepare.avqa import AvqaOptions, prepare_avqa
from adrpo_scale.data.prepare.extract import video_sound
from adrpo_scale.data.prepare.mmau import MmauOptions, prepare_mmau
from adrpo_scale.data.prepare.sources import find, index
from adrpo_scale.data.prompts import load_prompts
from adrpo_scale.evaluation.mmau.base import load_benchmark
from tests.support.ranks import run_ranks
from tests.support.sounds import avqa_row, read_lines, tone, write_audio, write_rows, write_video

HALF = "half\ud83d"
NAMES = [
    *("a\0b", HALF, "a\x1b[2Jb", "a\nb", "\x9b31m", "\udcff"),
    *("../secret", "../../secret.wav", "x" * 5000, "../data/../secret.wav", ".", "..", "/"),
]


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """A folder with one good clip; a secret lies beside it."""
    write_audio(tmp_path / "secret.wav", 880, 0.2)
    write_audio(tmp_path / "data" / "good.wav", 440, 0.2)
    return tmp_path / "data"


# ---- prepare avqa --------------------------------------------------------------------------------


def prepared(data: Path, rows: list[dict]) -> tuple[list[dict], list[dict]]:
    """(train.jsonl, skipped.jsonl); what is written is UTF-8, and a prompt file if it has rows."""
    to = data.parent / "out"
    prepare_avqa(AvqaOptions(write_rows(data / "rows.json", rows), to, audio=data))
    for name in ("train.jsonl", "skipped.jsonl"):
        (to / name).read_text(encoding="utf-8")
    assert load_prompts(to / "train.jsonl", "avqa")
    return read_lines(to / "train.jsonl"), read_lines(to / "skipped.jsonl")


def test_a_name_that_no_file_has_costs_its_row(data: Path) -> None:
    names = [*NAMES, str(data.parent / "secret.wav")]
    rows = [avqa_row(n, name) for n, name in enumerate(names)]
    rows += [avqa_row(100 + n, "gone", audio_path=name) for n, name in enumerate(names)]
    rows += [avqa_row(998, ["list"]), avqa_row(999, "good")]
    found, skipped = prepared(data, rows)
    assert [row["id"] for row in found] == [999]
    wrong = [line for line in skipped if line["what"] == "row"]
    assert len(wrong) == 2 * 6 + 1
    assert len(skipped) - len(wrong) == len(NAMES) - 6 + 1 + 1  # each clip once, and "gone"


def test_a_text_that_no_file_takes_costs_its_row(data: Path) -> None:
    """One such row made a file that `train` refused whole."""
    bad = [
        avqa_row(1, "good", question_text=f"What is {HALF}?"),
        avqa_row(2, "good", multi_choice=["a", HALF, "c", "d"]),
        avqa_row(3, "good", question_type={"deep": [HALF]}),
        avqa_row(4, "good", question_type=float("nan")),
        avqa_row(5, "good") | {HALF: 1},
        avqa_row(6, "good", id=HALF),
    ]
    found, skipped = prepared(data, [*bad, avqa_row(9, "good")])
    assert [row["id"] for row in found] == [9] and len(skipped) == len(bad)
    assert all("half of a surrogate pair" in s["reason"] or "nan" in s["reason"] for s in skipped)


def test_a_row_names_no_file_outside_its_folders(data: Path) -> None:
    """What is outside would be prepared, and later sent to an endpoint."""
    secret = data.parent / "secret.wav"
    for name in ("../secret.wav", str(secret), "good/../../secret.wav", "../data/../secret.wav"):
        assert find("gone", name, {}, {}, [data]) is None and not stays_in(name, data)
    (data / "elsewhere").symlink_to("/")  # and `..` after it is not this folder
    for name in ("elsewhere/../good.wav", f"elsewhere/..{secret}"):
        assert find("gone", name, {}, {}, [data]) is None
    for name in ("good.wav", "./good.wav", str(data / "good.wav")):
        found = find("gone", name, {}, {}, [data])
        assert found is not None and found.path.samefile(data / "good.wav")


def test_links_in_a_circle_are_walked_once(data: Path) -> None:
    for name in "abcdef":
        (data / name).symlink_to(data, target_is_directory=True)
    assert index(data, [".wav"]) == {"good": data / "good.wav"}


def test_a_line_is_json_and_utf_8_whatever_its_texts_are() -> None:
    row = {"half": HALF, HALF: "é中\u2028\0\x1b", "quoted": '\\ud83d "'}
    line = json_line(row)
    assert json.loads(line.decode("utf-8")) == row and line.count(b"\n") == 1


# ---- prepare mmau --------------------------------------------------------------------------------


def mmau_row(number: int | str, audio: str, **other) -> dict:
    texts = {"question": "Which?", "answer": "A", "choices": ["A", "B"], "task": "sound"}
    return {"id": f"q{number}", "audio_id": audio, **texts, **other}


def test_mmau_rows_at_the_door(data: Path) -> None:
    to = data.parent / "out"
    linked = data / "linked.wav"
    linked.symlink_to("good.wav")
    (data.parent / "kept.wav").symlink_to("data/good.wav")
    rows = [mmau_row(n, name) for n, name in enumerate([*NAMES, "../kept.wav", "../secret.wav"])]
    rows += [mmau_row("nan", "good.wav", difficulty=float("nan"))]
    rows += [mmau_row(HALF, "good.wav"), mmau_row("o", "good.wav", odd={"a": [HALF]})]
    rows += [mmau_row("t", "good.wav", task="smell"), mmau_row("c", "good.wav", choices=["A"])]
    rows += [mmau_row("b", "good.wav", choices=["A", " "]), mmau_row("s", "good.wav", choices="AB")]
    rows += [{"id": float("nan")}, {"id": ["x" * 900]}, mmau_row("fine", "linked.wav")]
    record = prepare_mmau(MmauOptions(write_rows(data / "m.json", rows), data, to, "v"))
    assert record["audio"] == str(data)
    assert [row["id"] for row in read_lines(to / "mmau.jsonl")] == ["qfine"]
    assert len(load_benchmark(to, "think").questions) == 1
    skipped = read_lines(to / "skipped.jsonl")
    assert len(skipped) == len(rows) - 1 and max(len(s["reason"]) for s in skipped) <= 500


# ---- JSON ----------------------------------------------------------------------------------------

LONG = "x" * 10_000
LONG_ROWS = [
    {"prompt": None, "messages": LONG, "context_messages": {LONG: LONG}},
    {"messages": [{"role": LONG, "content": "x"}]},
    {"messages": [{"role": "user", "content": {LONG: 1}}]},
    {"messages": [{"role": "user", "content": [{"type": LONG}]}]},
    {"tag": LONG, "include": LONG, "prompt": "p"},
    {"question_text": LONG, "multi_choice": LONG, "answer": LONG},
    {"question": {LONG: 1}, "choices": ["a", "b"], "answer": "a", "audio": "x"},
]


@pytest.mark.parametrize("row", LONG_ROWS, ids=range(len(LONG_ROWS)))
def test_an_error_repeats_the_beginning_of_a_row(tmp_path: Path, row: dict) -> None:
    (tmp_path / "p.jsonl").write_text(json.dumps(row) + "\n")
    with pytest.raises(PromptError, match="line 1") as error:
        load_prompts(tmp_path / "p.jsonl")
    assert len(str(error.value)) < 1500


DEEP = [
    "[" * 100_000,
    '{"a":' * 100_000,
    '{"prompt": "x", "m": ' + "[" * 900 + "]" * 900 + "}",
    '{"prompt": "x", "m": ' + '{"a":' * 101 + "1" + "}" * 101 + "}",
    '{"prompt": "x", "n": ' + "9" * 5000 + "}",
]


@pytest.mark.parametrize("line", DEEP)
@pytest.mark.parametrize("suffix", [".jsonl", ".json"])
def test_a_deep_row_is_a_row_that_cannot_be_read(tmp_path: Path, line: str, suffix: str) -> None:
    path = tmp_path / f"p{suffix}"
    if suffix == ".json":
        path.write_text(f"[{line}]")
        with pytest.raises(PromptError, match=r"line 1: .*expected"):
            load_prompts(path)
    else:
        path.write_text('{"prompt": "fine"}\n' + line + "\n")
        with pytest.raises(PromptError, match=r"line 2: .*expected one JSON object") as error:
            load_prompts(path)
        assert len(str(error.value)) < 600


def test_a_row_may_be_as_deep_as_is_stated() -> None:
    for depth, opened, closed in ((DEEPEST, "[", "]"), (DEEPEST, '{"[[[": ', "}")):
        inside = "1" if opened == "[" else '"{{{{"'
        parse_row(opened * depth + inside + closed * depth)
        with pytest.raises(ValueError, match="nested"):
            parse_row(opened * (depth + 1) + inside + closed * (depth + 1))
    parse_row(json.dumps({"flat": ["[" * 500, [[]] * 500]}))


def test_only_files_of_a_folder_are_read(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "waits.jsonl")
    (tmp_path / "folder.parquet").mkdir()
    (tmp_path / "fine.jsonl").write_text('{"prompt": "fine"}\n')
    assert [p.text for p in load_prompts(tmp_path)] == ["fine"]


# ---- parquet -------------------------------------------------------------------------------------


def repeated(path: Path, value: str, rows: int, keeps_type: bool) -> Path:
    """A file of `rows` times one value, which it holds once."""
    places = pyarrow.array([0], pyarrow.int32()).take(pyarrow.array([0] * rows))
    column = pyarrow.DictionaryArray.from_arrays(places, pyarrow.array([value]))
    options = {"compression": "zstd", "dictionary_pagesize_limit": 1 << 30}
    table = pyarrow.table({"prompt": column})
    parquet.write_table(table, path, store_schema=keeps_type, **options)
    return path


@pytest.mark.parametrize("keeps_type", [True, False])
def test_a_small_parquet_file_cannot_stand_for_terabytes(
    tmp_path: Path, keeps_type: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(parquet_files, "MOST_BYTES", 50_000_000)
    monkeypatch.setattr(parquet_files, "_AT_ONCE", 10_000_000)
    path = repeated(tmp_path / "big.parquet", "x" * 1_000_000, 100_000, keeps_type)
    assert path.stat().st_size < 20_000
    with pytest.raises(PromptError, match="values have more than"):
        load_prompts(path)


def test_a_small_parquet_file_cannot_stand_for_a_billion_rows(tmp_path: Path) -> None:
    path = tmp_path / "rows.parquet"
    nothing = pyarrow.nulls(50_000_000, pyarrow.int8())
    parquet.write_table(pyarrow.table({"prompt": nothing}), path)
    with pytest.raises(PromptError, match="50,000,000 rows of 1 columns, expected at most"):
        load_prompts(path)


def test_a_parquet_file_with_bytes_that_are_no_text(tmp_path: Path) -> None:
    raw = pyarrow.array([b"fine", b"\xff\xfe"])
    texts = pyarrow.StringArray.from_buffers(2, *raw.buffers()[1:])
    parquet.write_table(pyarrow.table({"prompt": texts}), tmp_path / "p.parquet")
    with pytest.raises(PromptError, match="cannot be read as parquet"):
        load_prompts(tmp_path / "p.parquet")


def test_a_parquet_file_gives_what_it_gave(tmp_path: Path) -> None:
    rows = [{"prompt": f"p{n}", "messages": None, "n": {"a": [n]}} for n in range(10_000)]
    parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "p.parquet")
    prompts = load_prompts(tmp_path / "p.parquet")
    assert [p.text for p in prompts] == [row["prompt"] for row in rows]
    assert prompts[77].metadata["n"] == {"a": [77]}


# ---- clips ---------------------------------------------------------------------------------------


def test_a_name_of_no_file_is_a_clip_that_is_not_there(data: Path) -> None:
    for name in ("a\0b", HALF, "x" * 5000, ".", "..", "good.wav/x", "c.tar:" + "9" * 5000 + ":1"):
        with pytest.raises(ClipError):
            read_clip(name, data)
        with pytest.raises(ClipError):
            duration(name, data)


def test_what_is_no_regular_file_is_not_waited_for(data: Path) -> None:
    os.mkfifo(data / "waits.wav")
    (data / "zeros.wav").symlink_to("/dev/zero")
    for name in ("waits.wav", "zeros.wav", "zeros.wav:0:44"):
        with pytest.raises(ClipError):
            read_clip(name, data)
    (data / "zeros.tar").symlink_to("/dev/zero")
    with pytest.raises(ClipError, match="no regular file"):
        read_clip("zeros.tar:0:44", data)


def with_header(path: Path, rate: int, channels: int, samples: int) -> Path:
    """A FLAC file whose header promises more than there is."""
    soundfile.write(path, tone(440, 0.2, 16000), 16000)
    raw = bytearray(path.read_bytes())
    place = 8 + 10  # "fLaC", the header of STREAMINFO, block and frame sizes
    packed = rate << 44 | (channels - 1) << 41 | 15 << 36 | samples
    raw[place : place + 8] = struct.pack(">Q", packed)
    path.write_bytes(bytes(raw))
    return path


def test_a_small_clip_cannot_promise_gigabytes(data: Path) -> None:
    rate, channels = 655_350, 8
    with_header(data / "big.flac", rate, channels, 299 * rate)
    for reader in (read_clip, duration):
        with pytest.raises(ClipError, match="samples in all channels, expected at most"):
            reader("big.flac", data)


def test_a_part_of_a_shard_is_a_clip_and_no_more(data: Path, monkeypatch) -> None:
    monkeypatch.setattr(clips, "MOST_VALUES", 10_000)
    (data / "s.tar").write_bytes(bytes(20_000))
    with pytest.raises(ClipError, match="expected at most"):
        read_clip("s.tar:0:15000", data)


def test_a_video_is_not_decoded_beyond_what_a_clip_has(data: Path, monkeypatch) -> None:
    path = write_video(data / "v.mp4", 440, 0.5)
    assert len(video_sound(path)) > 7000
    monkeypatch.setattr(clips, "MOST_VALUES", 10_000)
    with pytest.raises(ClipError, match="samples in all channels"):
        video_sound(path)


NO_CLIPS = [
    *(
        {"audio": {"a": 1}},
        {"audio": ["x"], "audio_folder": "/"},
        {"audio": 7, "audio_folder": "/"},
    ),
    *({"audio": "x.wav", "audio_folder": ["q"]}, {"audio": True}, {"audio": "x.wav"}),
]


@pytest.mark.parametrize("row", NO_CLIPS)
def test_a_row_whose_clip_is_no_name(row: dict) -> None:
    with pytest.raises(PromptError, match="names the clip"):
        clip_faults([Prompt(0, "p", row)])


def read_with_damaged_facts(rank: int, world: int, folder: Path) -> None:
    """Each byte is changed of the facts about the first column, in the file's last part."""
    path = folder / "p.parquet"
    rows = [{"prompt": "a", "k": [1, None]}, {"prompt": "b", "k": None}]
    parquet.write_table(pyarrow.Table.from_pylist(rows), path, store_schema=False)
    data = path.read_bytes()
    begin = len(data) - 8 - struct.unpack("<I", data[-8:-4])[0]
    for place in range(begin, begin + 70):
        path.write_bytes(data[:place] + bytes([data[place] ^ 1 << place % 3]) + data[place + 1 :])
        with contextlib.suppress(PromptError):
            load_prompts(path)


def test_a_damaged_parquet_file_does_not_end_the_process(tmp_path: Path) -> None:
    run_ranks(read_with_damaged_facts, 1, tmp_path)
