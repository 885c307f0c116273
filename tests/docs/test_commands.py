"""Every command line that the pages show exists: command, options, settings and files. Nothing is
run; the command's own parser and the config's own checks read each line."""

from __future__ import annotations

import importlib.util
import re
from itertools import takewhile
from pathlib import Path

import pytest
import typer.main
from torch.distributed.run import get_args_parser

from adrpo_scale.cli.main import app
from adrpo_scale.core.errors import AdrpoError
from adrpo_scale.evaluation.file import load_evaluation
from adrpo_scale.run.load import load_config
from adrpo_scale.run.sweep import read_sweep
from adrpo_scale.run.sweep_runs import runs_of
from docs import generate
from tests.docs.test_settings import is_known
from tests.support.pages import (
    ROOT,
    blocks,
    command_lines,
    commands_of,
    files_in,
    mentions,
    name_of,
    pages,
)
from tests.support.shipped import EVALUATIONS, SWEEPS

ELSEWHERE = {"pip", "cp", "git", ".", "cd", "tail", "scancel", "tensorboard", "pre-commit"}
SBATCH = {"--nodes", "--time", "--array", "--mail-type", "--dependency", "--gpus-per-node"}
SBATCH |= {"--gres", "--signal", "--exclude", "--job-name"}
JOBS = {
    f"slurm/{name}.sbatch": name for name in ("train", "sweep", "export", "evaluate", "prepare")
}
USERS = {"CONFIG", "FILE", "A", "B", "my_run.toml", "my_sweep.toml"}  # configs that a reader writes


def fault(words: list[str]) -> str | None:
    """What is wrong with a command line; None: nothing."""
    try:
        check(words)
    except (AssertionError, AdrpoError, SystemExit) as error:
        return f"{' '.join(words)}: {error!r}"
    except Exception as error:  # the parser's own
        if "typer" not in type(error).__module__ and "click" not in type(error).__module__:
            raise
        return f"{' '.join(words)}: {error}"
    return None


def check(words: list[str]) -> None:
    for file in files_in(words):
        assert (ROOT / file).exists(), f"{file} is not there"
    program, *rest = words
    if program == "adrpo-scale":
        check_command(rest)
    elif program in ("python", "python3"):
        check_python(rest)
    elif program == "torchrun":
        found = get_args_parser().parse_args(rest)
        assert found.module and found.training_script in COMMANDS
        check_command(found.training_script_args)
    elif program == "sbatch":
        options = list(takewhile(lambda word: word.startswith("-"), rest))
        assert {option.partition("=")[0] for option in options} <= SBATCH, f"options: {options}"
        if rest := rest[len(options) :]:  # without a script the sentence is about the option
            check_command([JOBS[rest[0]], *rest[1:]])
    elif program == "srun" and "adrpo-scale" in rest:
        check_command(rest[rest.index("adrpo-scale") + 1 :])
    elif program == "srun":
        assert "launchers/node.sh" in rest
        check_python(rest[rest.index("launchers/node.sh") + 1 :])
    elif program == "launchers/local.sh":
        check_command(["train", *(rest[2:] if rest[0] == "-n" else rest)])
    elif program == "make":
        targets = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.M)
        assert {word for word in rest if "=" not in word} <= set(targets), f"targets: {targets}"
    else:
        assert program in ELSEWHERE, f"{program} is no program that these pages know"


COMMANDS = {"adrpo_scale", "tests.support.pretend_cuda"}  # the second runs it on a pretended device


def check_python(words: list[str]) -> None:
    if words[0] == "-m" and words[1] in COMMANDS:
        check_command(words[2:])
        return
    if words[0] == "-m":
        found = importlib.util.find_spec(words[1])
        assert found is not None and found.origin is not None, f"{words[1]} is no module"
        script = Path(found.origin)
    else:
        script = ROOT / words[0]
        assert script.is_file(), f"{script} is not there"
    for option in (word for word in words if word.startswith("--")):
        assert f'"{option.partition("=")[0]}"' in script.read_text(), f"{option} is not its own"


