"""Texts that no setting can hold, in files, after `--set`, in paths and in launchers' variables:
one error with a remedy each; and texts with brackets, which are printed as they are."""

from __future__ import annotations

import ast
import json
import os
from pathlib import Path

import pytest

import adrpo_scale
from adrpo_scale.checkpoint.inspect import inspect
from adrpo_scale.checkpoint.locate import open_checkpoint
from adrpo_scale.cli import main as cli
from adrpo_scale.core.errors import CheckpointError, ConfigError
from adrpo_scale.core.numbers import natural
from adrpo_scale.core.printable import shown
from adrpo_scale.core.rank_facts import meeting_point, rank_facts, tasks_on_node
from adrpo_scale.core.toml_text import TomlError, parse_toml, read_toml
from adrpo_scale.evaluation.mmau.evaluate import load_settings
from adrpo_scale.run.build import build_domain
from adrpo_scale.run.load import load_config, parse_override
from adrpo_scale.run.soundness import check_models
from tests.support.tiny import CONFIGS
from tests.support.tiny_text import text_config

IMAGE, TEXT = CONFIGS / "demo" / "image_adrpo.toml", CONFIGS / "demo" / "text_adrpo.toml"


def refusal(*overrides: str, config: Path = IMAGE) -> str:
    with pytest.raises(ConfigError) as error:
        load_config(config, overrides)
    text = str(error.value)
    assert len(text) < 2000
    return text


def command(monkeypatch, capsys, *words: str) -> tuple[int, str]:
    """(exit code, output) of the command, in this process."""
    monkeypatch.setattr("sys.argv", ["adrpo-scale", *words])
    code = cli._run()
    out = capsys.readouterr()
    return code, out.out + out.err


# ---- files and values ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("seed = " + "9" * 5000, "has a number that is too long to be one"),
        ("seed = 0x" + "f" * 5000, "seed is an integer of 20000 bits; settings have at most 64"),
        ("seed = " + "[" * 5000, "is nested deeper than 32 tables and lists"),
        ("seed = " + "[" * 100 + "]" * 100, "is nested deeper than 32 tables and lists; no"),
        (".".join("a" * 3000) + " = 1", "is nested deeper than 32 tables and lists; no setting is"),
        ('[domain]\nmodel = "a\\u0000b"', r"domain.model = 'a\x00b' holds the control character"),
        ('"a\\u001bb" = 1', "holds the control character"),
        ('seed = "\\ud800"', "is not valid TOML"),
    ],
)
@pytest.mark.parametrize("read", [load_config, lambda path: load_settings(path, [], None)])
def test_a_file_that_no_setting_can_hold_is_one_error(tmp_path, read, text, said):
    path = tmp_path / "odd.toml"
    path.write_text(text)
    with pytest.raises(ConfigError) as error:
        read(path)
    assert str(error.value).startswith(f"config {path}") and said in str(error.value)
    assert len(str(error.value)) < 1000


