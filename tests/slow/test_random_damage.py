"""Random damage, seeded, to the files that starts and commands read: no exception but ours, and a
run with an older checkpoint is never without one."""

from __future__ import annotations

import copy
import hashlib
import json
import random
import shutil
from collections import Counter
from contextlib import suppress

import pytest

from adrpo_scale.checkpoint.base import MANIFEST, CheckpointConfig, OtherVersionError
from adrpo_scale.checkpoint.inspect import inspect, show
from adrpo_scale.checkpoint.retention import read_values
from adrpo_scale.checkpoint.shelf import hash_part, newest_whole
from adrpo_scale.cluster.status.read import read as read_status
from adrpo_scale.cluster.status.state import judge
from adrpo_scale.core.errors import AdrpoError
from adrpo_scale.core.folder_lock import holder_of
from adrpo_scale.core.types import Prompt
from adrpo_scale.evaluation.report.evaluated import read_run
from adrpo_scale.evaluation.report.text import report_text, trace
from adrpo_scale.run import starts
from adrpo_scale.run.api import open_run
from adrpo_scale.run.compare import check_settings
from adrpo_scale.run.cut_prompts import cut_text
from adrpo_scale.run.folder import cut_back, left_behind
from adrpo_scale.run.prompt_sets import report_sets
from adrpo_scale.training.state import Counters, RewardStatistics
from tests.run.test_find_start import config_of
from tests.run.test_old_runs import GOLDEN

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200)]
ATTEMPTS = 200
FILES = ("metrics.jsonl", "eval.jsonl", "lives/01.json", "lock.json", "cut_prompts.json")
FILES += ("config.json", "eval_prompts.jsonl", "prompt_sets.json")
ODD = (None, True, 0, -1, 2**62, 2**70, 1.5, float("nan"), "", "x", "[/x]", "\ud800", "\x1b[2J")
ODD += ("a" * 5000, [], [None], [[]], {}, {"a": {}}, {"": None})
BYTES = (b"\n", b"{}", b"[]", b"null", b"NaN", b'"', bytes(30), b"1e999", b"\\ud800", b"9" * 5000)
CUT = {"model": {"prompts": 3, "encoders": {"a": {"cut": [1]}}, "alike": [[1, 2]]}}
METRICS = {"reward": {"mean": [1.0, 2.0], "n": [3, 3], "std": [0.5, 0.25]}}
OWNER = {"token": "x", "host": "a", "pid": 1, "heartbeat_seconds": 10.0, "machine": "m"}


