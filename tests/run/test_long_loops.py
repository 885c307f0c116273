"""Every long loop of the commands: a signal is heard at its next step, and ends the command."""

from __future__ import annotations

import os
import shutil
import signal
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from adrpo_scale.checkpoint.reader import Reader
from adrpo_scale.core.errors import STOPPED, StopRequested
from adrpo_scale.core.file_hashes import file_hashes
from adrpo_scale.core.signals import Signals, stoppable
from adrpo_scale.core.types import Prompt
from adrpo_scale.data import clip_headers
from adrpo_scale.data.prepare.mmau import MmauOptions, prepare_mmau
from adrpo_scale.domains.chat import ChatConfig, encode_all
from adrpo_scale.hub import pickles
from tests.support import starts
from tests.support.faults import SignalAt
from tests.support.mmau import CONFIG as MMAU
from tests.support.mmau import make_data, rewrite
from tests.support.sounds import avqa_row, write_audio, write_rows
from tests.support.tiny_audio import save_clip, save_thinker
from tests.support.tiny_text import tiny_tokenizer

GOLDEN = Path(__file__).parents[1] / "golden" / "runs" / "image"
CHECKPOINT = GOLDEN / "checkpoints" / "step-000002"


def _hash(folder: Path) -> None:
    os.environ["ADRPO_CACHE"] = str(folder / "cache")
    (folder / "weights").write_bytes(b"weights")
    file_hashes([folder / "weights"])


def _verify(folder: Path) -> None:
    list(Reader(CHECKPOINT).faults())


def _convert(folder: Path) -> None:
    pickles._write(folder / "a.safetensors", {"a": torch.ones(2), "b": torch.ones(2)})


def _look_at_clips(folder: Path) -> None:
    write_audio(folder / "a.wav")
    clip_headers.agreed_headers([Prompt(0, "?", {"audio": "a.wav", "audio_folder": str(folder)})])


def _prepare(folder: Path) -> None:
    rows = write_rows(folder / "rows.json", [{"id": "1"}, {"id": "2"}])
    prepare_mmau(MmauOptions(rows, folder, folder / "to", "v1"))


def _tokenize(folder: Path) -> None:
    prompts = [Prompt(number, "w1 w2") for number in range(600)]
    encode_all(tiny_tokenizer(), prompts, ChatConfig(template="plain"))


LOOPS = (_hash, _verify, _convert, _look_at_clips, _prepare, _tokenize)


@pytest.mark.parametrize("loop", LOOPS)
def test_a_loop_ends_at_its_next_step(
    tmp_path: Path, loop: Callable[[Path], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ADRPO_CACHE", str(tmp_path))
    with Signals(), stoppable():
        os.kill(os.getpid(), signal.SIGTERM)
        with pytest.raises(StopRequested):
            loop(tmp_path)


@pytest.mark.parametrize(
    ("place", "arguments"),
    [
        ("adrpo_scale.checkpoint.reader:file_sha256", ["inspect", "RUN"]),
        pytest.param(
            "adrpo_scale.export.folder:_Stream.read",
            ["export", "RUN", "--to", "TO", "--as", "merged"],
            marks=pytest.mark.slow,
        ),
        pytest.param(
            "adrpo_scale.domains.flow:FlowDomain.sample",
            ["sample", "RUN", "--prompts", "PROMPTS", "--to", "TO"],
            marks=pytest.mark.slow,
        ),
    ],
)
def test_a_signal_ends_a_command_that_has_nothing_to_save(
    tmp_path: Path, place: str, arguments: list[str]
) -> None:
    run = shutil.copytree(GOLDEN, tmp_path / "run")
    (tmp_path / "prompts.txt").write_text("a red ring\n")
    words = {"RUN": str(run), "TO": str(tmp_path / "to"), "PROMPTS": str(tmp_path / "prompts.txt")}
    at = SignalAt(place, call=1, slow=600.0)
    start = starts.Started(tmp_path, 1, [words.get(a, a) for a in arguments], prepare=at)
    assert start.wait(240) == [-signal.SIGTERM], start.text()
    assert not list((tmp_path / "to").rglob("*"))


@pytest.mark.slow
def test_a_signal_ends_an_evaluation_which_keeps_its_answers(tmp_path: Path) -> None:
    model, data = save_thinker(tmp_path / "model"), make_data(tmp_path / "data", count=3)
    for number in range(3):
        save_clip(data / f"{number}.wav", 0.2, number)
        rewrite(data, number, audio=f"{number}.wav")
    settings = ["max_new_tokens=8", "domain.chat.max_prompt_tokens=120", "variant=answer"]
    sets = [
        word for one in [*settings, "engine.dtype=float32", "batch=1"] for word in ("--set", one)
    ]
    words = ["evaluate", MMAU, "--model", model, "--data", data, "--to", tmp_path / "to", *sets]
    at = SignalAt("adrpo_scale.evaluation.mmau.local:Local.answers", call=2, slow=0.01)
    start = starts.Started(tmp_path, 1, [str(word) for word in words], prepare=at)
    assert start.wait(120) == [STOPPED], start.text()
    start = starts.Started(tmp_path, 1, [str(word) for word in words])
    assert start.wait(120) == [0] and "3 questions to" in start.text()
    assert "1 answered already" in start.text()


@pytest.mark.slow
def test_a_signal_ends_the_preparation_of_avqa(tmp_path: Path) -> None:
    for number in range(2):
        write_audio(tmp_path / "wavs" / f"v{number}.wav")
    rows = write_rows(tmp_path / "rows.json", [avqa_row(n, f"v{n}") for n in range(2)])
    words = [
        "prepare",
        "avqa",
        "--rows",
        rows,
        "--audio",
        tmp_path / "wavs",
        "--to",
        tmp_path / "to",
    ]
    at = SignalAt("adrpo_scale.data.prepare.shards:Shards._commit", call=1, slow=600.0)
    start = starts.Started(tmp_path, 1, [str(word) for word in words], prepare=at)
    assert start.wait(240) == [STOPPED], start.text()