@pytest.mark.parametrize("read", [load_config, lambda path: load_settings(path, [], None)])
def test_a_path_of_a_config_that_cannot_be_read_is_one_error(tmp_path, read):
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    huge = tmp_path / "huge.toml"
    huge.write_bytes(b"#")
    os.truncate(huge, 10_000_001)
    for path, said in {
        tmp_path: "cannot be read (it is no regular file)",
        pipe: "cannot be read (it is no regular file)",
        Path("/dev/zero"): "cannot be read (it is no regular file)",
        huge: "cannot be read (it has more than 10000000 bytes)",
        IMAGE / "below": "cannot be read (Not a directory)",
        Path("a" * 5000): "cannot be read (File name too long)",
        Path("a\0b"): "cannot be read (embedded null byte)",
    }.items():
        with pytest.raises(ConfigError) as error:
            read(path)
        assert said in str(error.value) and len(str(error.value)) < 400


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("seed=" + "9" * 5000, "seed = inf"),
        ("seed=0x" + "f" * 5000, "is an integer of 20000 bits"),
        ("seed=" + "[" * 5000, "(5002 characters)"),
        ("seed=" + "[" * 100 + "]" * 100, "is nested deeper than 32"),
        (".".join("a" * 3000) + "=1", "is nested deeper than 32"),
        ("domain.model=a\0b", "holds the control character"),
        ("domain.model=\udcff", "holds bytes that are no UTF-8"),
        ("domain.model=\x1b[2J", "holds the control character"),
        ("rewards.².name=x", "'²' should be a number from 0 to 1"),
        ("rewards.٣.name=x", "should be a number from 0 to 1"),
        ("iterations=1e99", "iterations = 1e+99: Input should be a valid integer"),
        ("engine.shard=true", "engine.shard = True: Input should be 1, 'node' or 'all'"),
        ("engine.shard=1.0", "engine.shard = 1.0: Input should be 1, 'node' or 'all'"),
        ("rewards.0.kind=sys:exit", "is expected: derive it from"),
        ("rewards.0.kind=antigravity_is_no_module:x", "cannot be imported"),
    ],
)
def test_a_set_that_no_setting_can_hold_is_one_error(override, said):
    assert said in refusal(override)


@pytest.mark.parametrize("rest", ["# b", "\n# b", "\nother = 1", "\n[domain]", ", 2", "] # b"])
@pytest.mark.parametrize("value", ["3", '"a"', "[1, 2]", "{a = 1}", "true"])
def test_nothing_of_a_set_is_dropped(value, rest):
    assert parse_override(f"rewards.0.name={value}{rest}") == (
        "rewards.0.name",
        f"{value}{rest}",
    )


def test_what_toml_is_and_how_long_it_is_shown():
    assert parse_toml("a = 1") == {"a": 1}
    with pytest.raises(TomlError, match="is not valid TOML: "):
        parse_toml("a = ")
    assert shown("x" * 300) == f"'{'x' * 199}… (302 characters)"
    assert shown(10**5000) == "a int too long to show"
    assert [natural(text) for text in ("0", "120", "²", "٣", "", "-1", " 1", "9" * 19)] == [
        *(0, 120),
        *[None] * 6,
    ]


def test_a_pipe_of_the_shell_is_a_file(tmp_path):
    reader, writer = os.pipe()
    os.write(writer, b"seed = 3")
    os.close(writer)
    assert read_toml(Path(f"/dev/fd/{reader}"), "") == {"seed": 3}
    os.close(reader)


# ---- launchers' variables ------------------------------------------------------------------------