@pytest.fixture
def run(tmp_path):
    """A run of two iterations, with a checkpoint of each."""
    to = tmp_path / "run"
    shutil.copytree(GOLDEN / "runs" / "image", to, ignore=shutil.ignore_patterns("expected"))
    older = shutil.copytree(to / "checkpoints/step-000002", to / "checkpoints/step-000001")
    body = body_of(older)
    body["iteration"] = body["document"]["counters"]["iteration"] = 1
    (older / MANIFEST).write_text(sealed(body))
    (to / "lock.json").write_text(json.dumps(OWNER))
    (to / "cut_prompts.json").write_text(json.dumps(CUT))
    report_sets([Prompt(0, "a red ring")], [Prompt(1, "A red ring!")], to)
    lines = [
        {
            "iteration": k,
            "split": split,
            "weights": "raw",
            "prompts": ["a", "b"],
            "metrics": METRICS,
        }
        for k in (0, 2)
        for split in ("train", "held_out")
    ]
    (to / "eval_prompts.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return to


def body_of(folder):
    body = json.loads((folder / MANIFEST).read_text())
    body.pop("sha256")
    return body


def sealed(body):
    """With the hash that it states, also where a manifest may not be written so."""
    canonical = json.dumps(body, sort_keys=True, separators=(",", ":"))
    return json.dumps({"sha256": hashlib.sha256(canonical.encode()).hexdigest(), **body})


def paths(value, path=()):
    parts = value.items() if isinstance(value, dict) else enumerate(value[:3])
    for name, part in parts:
        if name != "optimizer_steps":
            yield (*path, name)
        if isinstance(part, dict | list) and name not in ("optimizer_steps", "exp_avg", "ema"):
            yield from paths(part, (*path, name))


def mutated(rng, value):
    """A copy in which one to three values are gone, renamed, twice there, or others."""
    value = copy.deepcopy(value)
    for _ in range(rng.choice((1, 1, 1, 2, 3))):
        *parents, last = rng.choice(list(paths(value)) or [("new",)])
        table = value
        for name in parents:
            table = table[name]
        kind = rng.random()
        if kind < 0.2 and parents:
            del table[last]
        elif kind < 0.3 and isinstance(table, list):
            table.append(table[last])
        elif kind < 0.4 and isinstance(table, dict) and last in table:
            table[last + rng.choice(("x", " ", "\n"))] = table.pop(last)
        else:
            table[last] = copy.deepcopy(rng.choice(ODD))
    return value


def noisy(rng, content):
    """Bytes cut out, put in, flipped, repeated, or half of them."""
    content = bytearray(content)
    for _ in range(rng.choice((1, 1, 2, 5))):
        at, kind = rng.randrange(len(content) + 1), rng.randrange(7)
        if kind == 0:
            del content[at : at + rng.choice((1, 10, 1000))]
        elif kind == 1:
            content[at:at] = rng.randbytes(rng.choice((1, 4, 50)))
        elif kind == 2 and at < len(content):
            content[at] ^= 1 << rng.randrange(8)
        elif kind == 3:
            content[at:at] = rng.choice(BYTES)
        elif kind == 4:
            del content[at:]
        elif kind == 5:
            content[at:at] = content[max(0, at - 200) : at]
        else:
            del content[:at]
    return bytes(content)


def found(run):
    reader = newest_whole(run, lambda reader: [hash_part(reader)])
    assert reader is not None and reader.iteration in (1, 2)
    return reader


@pytest.mark.parametrize("seed", range(3))
def test_a_damaged_manifest_is_one_message_or_the_older_one(run, seed, capsys):
    rng, counts = random.Random(seed), Counter()
    folder = run / "checkpoints" / "step-000002"
    whole, body = (folder / MANIFEST).read_bytes(), body_of(folder)
    for k in range(ATTEMPTS):
        by_bytes = k % 4 == 0
        content = noisy(rng, whole) if by_bytes else sealed(mutated(rng, body)).encode()
        (folder / MANIFEST).write_bytes(content)
        try:
            with suppress(AdrpoError):
                show(inspect(str(run)))
            reader = found(run)
            counts[reader.iteration] += 1
            document = reader.manifest.document
            Counters.read(document["counters"])
            assert all(RewardStatistics(**each) for each in document["rewards"].values())
            check_settings(reader, config_of(), [])
        except OtherVersionError:
            counts["other version"] += 1
        except AdrpoError:
            counts["refused settings"] += 1
        aside = run / "checkpoints" / "step-000002.broken"
        if aside.exists():
            aside.rename(folder)
    assert counts[1] > ATTEMPTS / 2 and counts[2] > 0
    print(f"\n{dict(counts)} of {ATTEMPTS}")


@pytest.mark.parametrize("seed", range(3))
def test_damaged_lines_and_records_are_left_out_by_every_reader(run, seed):
    rng, counts = random.Random(seed), Counter()
    whole = {name: (run / name).read_bytes() for name in FILES}
    record = json.loads(whole["lives/01.json"])
    by_prompt = [json.loads(line) for line in whole["eval_prompts.jsonl"].splitlines()]
    for _ in range(ATTEMPTS):
        for name, content in whole.items():
            (run / name).write_bytes(noisy(rng, content) if rng.random() < 0.6 else content)
        if rng.random() < 0.5:
            (run / "lives/01.json").write_text(json.dumps(mutated(rng, record)))
        if rng.random() < 0.5:
            lines = [mutated(rng, line) for line in by_prompt]
            written = "".join(json.dumps(line) + "\n" for line in lines)
            (run / "eval_prompts.jsonl").write_text(written)
        for number, reader in enumerate(readers(run)):
            try:
                reader()
                counts["read"] += 1
            except AdrpoError:
                counts[f"reader {number}: one message"] += 1
    allowed = {"read", "reader 0: one message", "reader 1: one message"}
    assert counts.keys() <= allowed, counts
    print(f"\n{dict(counts)} of {ATTEMPTS}")


def readers(run):
    """Every reader; the first two may refuse a config.json that is no config."""
    best = CheckpointConfig(keep_best=1, best_split="train")
    before = starts.previous_start(run) or {}
    return (
        lambda: open_run(run).config,
        lambda: (report_text([read_run(run)]), trace([read_run(run)])),
        lambda: judge(read_status(run)),
        lambda: json.dumps(open_run(run).metrics(), allow_nan=False),
        lambda: open_run(run).starts(),
        lambda: read_values(run / "eval.jsonl", best),
        lambda: starts.changes(before, before),
        lambda: starts.stalled_starts(run, "17", None),
        lambda: left_behind(run, 1),
        lambda: cut_back(run, 2, 2),
        lambda: cut_text(run),
        lambda: holder_of(run),
    )
