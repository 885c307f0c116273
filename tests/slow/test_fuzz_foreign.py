"""What others wrote, changed by a seed: answers, prompt files, clips, data sets, templates, cards,
records. Each is read, or refused in one message; nothing else is raised.

    python -m tests.slow.test_fuzz_foreign SEED COUNT

runs COUNT attempts of each kind, and prints how they ended.
"""

from __future__ import annotations

import functools
import io
import json
import random
import sys
import tempfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow
import pytest
from pyarrow import parquet
from typer.testing import CliRunner

from adrpo_scale.cli import main as cli
from adrpo_scale.core import bounded_http
from adrpo_scale.core.errors import AdrpoError
from adrpo_scale.core.types import Prompt
from adrpo_scale.data.clips import duration, read_clip
from adrpo_scale.data.prepare.avqa import AvqaOptions, prepare_avqa
from adrpo_scale.data.prepare.extract import extract
from adrpo_scale.data.prepare.mmau import MmauOptions, prepare_mmau
from adrpo_scale.data.prepare.sources import Source
from adrpo_scale.data.prompts import load_prompts
from adrpo_scale.domains.chat import ChatConfig, encode_all
from adrpo_scale.evaluation.mmau.base import check_sent, load_benchmark
from adrpo_scale.hub import templates
from tests.export.test_hostile_names import card_of, shape
from tests.support.hostile_server import OK, hostile_server, with_length
from tests.support.mmau import DOG, endpoint, make_data
from tests.support.sounds import avqa_row, write_audio, write_video
from tests.support.tiny_text import TEMPLATE, tiny_tokenizer

SEED, COUNT = 14, 100
LONGEST_MESSAGE = 6000  # five rows are named
PIECES = [b"\x1b[2J", b"\\ud83d", b"\0", b"\xff", b"[" * 999, b'{"a":' * 300, b"9" * 5000, b"NaN"]
PIECES += [b"\r\n\r\n", b"-1", b"1e999", b"\xed\xa0\x80", b"../../", b'"', b"}", b"]"]
BITS = ["a", "<b>", "|", "`", "*", "_", "[x](y)", "\n", "\r", "\x1b[2J", "\0", "\ud83d", "\u202e"]
BITS += ["\\", "'", '"', "---", "#", "&", "~", "é", "$(id)", "..", "/", "{{", "%}", "\u2028", "\t"]
JINJA = ["{% for m in messages %}", "{% endfor %}", "{% if m %}", "{% endif %}", "{{ m.content }}"]
JINJA += ["{{ 1 // 0 }}", "{% set x = 3 %}", "{{ x * 'w1 ' }}", "{% for i in range(9999) %}", "w1 "]
JINJA += ["{% macro f(a) %}", "{% endmacro %}", "{{ f(f(1)) }}", "{{ ''.__class__ }}", "{{", "}}"]
JINJA += ["{{ raise_exception('x') }}", "{{ [1] < 'a' }}", "{{ lost.y }}", "{{ '%c' % 55357 }}"]
Draw = random.Random


def changed(data: bytes, draw: Draw) -> bytes:
    made = bytearray(data)
    for _ in range(draw.choice([1, 1, 2, 5, 30])):
        place = draw.randrange(len(made) + 1)
        what = draw.randrange(5)
        if what == 0:
            made[place : place + 1] = bytes([draw.randrange(256)])
        elif what == 1:
            del made[place : place + draw.randrange(1, 60)]
        elif what == 2:
            made[place:place] = draw.choice(PIECES)
        elif what == 3:
            made[place:place] = made[: draw.randrange(200)]
        elif draw.random() < 0.3:
            del made[place:]
    return bytes(made)


def word(draw: Draw) -> str:
    return "".join(draw.choice(BITS) for _ in range(draw.randrange(1, 9)))


def value(draw: Draw, depth: int = 0) -> Any:
    plain: list[Any] = [word(draw), "good.wav", "../secret.wav", "x" * 300, -3, float("nan"), None]
    if depth < 3:
        plain += [[value(draw, depth + 1)], {word(draw): value(draw, depth + 1)}]
    return draw.choice(plain)


def with_odd_values(row: dict[str, Any], draw: Draw) -> dict[str, Any]:
    keys = draw.sample([*row], draw.choice([0, 1, 1, 2]))
    return row | {key: value(draw) for key in keys}


def answers(draw: Draw, folder: Path, set_url: Callable[[str], None]) -> None:
    chunked = OK + b"Transfer-Encoding: chunked\r\n\r\n%x\r\n%s\r\n0\r\n\r\n" % (
        len(DOG[2]),
        DOG[2],
    )
    busy = b"HTTP/1.1 429 No\r\nRetry-After: 1\r\nContent-Length: 4\r\n\r\nwait"
    good = draw.choice([with_length(DOG[2]), chunked, OK + b"\r\n" + DOG[2], busy])
    with hostile_server(changed(good, draw)) as server:
        set_url(server.url)
        model, questions = endpoint(_data(folder), attempts=1, timeout_seconds=0.5)
        (answer,) = model.answers(questions[:1])
        assert answer is None or answer.text.encode() is not None


@functools.cache
def _data(folder: Path) -> Path:
    return make_data(folder / "mmau", count=3)


@functools.cache
def _prompt_files() -> dict[str, bytes]:
    rows = [{"prompt": "a red fox", "answer": "4", "m": {"k": [1, None]}}, {"prompt": "b"}]
    file = io.BytesIO()
    parquet.write_table(pyarrow.Table.from_pylist(rows * 5), file)
    chat = {"messages": [{"role": "user", "content": [{"type": "text", "text": "q"}]}]}
    texts = {"a.jsonl": rows, "c.jsonl": [chat] * 2, "q.jsonl": [avqa_row(1, "v")]}
    found = {name: "".join(json.dumps(r) + "\n" for r in t).encode() for name, t in texts.items()}
    found |= {"l.json": json.dumps(rows).encode(), "d.csv": b'Prompts,Category\n"a, b",c\nx,y\n'}
    return found | {"t.txt": b'a "quoted" fox\nb\n', "p.parquet": file.getvalue()}


