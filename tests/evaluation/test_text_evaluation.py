"""`evaluate FILE` of completions, on the demo of a reward model."""

from __future__ import annotations

import json
import tomllib

import pytest

from adrpo_scale.core.json_files import read_lines
from adrpo_scale.data.prompts import load_prompts
from adrpo_scale.evaluation.evaluate import evaluate
from adrpo_scale.evaluation.file import parse_evaluation
from adrpo_scale.evaluation.report.commands import commands
from adrpo_scale.evaluation.report.evaluated import read_runs
from adrpo_scale.evaluation.report.paired_completions import paired_completions
from adrpo_scale.export.base import Request
from adrpo_scale.export.exporter import export
from adrpo_scale.run.build import build_trainer
from adrpo_scale.run.load import load_config
from tests.support.faults import die, watch_calls
from tests.support.judge_server import QUICK, judge_server, said
from tests.support.ranks import RankError, run_ranks
from tests.support.tiny import CONFIGS

SMALL = ["iterations=1", "evaluation.every=0", "prompts.per_iteration=2", "prompts.group_size=2"]
SMALL += ["optimizer.learning_rate=1e-2", "domain.train=lora", "domain.lora.rank=4"]
SMALL += ["domain.lora.alpha=8"]
FILE = """
benchmark = "text"
[prompts]
file = "{root}/prompts.jsonl"
[sampling]
per_prompt = 2
seeds = [3, 5]
batch = 5
max_new_tokens = 8
[[scorers]]
kind = "reward_model"
model = "demo:text_rm/reward_model"
dtype = "float32"
[[scorers]]
kind = "demo_gold"
[models.base]
pipeline = "demo:text_rm"
[models.trained]
run = "{root}/runs/*"
"""
BASE = {"models": {"base": {"pipeline": "demo:text_rm"}}}


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """Holds prompts.jsonl, two runs of seeds and the exported adapters of the first."""
    place = tmp_path_factory.mktemp("asked")
    prompts = load_prompts("demo:text_rm/prompts/held_out.jsonl")[:3]
    rows = [{"prompt": p.text, **p.metadata, "category": "ab"[p.id % 2]} for p in prompts]
    (place / "prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    for seed in (0, 1):
        run = place / "runs" / f"rm-{seed}"
        run.mkdir(parents=True)
        config = load_config(CONFIGS / "demo" / "text_rm_adrpo.toml", [*SMALL, f"seed={seed}"])
        trainer = build_trainer(config.config, run)
        trainer.train()
        trainer.saver.save_now()
        (run / "config.json").write_text(json.dumps(config.config.resolved()))
        (run / "lives").mkdir()
        (run / "lives" / "01.json").write_text(json.dumps({"command": f"train it {seed}"}))
    request = Request(place / "adapters", "adapter", verify="none")
    export(str(place / "runs" / "rm-0"), request)
    return place


def asked(rank, world, root, to, changes=None, dies_at=0, limit=None):
    """changes: sections in place of the file's. dies_at: the batch, of this rank, after which it is
    killed."""
    if dies_at:
        watch_calls("adrpo_scale.evaluation.parts:append", lambda n: n > dies_at and die())
    document = tomllib.loads(FILE.format(root=root)) | (changes or {})
    evaluate(parse_evaluation(document), to, limit)


def contents(to):
    """Every file of the rows by its place."""
    files = sorted(path for path in (to / "rows").rglob("*") if path.is_file())
    return {path.relative_to(to).as_posix(): path.read_bytes() for path in files}


@pytest.fixture(scope="module")
def whole(root):
    """The folder of the evaluation, by one process that nothing has stopped."""
    asked(0, 1, root, root / "whole")
    return root / "whole"


def test_a_row_keeps_its_completions_with_their_ends_and_scores(whole):
    rows = sorted(path.name for path in (whole / "rows").iterdir())
    assert rows == ["base", "trained,rm-0", "trained,rm-1"]
    for row in rows:
        folder = whole / "rows" / row
        written = read_lines(folder / "completions.jsonl")
        assert [line["id"] for line in written] == [*range(12)]
        assert [(line["seed"], line["sample"]) for line in written[:4]] == [
            (3, 0), (3, 1), (5, 0), (5, 1),
        ]  # fmt: skip
        assert all(0 < line["length"] <= 8 for line in written)
        assert all(line["finished"] or line["length"] == 8 for line in written)
        numbers = {line["metric"]: line for line in read_lines(folder / "eval.jsonl")}
        assert [*numbers] == ["reward_model", "demo_gold", "completion_tokens", "truncated"]
        assert {line["n"] for line in numbers.values()} == {12}
        mean = sum(line["length"] for line in written) / 12
        assert numbers["completion_tokens"]["value"] == pytest.approx(mean, rel=1e-12)
    assert len({(whole / "rows" / row / "completions.jsonl").read_bytes() for row in rows}) == 3


@pytest.mark.slow  # 17 processor seconds: three starts of three processes
def test_three_processes_and_kills_give_the_same_bytes(root, whole, tmp_path):
    to = tmp_path / "to"
    for dies_at in (1, 3):  # while completions are written; while they are scored
        with pytest.raises(RankError):
            run_ranks(asked, 3, root, to, None, dies_at, grouped=False)
    assert len(contents(to)) < len(contents(whole))
    run_ranks(asked, 3, root, to, grouped=False)
    assert contents(to) == contents(whole)
    assert (to / "evaluation.json").read_bytes() == (whole / "evaluation.json").read_bytes()


def test_adapters_on_the_base_have_the_numbers_of_their_run(root, whole, tmp_path):
    lora = {"pipeline": "demo:text_rm", "lora": str(root / "adapters")}
    asked(0, 1, root, tmp_path / "to", {"models": {"lora": lora}})
    for name in ("completions.jsonl", "scores/reward_model.jsonl", "scores/demo_gold.jsonl"):
        of_run = (whole / "rows" / "trained,rm-0" / name).read_bytes()
        assert (tmp_path / "to" / "rows" / "lora" / name).read_bytes() == of_run, name


def test_another_scorer_needs_no_new_completions_and_a_judge_that_fails_is_counted(
    root, whole, tmp_path, monkeypatch, capsys
):
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    asked(0, 1, root, tmp_path / "to", BASE)
    row = tmp_path / "to" / "rows" / "base"
    before = (row / "completions.jsonl").stat().st_mtime_ns, (row / "manifest.jsonl").read_bytes()
    texts = [line["text"] for line in read_lines(row / "completions.jsonl")]
    bad = set(texts[:3])

    def answer(body):
        content = body["messages"][-1]["content"]
        return said("no" if content in bad else f"<score>{len(content)}</score>")

    with judge_server(answer) as server:
        judge = {"kind": "judge", "model": "m", "url": server.url, "key": "", "requests": QUICK}
        judge |= {"template": "{completion}"}
        capsys.readouterr()
        asked(0, 1, root, tmp_path / "to", {**BASE, "scorers": [judge]})
    assert (row / "manifest.jsonl").read_bytes() == before[1]
    missing = sum(text in bad for text in texts)
    assert missing and f"{missing} samples have no score of judge" in capsys.readouterr().out
    numbers = {line["metric"]: line for line in read_lines(row / "eval.jsonl")}
    assert numbers["judge"]["n"] == 12 - missing
    good = [len(text) for text in texts if text not in bad]
    assert numbers["judge"]["value"] == pytest.approx(sum(good) / len(good), rel=1e-12)


def test_two_rows_are_compared_completion_by_completion(whole):
    pairs = paired_completions(whole / "rows" / "base", whole / "rows" / "trained,rm-0")
    assert len(pairs) == 12 and pairs[0].asked.category == "a"
    assert all({*pair.one.scores} == {"reward_model", "demo_gold"} for pair in pairs)
    assert any(pair.one.text != pair.other.text for pair in pairs)


def test_greedy_and_a_limit(root, tmp_path):
    greedy = {"temperature": 0, "per_prompt": 1, "batch": 2, "max_new_tokens": 4}
    asked(0, 1, root, tmp_path / "to", {**BASE, "sampling": greedy}, limit=2)
    written = read_lines(tmp_path / "to" / "rows" / "base" / "completions.jsonl")
    assert [(line["prompt_id"], line["seed"], line["sample"]) for line in written] == [
        (0, 0, 0),
        (1, 0, 0),
    ]
    assert max(line["length"] for line in written) <= 4


def test_the_command_stands_behind_the_numbers_of_its_rows(root, whole, monkeypatch):
    before = contents(whole)
    monkeypatch.setattr("sys.argv", ["/x/adrpo-scale", "evaluate", "my file.toml"])
    asked(0, 1, root, whole)
    assert contents(whole) == before
    published, *trained = read_runs(str(whole))
    made = ("evaluated by", "adrpo-scale evaluate 'my file.toml'")
    assert commands(published)[:-1] == [made]
    assert [commands(run)[:-1] for run in trained] == [
        [("trained by", f"train it {seed}"), made] for seed in (0, 1)
    ]
