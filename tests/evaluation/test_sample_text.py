"""`adrpo-scale sample` of language models: from a run, a checkpoint, and a model as it is."""

from __future__ import annotations

import json

import huggingface_hub
import pytest
from typer.testing import CliRunner

from adrpo_scale.checkpoint.locate import open_checkpoint
from adrpo_scale.cli import main as cli
from adrpo_scale.core.errors import CheckpointError, ConfigError, ModelNotFoundError
from adrpo_scale.evaluation.sample import find_source, sample_to, stands_for
from adrpo_scale.run.build import build_trainer
from adrpo_scale.training.media import COMPLETIONS
from tests.support.ranks import run_ranks
from tests.support.tiny_text import PROMPTS, WORDS, save_prompts, save_tiny, text_config

SHORT = ["domain.evaluation.max_new_tokens=6", "domain.chat.max_prompt_tokens=16"]


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """Holds model/, run/ (trained on it) and prompts.jsonl."""
    place = tmp_path_factory.mktemp("text")
    save_tiny(place / "model")
    save_prompts(place / "prompts.jsonl")
    (place / "run").mkdir()
    overrides = ["domain.train=lora", "domain.lora.rank=4", "optimizer.learning_rate=1e-2"]
    trainer = build_trainer(text_config(place / "model", overrides), place / "run")
    trainer.train()
    trainer.saver.save_now()
    return place


def sampled(root, name, to, *overrides, per_prompt=2):
    """Lines of completions.jsonl, and what was printed."""
    line = ["sample", str(root / name), "--prompts", str(root / "prompts.jsonl"), "--to", str(to)]
    line += ["--per-prompt", str(per_prompt), "--seed", "3"]
    line += [word for override in (*SHORT, *overrides) for word in ("--set", override)]
    answer = CliRunner().invoke(cli.app, line, catch_exceptions=False)
    assert answer.exit_code == 0, answer.output
    return [json.loads(text) for text in (to / COMPLETIONS).read_text().splitlines()], answer.output


def test_every_prompt_has_its_completions_in_order(root, tmp_path):
    rows, printed = sampled(root, "run", tmp_path)
    assert [(row["prompt"], row["sample"]) for row in rows] == [
        (prompt, sample) for prompt in PROMPTS for sample in range(2)
    ]
    for row in rows:
        assert row.keys() == {"prompt", "sample", "completion", "tokens", "finished"}
        assert row["finished"] == (row["tokens"][-1] == WORDS.index("<|im_end|>"))
        words = [WORDS[token] if token < len(WORDS) else None for token in row["tokens"]]
        assert row["completion"] == " ".join(words[:-1] if row["finished"] else words)
        assert len(row["tokens"]) <= 6 and (row["finished"] or len(row["tokens"]) == 6)
    assert f"12 completions, {sum(row['finished'] for row in rows)} of them finished" in printed
    assert rows[0]["completion"] in printed and str(tmp_path) in printed


def test_the_seed_decides_and_settings_can_be_set(root, tmp_path):
    first, _ = sampled(root, "run", tmp_path / "a")
    again, _ = sampled(root, "run", tmp_path / "b", "domain.rollout_chunk=3")
    assert first == again
    greedy, _ = sampled(root, "run", tmp_path / "c", "domain.evaluation.temperature=0")
    tokens = [row["tokens"] for row in greedy]
    assert tokens[::2] == tokens[1::2] and greedy != first


def test_a_model_as_it_is_needs_no_run(root, tmp_path):
    plain, _ = sampled(root, "model", tmp_path / "a")
    assert len(plain) == 12 and plain != sampled(root, "run", tmp_path / "b")[0]


def test_a_model_as_it_is_has_no_settings_of_training(root):
    source = find_source(str(root / "model"), SHORT)
    assert source.run is None and source.reader is None
    assert set(type(source.config).model_fields) == {"domain", "engine"}
    assert source.config.domain.evaluation.max_new_tokens == 6
    with pytest.raises(ConfigError, match="optimizer: unknown key; known here: domain, engine"):
        find_source(str(root / "model"), ["optimizer.learning_rate=1"])
    of_run = find_source(str(root / "run"), SHORT)
    assert of_run.run is not None and of_run.config == of_run.run.sampling


def test_how_much_is_sampled_is_said_first_and_limited_by_an_option(root, tmp_path):
    rows, printed = sampled(root, "run", tmp_path / "all")
    assert f"sampling 12 completions: 2 of each of {len(PROMPTS)} prompts\n" in printed
    line = ["sample", str(root / "run"), "--prompts", str(root / "prompts.jsonl"), "--limit", "2"]
    line += ["--to", str(tmp_path / "two"), "--per-prompt", "2", "--seed", "3"]
    line += [word for override in SHORT for word in ("--set", override)]
    answer = CliRunner().invoke(cli.app, line, catch_exceptions=False)
    assert "sampling 4 completions: 2 of each of 2 prompts\n" in answer.output
    first = (tmp_path / "two" / COMPLETIONS).read_text().splitlines()
    assert [json.loads(text) for text in first] == rows[:4]