def prompt_files(draw: Draw, folder: Path) -> None:
    name = draw.choice([*_prompt_files()])
    (folder / name).write_bytes(changed(_prompt_files()[name], draw))
    load_prompts(folder / name)


@functools.cache
def _sounds(folder: Path) -> list[tuple[str, bytes]]:
    kinds = (".wav", ".flac", ".ogg", ".mp3")
    made = [write_audio(folder / f"good{kind}", 440, 0.3) for kind in kinds]
    made += [write_video(folder / "good.mp4", 440, 0.3)]
    return [(path.suffix, path.read_bytes()) for path in made]


def sounds(draw: Draw, folder: Path) -> None:
    suffix, data = draw.choice(_sounds(folder))
    path = folder / f"x{suffix}"
    path.write_bytes(changed(data, draw))
    if suffix == ".mp4":
        assert extract(Source("c", path, is_video=True)) is not None
        return
    duration(path.name, folder)
    read_clip(path.name, folder)


def data_sets(draw: Draw, folder: Path) -> None:
    """Forty rows each."""
    to = Path(tempfile.mkdtemp(dir=folder))
    write_audio(to / "audio" / "good.wav", 440, 0.2)
    own = [with_odd_values(avqa_row(n, "good", audio_path=None), draw) for n in range(39)]
    (to / "own.json").write_text(json.dumps([*own, avqa_row(99, "good")]))
    prepare_avqa(AvqaOptions(to / "own.json", to / "avqa", audio=to / "audio"))
    load_prompts(to / "avqa" / "train.jsonl", "avqa")
    texts = {"question": "q?", "choices": ["a", "b"], "answer": "a", "task": "sound"}
    rows = [{"id": f"i{n}", "audio_id": "good.wav", **texts} for n in range(40)]
    rows = [*(with_odd_values(row, draw) for row in rows[:-1]), rows[-1]]
    (to / "mmau.json").write_text(json.dumps(rows))
    prepare_mmau(MmauOptions(to / "mmau.json", to / "audio", to / "mmau", "v"))
    check_sent(load_benchmark(to / "mmau", "think"))


def chat_templates(draw: Draw, folder: Path) -> None:
    parts = "".join(draw.choice(JINJA) for _ in range(draw.randrange(1, 12)))
    text = changed(TEMPLATE.encode(), draw).decode("utf-8", "replace")
    encode_all(tiny_tokenizer(draw.choice([parts, text])), [Prompt(0, "w1")], ChatConfig())


def cards(draw: Draw, folder: Path) -> None:
    name = f"a{word(draw)}"
    card = card_of(name, folder)
    assert shape(card) == shape(card_of("plain", folder)), name


def records(draw: Draw, folder: Path) -> None:
    run = Path(tempfile.mkdtemp(dir=folder, prefix="run\x1b[2J"))
    (run / "lives").mkdir()
    life = {"began": "2026-01-01T00:00:00+00:00", "world_size": 1, "job_id": "7", "iteration": 4}
    row = {"iteration": 1, "split": "train", "metric": "reward", "value": 0.5, "reward": 0.5}
    for name in ("config.json", "metrics.jsonl", "eval.jsonl", "lives/00.json", "run.lock"):
        text = json.dumps(with_odd_values(life | row | {"iterations": 6}, draw)) + "\n"
        (run / name).write_bytes(changed(text.encode(), draw))
    result = CliRunner().invoke(cli.app, ["status", str(run)], env={"PATH": "/nowhere"})
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    odd = [c for c in result.output if c != "\n" and not c.isprintable()]
    assert odd == [], result.output


KINDS = (answers, prompt_files, sounds, data_sets, chat_templates, cards, records)


def attempts(
    kind: Callable[..., None], seed: int, count: int, folder: Path, **more: Any
) -> Counter:
    """How the attempts ended: "read" or "refused". Raises what else an attempt raises."""
    ended = Counter[str]()
    draw = Draw(f"{kind.__name__} {seed}")
    for _ in range(count):
        try:
            kind(draw, folder, **more)
            ended["read"] += 1
        except AdrpoError as error:
            assert len(str(error)) < LONGEST_MESSAGE, str(error)[:LONGEST_MESSAGE]
            ended["refused"] += 1
    return ended


def run(kind: Callable[..., None], seed: int, count: int, folder: Path, patch: Any) -> Counter:
    patch.setattr(bounded_http, "LARGEST", 1 << 20)
    patch.setattr(templates, "SECONDS", 0.3)
    patch.setenv("NO_PROXY", "127.0.0.1")
    url = {"set_url": lambda url: patch.setenv("OPENAI_BASE_URL", url)} if kind is answers else {}
    return attempts(kind, seed, count // 25 if kind is data_sets else count, folder, **url)


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_what_others_wrote_is_read_or_refused(kind, tmp_path, monkeypatch) -> None:
    ended = run(kind, SEED, COUNT, tmp_path, monkeypatch)
    assert ended["read"] and ended.total() >= COUNT // 25


if __name__ == "__main__":
    seed, count = map(int, sys.argv[1:])
    for kind in KINDS:
        with pytest.MonkeyPatch.context() as patch, tempfile.TemporaryDirectory() as place:
            print(kind.__name__, dict(run(kind, seed, count, Path(place), patch)), flush=True)
