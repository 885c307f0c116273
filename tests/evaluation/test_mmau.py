"""The MMAU evaluation: its rules of judging, its files, and endpoints as they misbehave."""

from __future__ import annotations

import json
import os
import re
import threading
from pathlib import Path

import pytest
from typer.testing import CliRunner

from adrpo_scale.cli import main as cli
from adrpo_scale.core.chat_endpoint import Answer
from adrpo_scale.core.errors import ConfigError, EndpointError, PromptError, RunFolderError
from adrpo_scale.core.folder_lock import RunLock
from adrpo_scale.evaluation.mmau import evaluate, local, predictions
from adrpo_scale.evaluation.mmau.base import (
    MmauConfig,
)
from adrpo_scale.evaluation.mmau.tables import NO_PAPER
from adrpo_scale.evaluation.report.evaluated import read_runs
from adrpo_scale.run import train as running
from adrpo_scale.run.load import LoadedConfig
from adrpo_scale.run.registry import DOMAINS
from tests.support.mmau import (
    CONFIG,
    DOG,
    FAST,
    KEY,
    THOUGHT,
    completion,
    endpoint,
    fails,
    make_data,
    rewrite,
)
from tests.support.ranks import forkserver, run_ranks
from tests.support.sounds import cut, write_audio
from tests.support.tiny_audio import audio_config, save_clip, save_thinker
from tests.support.tiny_text import text_config

# ---- the command ---------------------------------------------------------------------------------


def given(data, to, name="a-model", limit=None):
    fast = [f"endpoint.{key}={value}" for key, value in FAST.items()]
    return evaluate.EvaluateOptions(CONFIG, None, name, data, to, limit, overrides=fast)