RANKS = {"RANK": "0", "WORLD_SIZE": "2", "LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "2"}
STEP = {
    "SLURM_STEP_ID": "0",
    "SLURM_STEP_NUM_TASKS": "2",
    "SLURM_PROCID": "0",
    "SLURM_LOCALID": "0",
    "SLURM_NODEID": "0",
    "SLURM_STEP_TASKS_PER_NODE": "2",
}


@pytest.mark.parametrize("value", ["x", "", "-1", "²", "1.0", "9" * 5000, "٣"])
@pytest.mark.parametrize(
    ("environment", "name"),
    [(RANKS, name) for name in RANKS]
    + [(STEP, name) for name in STEP if name not in ("SLURM_STEP_ID", "SLURM_STEP_NUM_TASKS")],
)
def test_a_variable_of_a_launcher_that_is_no_number_is_named(environment, name, value):
    with pytest.raises(ConfigError) as error:
        rank_facts(environment | {name: value})
    assert f"{name} = {value!r}" in str(error.value)


def test_tasks_of_nodes_that_slurm_does_not_state():
    assert [tasks_on_node("8(x2),4", node) for node in range(3)] == [8, 8, 4]
    for text, node in (("8(x2),4", 3), ("", 0), ("8(x²)", 0), ("8(x", 0)):
        with pytest.raises(ConfigError, match="SLURM_STEP_TASKS_PER_NODE"):
            tasks_on_node(text, node)


@pytest.mark.parametrize("port", ["", "x", "²", "70000"])
def test_a_meeting_point_that_is_none_is_named(port):
    with pytest.raises(ConfigError, match="expected the host and port of rank 0"):
        meeting_point(2, {"MASTER_ADDR": "localhost", "MASTER_PORT": port})
    assert meeting_point(2, {"MASTER_ADDR": "a", "MASTER_PORT": "29500"}) == ("a", 29500)


def test_a_start_with_a_rank_that_is_no_number_says_so(monkeypatch, capsys, tmp_path):
    for name, value in (RANKS | {"RANK": "x"}).items():
        monkeypatch.setenv(name, value)
    words = ("train", str(IMAGE), "--run-dir", str(tmp_path / "run"))
    code, said = command(monkeypatch, capsys, *words)
    assert code == 2 and said.startswith("error: the environment says RANK = 'x'")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("name", ["gone@²", "gone@٣", "gone@" + "9" * 30])
def test_an_iteration_that_is_no_number_is_no_checkpoint(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    for ask in (open_checkpoint, inspect):
        with pytest.raises(CheckpointError, match="expected RUN@iteration"):
            ask(name)


# ---- brackets and colons in what is printed ------------------------------------------------------

MARKS = ["[/INST]", "[/x]", "[bold]", "[red]a[/red]", ":smile:", "[link=x]", "[", "\\[/x]"]


@pytest.mark.parametrize("mark", MARKS)
def test_a_name_with_brackets_is_printed_as_it_is(monkeypatch, capsys, mark):
    code, said = command(
        monkeypatch, capsys, "config", str(IMAGE), "--set", f"rewards.0.name='{mark}'"
    )
    assert code == 0 and f'"{mark}"' in said


def test_every_console_prints_texts_as_they_are():
    """rich reads markup in every text by default, also in cells of tables and in progress lines."""
    for path in Path(adrpo_scale.__path__[0]).rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if not isinstance(node, ast.Call):
                continue
            name = getattr(node.func, "id", getattr(node.func, "attr", None))
            fields = name == "TextColumn" and "fields" in ast.unparse(node)
            if name in ("Console", "RichHandler") or fields:
                markup = [k.value for k in node.keywords if k.arg == "markup"]
                assert [m.value for m in markup] == [False], f"{path}:{node.lineno}"  # type: ignore[attr-defined]
            assert name != "from_markup", f"{path}:{node.lineno}"


# ---- components that do not fit together ---------------------------------------------------------


@pytest.mark.parametrize(
    ("config", "kind", "said"),
    [
        (TEXT, "{kind=clip,model=demo:image/reward_clip}", "'clip' judges pictures, and domain"),
        (TEXT, "{kind=glyph_checker}", "'glyph_checker' judges pictures"),
        (IMAGE, "{kind=exact_answer}", "'exact_answer' judges completions, and domain flow makes"),
        (IMAGE, "{kind=reward_model,model=demo:text_rm/reward}", "'reward_model' judges"),
        (IMAGE, "{kind=format}", "glyph_checker, dice_checker, or a function of your own"),
    ],
)
def test_a_reward_of_another_domain_is_refused_by_the_config(config, kind, said):
    assert said in refusal(f"rewards.0={kind}", config=config)


@pytest.mark.parametrize(
    ("targets", "said"),
    [
        (["q_pro"], "did you mean q_proj? linear layers here: down_proj, gate_proj, k_proj"),
        (["input_layernorm"], "does not fit Qwen3ForCausalLM"),
        ([""], "does not fit Qwen3ForCausalLM"),
    ],
)
def test_targets_that_peft_refuses_are_named_before_weights_are_read(tmp_path, targets, said):
    settings = ["domain.train=lora", f"domain.lora={{targets={json.dumps(targets)}}}"]
    config = text_config(tmp_path / "model", settings)
    with pytest.raises(ConfigError) as error:
        check_models([], build_domain(config))
    assert f"domain.lora.targets = {targets}" in str(error.value) and said in str(error.value)