def test_many_prompts_name_the_limit_and_a_folder_is_made_before_any_work(root, tmp_path, capsys):
    many = save_prompts(tmp_path / "many.jsonl", PROMPTS * 20)
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match="no folder can be made"):
        sample_to(
            find_source(str(root / "run"), SHORT),
            *(many, tmp_path / "file" / "to"),
            **{"per_prompt": 2, "seed": 0, "weights": "raw"},
        )
    shown = capsys.readouterr().out
    assert "2 of each of 120 prompts; --limit takes the first prompts alone" in shown


def test_samples_of_an_earlier_command_are_never_lost_silently(root, tmp_path):
    settings = {"per_prompt": 2, "seed": 0, "weights": "raw"}
    source, file = find_source(str(root / "run"), SHORT), root / "prompts.jsonl"
    (tmp_path / "notes.txt").touch()  # of somebody else: it stays
    sample_to(source, file, tmp_path, **settings)
    (tmp_path / "00007-000.png").touch()
    before = (tmp_path / COMPLETIONS).read_bytes()
    with pytest.raises(ConfigError, match=r"has 2 files of an earlier .sample. \(00007-000.png"):
        sample_to(source, file, tmp_path, **{**settings, "seed": 1})
    assert (tmp_path / COMPLETIONS).read_bytes() == before
    sample_to(source, file, tmp_path, **{**settings, "seed": 1}, overwrite=True)
    assert (tmp_path / COMPLETIONS).read_bytes() != before
    assert {path.name for path in tmp_path.iterdir()} == {"notes.txt", COMPLETIONS}


def sample_on(rank, world, root):
    source = find_source(str(root / "run"))
    to = root / f"ranks-{world}"
    settings = {"per_prompt": 2, "seed": 3, "weights": "raw"}
    return len(sample_to(source, root / "prompts.jsonl", to, **settings))


def test_two_ranks_write_what_one_does(root):
    assert run_ranks(sample_on, 2, root) == [1, 0]
    sample_on(0, 1, root)
    written = [(root / f"ranks-{world}" / COMPLETIONS).read_text() for world in (1, 2)]
    assert written[0] == written[1]


# ---- what a name stands for ------------------------------------------------------------------


def test_runs_pipelines_and_language_models_are_told_apart(root, tmp_path):
    checkpoint = open_checkpoint(str(root / "run")).folder
    for name in (root / "run", f"{root / 'run'}@1", checkpoint):
        assert stands_for(str(name)) == "run", name
    assert stands_for(str(root / "model")) == "text"
    assert stands_for("demo:image") == "flow"
    (tmp_path / "config.json").write_text(json.dumps({"seed": 0}))
    with pytest.raises(CheckpointError, match="has no checkpoint"):
        find_source(str(tmp_path))


def test_a_folder_that_is_none_of_them_is_named(tmp_path):
    with pytest.raises(ConfigError, match="holds none of them"):
        stands_for(str(tmp_path))
    (tmp_path / "adapter_config.json").touch()
    with pytest.raises(ConfigError, match=r"holds adapters alone; .* name their run"):
        stands_for(str(tmp_path))


@pytest.mark.parametrize(("files", "domain"), [(["model_index.json"], "flow"), ([], "text")])
def test_the_hub_is_asked_for_its_list_alone(monkeypatch, tmp_path, files, domain):
    monkeypatch.setattr(huggingface_hub, "file_exists", lambda repo, name: name in files)
    assert stands_for("nobody/nothing") == domain

    def unreachable(repo, name):
        raise OSError

    monkeypatch.setattr(huggingface_hub, "file_exists", unreachable)
    assert stands_for("nobody/nothing") == "text"


@pytest.mark.parametrize(
    ("file", "there", "domain"),
    [("model_index.json", False, "flow"), ("config.json", True, "text")],
)
def test_the_cache_is_asked_first(monkeypatch, tmp_path, file, there, domain):
    cached = tmp_path / "models--nobody--nothing"
    snapshot = cached / "snapshots" / ("f" * 40)
    snapshot.mkdir(parents=True)
    (snapshot / file).write_text("{}")
    (cached / "refs").mkdir()
    (cached / "refs" / "main").write_text("f" * 40)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(huggingface_hub, "file_exists", lambda repo, name: there)
    assert stands_for("nobody/nothing") == domain


def test_a_model_that_is_not_there_is_one_clear_error(tmp_path, root):
    with pytest.raises(ModelNotFoundError, match="nowhere"):
        source = find_source(str(tmp_path / "nowhere"))
        sample_to(source, root / "prompts.jsonl", tmp_path, per_prompt=1, seed=0, weights="raw")