def rows_of(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_an_evaluation_leaves_tables_and_what_the_benchmark_takes(server, tmp_path, capsys):
    data, to = make_data(tmp_path / "data"), tmp_path / "out"
    server.replies = {0: [completion("Dog")], 5: [completion("no idea")], 11: [completion("B")]}
    evaluate.evaluate(given(data, to))
    rows = rows_of(to / "eval.jsonl")
    keys = {"run", "algorithm", "seed", "iteration", "split", "metric", "value", "n"}
    assert all(row.keys() == keys for row in rows)
    found = {(row["split"], row["metric"]): (row["value"], row["n"]) for row in rows}
    assert found["mmau:sound", "strict"] == (0.75, 4)
    assert found["mmau:sound", "strict_untagged"] == (1.0, 4)
    assert found["mmau:total", "strict"] == (0.75, 12)
    assert found["mmau:total", "benchmark"] == (pytest.approx(10 / 12), 12)
    assert found["mmau:total", "unparsed"] == (1, 12)
    assert ("mmau:difficulty:easy", "strict") in found
    assert ("mmau:sub_category:Pets", "benchmark") in found

    handed_in = json.loads((to / "predictions.json").read_text())
    assert [row["id"] for row in handed_in] == [f"id-{n:02d}" for n in range(12)]
    assert handed_in[1]["model_prediction"] == handed_in[1]["model_output"] == "Dog"
    assert handed_in[1]["audio_id"] == "./mini/clip.wav" and handed_in[1]["answer"] == " Dog"
    assert handed_in[5]["model_output"] == "no idea"
    lines = rows_of(to / "questions.jsonl")
    assert lines[5]["prediction"] == "no idea" and lines[5]["named"] is None
    assert lines[11]["named"] == "dog" and not lines[11]["tagged"] and not lines[11]["strict"]
    table = (to / "table.md").read_text()
    assert "revision v05.15.25" in table and NO_PAPER in table
    assert "| strict: the option inside `<answer>` | 75.00 | 75.00 | 75.00 | 75.00 |" in table
    shown = capsys.readouterr().out
    assert "12 questions to a-model, 0 answered already" in shown and "75.00" in shown
    assert KEY not in shown + "".join(path.read_text() for path in to.iterdir())


def test_what_has_an_answer_is_not_asked_again(server, tmp_path, capsys):
    data, to = make_data(tmp_path / "data"), tmp_path / "out"
    evaluate.evaluate(given(data, to, limit=3))
    assert server.asked == [0, 4, 8]
    (to / "answers-007.jsonl").write_text('{"id": "id-01", "predic')  # a rank died while it wrote
    server.replies = {n: [fails(400)] for n in (1, 2)}
    evaluate.evaluate(given(data, to))
    assert sorted(server.asked[3:]) == [1, 2, 3, 5, 6, 7, 9, 10, 11]
    (row,) = [
        row
        for row in rows_of(to / "eval.jsonl")
        if (row["split"], row["metric"]) == ("mmau:total", "unanswered")
    ]
    assert row["value"] == 2
    evaluate.evaluate(given(data, to))
    assert server.asked[12:] == [1, 2]
    assert "nothing is asked" not in capsys.readouterr().out
    evaluate.evaluate(given(data, to))
    assert len(server.asked) == 14
    assert "nothing to ask: every question has its answer" in capsys.readouterr().out
    assert len(rows_of(to / "answers.jsonl")) == 12 and not list(to.glob("answers-*"))


def test_a_folder_holds_one_evaluation(server, tmp_path, monkeypatch):
    data, to = make_data(tmp_path / "data"), tmp_path / "out"
    evaluate.evaluate(given(data, to, limit=3))
    with pytest.raises(RunFolderError, match=r"model: 'a-model' → 'b-model'.*--to"):
        evaluate.evaluate(given(data, to, name="b-model"))
    with monkeypatch.context() as patched:  # another server, and a model of the same name
        patched.setenv("OPENAI_BASE_URL", "http://127.0.0.1:9/v1/")
        with pytest.raises(RunFolderError, match=rf"url: '{server.url}' → 'http://127.0.0.1:9/v1'"):
            evaluate.evaluate(given(data, to))
    rewrite(data, 0, question="Another one?")
    with pytest.raises(RunFolderError, match="questions_sha256"):
        evaluate.evaluate(given(data, to))


def test_one_evaluation_at_a_time_in_a_folder(server, tmp_path):
    data, to = make_data(tmp_path / "data"), tmp_path / "out"
    to.mkdir()
    with RunLock(to), pytest.raises(RunFolderError, match="is in use by"):
        evaluate.evaluate(given(data, to))
    assert server.asked == [] and list(to.iterdir()) == []
    evaluate.evaluate(given(data, to, limit=1))
    assert not (to / "lock.json").exists()


@pytest.mark.parametrize(("limit", "asked"), [(None, 8), (3, 3)])
def test_a_model_that_only_thinks_is_given_up_with_a_remedy(server, tmp_path, limit, asked):
    data, to = make_data(tmp_path / "data"), tmp_path / "out"
    server.replies = {n: [THOUGHT] for n in range(12)}
    remedy = rf"all of {asked} answers .*Raise max_new_tokens.*extra\.reasoning_effort.*--to"
    with pytest.raises(EndpointError, match=remedy):
        evaluate.evaluate(given(data, to, limit=limit))
    assert len(server.asked) == asked == len(rows_of(to / "answers.jsonl"))


def test_answers_that_were_cut_off_are_counted_and_old_ones_are_read(server, tmp_path):
    data, to = make_data(tmp_path / "data"), tmp_path / "out"
    server.replies = {n: [THOUGHT] for n in range(1, 12)} | {2: [completion("Do", "length")]}
    evaluate.evaluate(given(data, to))  # one of them has a text
    lines = rows_of(to / "questions.jsonl")
    assert [line["cut"] for line in lines] == [False] + [True] * 11
    assert lines[1]["prediction"] == "" and not lines[1]["benchmark"]
    assert "| cut off: reached the limit of its length | 3 of 4 |" in (to / "table.md").read_text()
    assert "| unanswered | 0 of 4 |" in (to / "table.md").read_text()
    old = [{"id": row["id"], "prediction": row["prediction"]} for row in lines]
    predictions.write_lines(to / "answers.jsonl", old)
    evaluate.evaluate(given(data, to))
    assert answers_in(to) == {row["id"]: row["prediction"] for row in lines}
    assert len(server.asked) == 12


def test_what_has_been_answered_with_a_text_is_no_model_that_only_thinks(server, tmp_path):
    data, to = make_data(tmp_path / "data"), tmp_path / "out"
    server.replies = {8: [fails(400), THOUGHT]}
    for _ in range(2):
        evaluate.evaluate(given(data, to, limit=3))
    assert server.asked == [0, 4, 8, 8]


def test_an_error_in_the_middle_keeps_the_answers_before_it(server, tmp_path):
    data, to = make_data(tmp_path / "data"), tmp_path / "out"
    server.replies = {3: [fails(401)]}
    with pytest.raises(EndpointError, match="401") as error:
        evaluate.evaluate(given(data, to))
    assert error.value.agreed and server.asked == [0, 1, 2, 3]
    assert len(rows_of(to / "answers.jsonl")) == 3 and (to / "table.md").is_file()


def test_a_missing_clip_is_named_and_its_question_counts_as_wrong(server, tmp_path, capsys):
    data, to = make_data(tmp_path / "data"), tmp_path / "out"
    rewrite(data, 2, audio="gone.wav")
    evaluate.evaluate(given(data, to))
    shown = capsys.readouterr().out
    assert "question id-02 is not asked" in shown and "gone.wav" in shown
    assert "questions without an answer: 1 (id-02);" in shown and 2 not in server.asked
    assert len(json.loads((to / "predictions.json").read_text())) == 11


def test_a_dry_run_sends_nothing(server, tmp_path, monkeypatch):
    monkeypatch.delenv("OPENAI_API_KEY")
    data = make_data(tmp_path / "data")
    rewrite(data, 2, audio="gone.wav")
    line = ["evaluate", str(CONFIG), "--endpoint", "a-model", "--data", str(data), "--dry-run"]
    answer = CliRunner().invoke(cli.app, line)
    assert answer.exit_code == 0, answer.output
    text = " ".join(answer.output.split())
    assert "12 questions to a-model, nothing sent: 2 s of audio, 0.1 MB of requests, 1 " in text
    assert server.requests == []
    model, questions = endpoint(data)
    found = model.dry_run(questions[:2])
    model.answers(questions[:2])
    sizes = [len(json.dumps(body)) for _, _, body in server.requests]
    assert found.request_bytes == sum(sizes) and found.seconds == pytest.approx(0.4)


def asks(url, data, to):
    os.environ |= {"OPENAI_BASE_URL": url, "OPENAI_API_KEY": KEY, "NO_PROXY": "127.0.0.1"}
    evaluate.evaluate(given(Path(data), Path(to)))


def test_a_killed_evaluation_goes_on_where_it_was(server, tmp_path):
    data, to = make_data(tmp_path / "data"), tmp_path / "out"
    reached, killed = threading.Event(), threading.Event()

    def stalls(_):
        reached.set()
        killed.wait(60)
        return DOG

    server.replies = {5: [stalls]}
    process = forkserver().Process(target=asks, args=(server.url, str(data), str(to)))
    process.start()
    assert reached.wait(120)
    process.kill()
    process.join()
    killed.set()
    assert server.asked == [0, 1, 2, 3, 4, 5]
    evaluate.evaluate(given(data, to))
    assert server.asked[6:] == [5, 6, 7, 8, 9, 10, 11]
    assert len(rows_of(to / "questions.jsonl")) == 12


def ranked(rank, world, url, data, to):
    asks(url, data, to)
    # Another rank's lock may be there still, or on its way out under another name.
    names = [path.name for path in Path(to).iterdir()]
    return sorted(name for name in names if not name.startswith("lock.json"))


def test_two_processes_ask_every_question_once(server, tmp_path):
    data, to = make_data(tmp_path / "data", count=11), tmp_path / "out"
    first, second = run_ranks(ranked, 2, server.url, str(data), str(to))
    assert sorted(server.asked) == list(range(11))
    assert "table.md" in first and first == second
    assert [row["id"] for row in rows_of(to / "questions.jsonl")] == [
        f"id-{n:02d}" for n in range(11)
    ]
    assert all(row["strict"] for row in rows_of(to / "questions.jsonl"))


def fails_on_one_rank(rank, world, url, data, to):
    with pytest.raises(EndpointError, match="401"):
        asks(url, data, to)
    return True


def test_an_error_of_one_process_ends_all_and_keeps_the_others_answers(server, tmp_path):
    data, to = make_data(tmp_path / "data"), tmp_path / "out"
    server.replies = {7: [fails(401)]}  # the second of the second rank
    assert run_ranks(fails_on_one_rank, 2, server.url, str(data), str(to)) == [True] * 2
    assert sorted(row["id"] for row in rows_of(to / "answers.jsonl")) == [
        f"id-{n:02d}" for n in range(7)
    ]


# ---- a model of our own --------------------------------------------------------------------------


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    """Where hashes of weights are remembered."""
    monkeypatch.setenv("ADRPO_CACHE", str(tmp_path / "cache"))


HEARS = ["max_new_tokens=8", "domain.chat.max_prompt_tokens=120", "engine.dtype=float32", "batch=3"]


def small_data(folder):
    """Clips of different length, one of them missing."""
    data = make_data(folder, count=5)
    for n, seconds in enumerate([0.3, 0.12, 0.5, 0.2]):
        save_clip(data / f"{n}.wav", seconds, n)
        rewrite(data, n, audio=f"{n}.wav")
    rewrite(data, 4, audio="gone.wav")
    return data


def of_model(model, data, to, *more):
    return evaluate.EvaluateOptions(
        CONFIG, model=str(model), data=data, to=to, overrides=[*HEARS, "variant=answer", *more]
    )


def answers_in(to):
    return {row["id"]: row["prediction"] for row in rows_of(to / "questions.jsonl")}


def test_a_model_answers_greedily_whatever_the_batch(tmp_path, capsys):
    model, data = save_thinker(tmp_path / "model"), small_data(tmp_path / "data")
    evaluate.evaluate(of_model(model, data, tmp_path / "three"))
    evaluate.evaluate(of_model(model, data, tmp_path / "one", "batch=1"))
    found = answers_in(tmp_path / "three")
    assert found == answers_in(tmp_path / "one")
    assert found.pop("id-04") is None and None not in found.values()
    assert len(set(found.values())) > 1
    assert "question id-04 is not asked" in capsys.readouterr().out
    row = rows_of(tmp_path / "one" / "eval.jsonl")[0]
    assert (row["run"], row["algorithm"], row["seed"]) == (str(model), "none", None)
    save_thinker(model, seed=1)  # another export in the same place
    with pytest.raises(RunFolderError, match="weights: "):
        evaluate.evaluate(of_model(model, data, tmp_path / "three"))


def test_a_clip_that_does_not_decode_is_no_question_of_text(tmp_path, capsys, caplog):
    """Its header is whole; what a model says without hearing is not kept, and it is asked again."""
    model, data, to = (
        save_thinker(tmp_path / "model"),
        small_data(tmp_path / "data"),
        tmp_path / "o",
    )
    whole = write_audio(data / "2.flac", seconds=0.5).read_bytes()
    cut(data / "2.flac", 0.5)
    rewrite(data, 2, audio="2.flac")
    evaluate.evaluate(of_model(model, data, to))
    found = answers_in(to)
    assert [id for id, text in found.items() if text is None] == ["id-02", "id-04"]
    assert "questions without an answer: 2 (id-02, id-04);" in capsys.readouterr().out
    assert "question id-02 has no answer: its clip was not heard" in caplog.text
    assert "id-02" not in {row["id"] for row in rows_of(to / "answers.jsonl")}
    assert any(row["cut"] for row in rows_of(to / "questions.jsonl"))  # of 8 tokens
    (data / "2.flac").write_bytes(whole)
    evaluate.evaluate(of_model(model, data, to))
    assert answers_in(to)["id-02"]


def on_ranks(rank, world, run, data, to):
    os.environ["ADRPO_CACHE"] = str(Path(to).parent / "cache")
    evaluate.evaluate(of_model(run, Path(data), Path(to)))


def test_a_runs_checkpoint_answers_the_same_on_two_processes(tmp_path, monkeypatch, capsys):
    run, data = tmp_path / "run", small_data(tmp_path / "data")
    config = audio_config(tmp_path / "model", ["iterations=1"])
    running.train(LoadedConfig("small", config, {}), running.TrainOptions(run))
    evaluate.evaluate(of_model(run, data, None))
    here = run / "mmau-000001"
    row = rows_of(here / "eval.jsonl")[0]
    assert (row["run"], row["algorithm"], row["iteration"]) == ("run", "adrpo", 1)
    assert "# MMAU test-mini, revision v05.15.25: run@1" in (here / "table.md").read_text()
    assert re.search(
        r"questions: (none|\d+) of (the )?\d+ (is|are) among the", capsys.readouterr().out
    )
    evaluate.evaluate(of_model(f"{run}@*", data, None))
    assert "4 answered already" in capsys.readouterr().out  # the same folder; one has no clip
    (judged,) = read_runs(str(here))  # as `report` takes it: the run, whose prompts are questions
    assert judged.is_trained and judged.seed == 0 and judged.weights == "raw"
    assert len(judged.by_prompt[-1]["prompts"]) == len(answers_in(here))
    run_ranks(on_ranks, 2, f"{run}@1", str(data), str(tmp_path / "two"))
    assert answers_in(tmp_path / "two") == answers_in(here)


def test_settings_of_the_evaluation_go_over_the_runs(tmp_path):
    config = MmauConfig(data="x", batch=7, domain={"evaluation": {"top_k": 5}})
    mine = local.with_settings(text_config(tmp_path / "model").sampling, config)
    assert (mine.domain.rollout_chunk, mine.domain.evaluation.top_k) == (7, 5)
    assert mine.domain.evaluation.max_new_tokens == 512


def test_models_that_do_not_hear_are_refused(tmp_path, monkeypatch):
    config = MmauConfig(data="x")
    with pytest.raises(ConfigError, match="of the domain 'flow', which hears nothing"):
        local.find_local("demo:image", config)
    with pytest.raises(ConfigError, match="'demo:text' is of type 'qwen3'"):
        local.find_local("demo:text", config)
    monkeypatch.delitem(DOMAINS.entries, "audio")
    with pytest.raises(ConfigError, match=r"no domain that hears .*--endpoint MODEL_NAME"):
        local.find_local("demo:image", config)


def test_help_has_an_example():
    answer = CliRunner().invoke(cli.app, ["evaluate", "--help"])
    assert answer.exit_code == 0 and "Example:" in answer.output


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ([], "name one of --model"),
        (["--model", "x", "--endpoint", "y"], "name one of --model"),
        (["--model", "x", "--dry-run"], "--dry-run measures the requests"),
        (["--endpoint", "y", "--set", "variants=1"], "variants: Extra inputs"),
        (["--endpoint", "y", "--set", "variant=loud"], "variant: Input should be 'answer'"),
        (["--endpoint", "y", "--data", "/nowhere"], "prepare mmau"),
    ],
)
def test_wrong_options_are_refused_first(options, expected):
    with pytest.raises((ConfigError, PromptError), match=expected):
        raise CliRunner().invoke(cli.app, ["evaluate", str(CONFIG), *options]).exception


def test_answers_survive_odd_line_breaks(tmp_path):
    odd = "a\u2028b\n\x85<answer>B</answer>"
    predictions.begin(tmp_path, {"model": "m"})
    texts = {"q": Answer(odd, is_cut=True)}
    predictions.append(tmp_path, 0, texts)
    assert predictions.merge(tmp_path) == texts == predictions.begin(tmp_path, {"model": "m"})
    # What another node has written need not be seen yet.
    more = {"r": Answer("x")}
    assert predictions.merge(tmp_path, more) == texts | more
    assert predictions.merge(tmp_path) == texts | more
