"""Runs the command on mutated configs and command lines, in this process, and tells what it said.

A case passes where the command ends with a code of its own, and with one message where that is not
0: no traceback, no signal. Cases share a process, because a start costs seconds and a training
tenths; it is one that nothing else uses, and what it leaves says which case ended it.
"""

from __future__ import annotations

import contextlib
import io
import logging
import os
import random
import resource
import shutil
import signal
import sys
import warnings
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from tests.support.mutations import base_of, command_line, mutated, toml

SECONDS = 120  # of a case that hangs; a training takes tenths
MEMORY = 6 * 2**30  # bytes that the process may take beside what it has
SAMPLES = 64  # of an iteration that is trained; larger ones are counted and left out
LONGEST = 6000  # characters of a message
_ENDS = (0, 2, 3, 4, 85)
_MARKS = (
    "Traceback (most recent call last)",
    "--- Logging error ---",
    "Exception ignored",
    "core dumped",
)


@dataclass
class Report:
    """counts: cases by outcome. faults: what ended otherwise than it should, with how to repeat."""

    counts: Counter[str] = field(default_factory=Counter)
    faults: list[str] = field(default_factory=list)


class TooLong(BaseException):
    """A case has used up its seconds."""


def run_command(words: Sequence[str], stream: io.TextIOWrapper) -> tuple[int | str | None, str]:
    """(exit code, all output) of the command in this process; code "hang" where it does not end."""
    from adrpo_scale.cli import main as cli

    def late(*_: object) -> None:
        raise TooLong

    signal.signal(signal.SIGALRM, late)
    signal.setitimer(signal.ITIMER_REAL, SECONDS)
    sys.argv = ["adrpo-scale", *words]
    code: int | str | None
    try:
        with (
            contextlib.redirect_stdout(stream),
            contextlib.redirect_stderr(stream),
            warnings.catch_warnings(),
        ):
            code = cli._run()
    except TooLong:
        code = "hang"
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        torch.set_num_threads(1)
        torch.use_deterministic_algorithms(False)
        logging.getLogger().handlers.clear()
    stream.flush()
    raw: Any = stream.buffer
    text = raw.getvalue().decode("utf-8", "replace")
    raw.seek(0)
    raw.truncate()
    return code, text


def fault(code: int | str | None, said: str) -> str | None:
    """What is wrong with an outcome; None where nothing is."""
    if code not in _ENDS:
        return f"code {code}"
    found = next((mark for mark in _MARKS if mark in said), None)
    if found is None and code == 2 and "rror" not in said:
        return "no message"
    if found is None and code == 2 and len(said) > LONGEST:
        return f"{len(said)} characters"
    return found


def _stream() -> io.TextIOWrapper:
    return io.TextIOWrapper(io.BytesIO(), "utf-8", errors="backslashreplace", write_through=True)


def prepare(folder: Path) -> None:
    """A process and a folder in which nothing that a case does reaches others."""
    (folder / "here").mkdir(exist_ok=True)
    os.chdir(folder / "here")
    os.environ.update(ADRPO_RUNS="runs", ADRPO_CACHE=str(folder / "cache"), HF_HUB_OFFLINE="1")
    os.environ["HF_HUB_CACHE"] = str(folder / "hub")
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE"):
        os.environ.pop(name, None)
    null = os.open(os.devnull, os.O_RDONLY)
    os.dup2(null, 0)
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    most = pages * resource.getpagesize() + MEMORY
    resource.setrlimit(resource.RLIMIT_AS, (most, resource.RLIM_INFINITY))


def fuzz_configs(bases: Sequence[dict[str, Any]], seed: int, count: int, folder: Path) -> Report:
    """`count` mutated configs: each through `config`, those that pass through `train`."""
    made = [base_of(data) for data in bases]
    report, stream = Report(), _stream()
    path, run = folder / "here" / "case.toml", folder / "here" / "run"
    for number in range(count):
        draw = random.Random(f"{seed}/{number}")
        case = mutated(draw.choice(made), draw)
        path.write_bytes(case.text.encode("utf-8", "surrogateescape"))
        told = f"case {seed}/{number} ({', '.join(case.kinds)}) {case.words!r}"
        (folder / "last").write_text(repr(told))
        code, said = run_command(["config", str(path), *case.words], stream)
        wrong = fault(code, said)
        report.counts["refused by config" if code else "passed config"] += 1
        if wrong is None and code == 0:
            wrong, code, said = _trained(case.words, path, run, report, stream)
        if wrong is not None:
            kept = path.with_name(f"fault-{seed}-{number}.toml")
            shutil.copyfile(path, kept)
            report.faults.append(f"{told}: {wrong}, code {code}: {said[-1500:]}")
    return report


def _trained(
    words: Sequence[str], path: Path, run: Path, report: Report, stream: io.TextIOWrapper
) -> tuple[str | None, int | str | None, str]:
    from adrpo_scale.run.load import load_config

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        config = load_config(path, [*words][1::2]).config
    if work_of(config) > 1:
        report.counts["too large to train"] += 1
        return None, 0, ""
    shutil.rmtree(run, ignore_errors=True)
    code, said = run_command(["train", str(path), *words, "--run-dir", str(run)], stream)
    report.counts[f"trained, code {code}"] += 1
    return fault(code, said), code, said


def train_once(data: dict[str, Any], config: Path, run: Path) -> None:
    """A run of one iteration, for commands that read runs."""
    config.write_text(toml(data))
    code, said = run_command(["train", str(config), "--run-dir", str(run)], _stream())
    assert code == 0, said


def work_of(config: Any) -> float:
    """The work of a run in units of what a case may take."""
    prompts, optimizer, domain = config.prompts, config.optimizer, config.domain
    samples = prompts.per_iteration * prompts.group_size
    steps = (
        getattr(domain.rollout, "steps", 0) / 8 + getattr(domain.rollout, "max_new_tokens", 0) / 64
    )
    passes = optimizer.updates * optimizer.minibatches * optimizer.draws_per_sample
    pixels = (getattr(domain, "height", None) or 1) * (getattr(domain, "width", None) or 1) / 4096
    evaluation = config.evaluation
    measured = evaluation.samples_per_prompt * min(evaluation.prompts, 8) if evaluation.every else 0
    rank = domain.lora.rank / 256 if getattr(domain, "lora", None) else 0
    return max(
        config.iterations / 3, (samples + measured) / SAMPLES, steps, passes / 8, pixels, rank
    )


def fuzz_commands(config: Path, run: Path, seed: int, count: int, folder: Path) -> Report:
    """`count` command lines that must end soon, whatever they say."""
    report, stream = Report(), _stream()
    for number in range(count):
        draw = random.Random(f"{seed}/command/{number}")
        words = command_line(config, run, draw)
        (folder / "last").write_text(f"command {seed}/{number} {words!r}")
        code, said = run_command(words, stream)
        report.counts[f"{words[0] if words[0].isalpha() else 'odd'}: {code}"] += 1
        wrong = fault(code, said)
        if wrong is not None:
            report.faults.append(f"command {seed}/{number} {words!r}: {wrong}: {said[-1500:]}")
    return report