def check_command(words: list[str]) -> None:
    command = typer.main.get_command(app)
    while hasattr(command, "commands"):
        if words in ([], ["--help"]):
            return
        assert words[0] in command.commands, f"{words[0]} is no command"
        command, words = command.commands[words[0]], words[1:]
    values = command.make_context(command.name, list(words)).params
    overrides = [text.replace("%a", "0") for text in values.get("set_", [])]
    given = [values.get("config"), values.get("diff"), *(values.get("configs") or [])]
    shipped = [path for path in given if path is not None and str(path) not in USERS]
    # A shipped config's own check knows every key, those of components by import path too.
    keys = [] if shipped else [text.partition("=")[0] for text in overrides]
    for key in [*keys, *values.get("allow_change", [])]:
        assert is_known(key), f"{key} is no setting"
    sweeps = [path for path in (values.get("file"), values.get("sweep")) if path is not None]
    for path in sweeps:
        if str(path) not in USERS:
            runs_of(read_sweep(ROOT / path))
    for path in shipped:
        if ROOT / path in SWEEPS:
            runs_of(read_sweep(ROOT / path))
        elif ROOT / path in EVALUATIONS or command.name == "evaluate":
            load_evaluation(ROOT / path, overrides, values.get("data"))
        else:
            load_config(ROOT / path, overrides if path != values.get("diff") else [])


@pytest.mark.parametrize("page", pages(), ids=name_of)
def test_every_command_that_a_page_mentions_exists(page):
    """Without its arguments, where the sentence is about the command."""
    faults = [found for words in mentions(page) if (found := fault(words))]
    assert [found for found in faults if "Missing " not in found] == []


@pytest.mark.parametrize("page", pages(), ids=name_of)
def test_every_command_line_of_a_page_exists(page):
    assert [found for words in command_lines(page) if (found := fault(words))] == []


def test_every_example_of_help_exists():
    examples = [command.help.partition("\f")[2] for _, command in generate.commands()]
    lines = [line for text in examples for line in text.replace("\\\n", " ").splitlines()]
    assert len(lines) >= len(examples) > 10
    assert [found for line in lines for words in commands_of(line) if (found := fault(words))] == []


def test_the_pages_show_every_command_and_both_job_scripts():
    shown = [w for page in pages() for w in (*command_lines(page), *mentions(page))]
    assert {words[0] for words in shown} >= {"adrpo-scale", "torchrun", "sbatch", "make", "python"}
    commands = set(typer.main.get_command(app).commands)
    assert {words[1] for words in shown if words[0] == "adrpo-scale"} >= commands


def test_a_config_that_a_reader_writes_is_shown():
    captions = {block.caption for page in pages() for block in blocks(page)}
    assert {name for name in USERS if name.endswith(".toml")} <= captions


@pytest.mark.parametrize(
    "line",
    [
        "adpro-scale train configs/sd3/adrpo.toml",
        "adrpo-scale trian configs/sd3/adrpo.toml",
        "adrpo-scale train configs/sd3/adrpo.toml --sed 1",
        "adrpo-scale train configs/sd3/adrpo.toml --set optimizer.rate=1",
        "adrpo-scale train configs/sd3/adrpo.toml --set seed=one",
        "adrpo-scale train configs/sd3/adpro.toml",
        "adrpo-scale train",
        "adrpo-scale train CONFIG --allow-change optimizer.rate",
        "adrpo-scale evaluate configs/omni/mmau.toml --set bacth=3",
        "torchrun --nprocs 2 -m adrpo_scale train configs/sd3/adrpo.toml",
        "sbatch --node=10 slurm/train.sbatch configs/sd3/adrpo.toml",
        "sbatch --nodes=10 slurm/train.sbatch configs/sd3/adrpo.toml --seed 1",
        "python -m benchmarks.overhead --round 20",
        "python -m benchmarks.overheads",
        "python benchmarks/overheads.py",
        "make doc",
    ],
)
def test_a_wrong_line_would_be_found(line):
    (words,) = commands_of(line)
    assert fault(words) is not None
