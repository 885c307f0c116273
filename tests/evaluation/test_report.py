"""`report`: errors kept apart, marks that need paired intervals, and where a number is from."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path

import pytest

from adrpo_scale.core.errors import CheckpointError, RunFolderError
from adrpo_scale.evaluation.report.comparison import comparison, marks, table_lines
from adrpo_scale.evaluation.report.evaluated import read_runs
from adrpo_scale.evaluation.report.statistics import bootstrap_interval, sampling_error, t_interval
from adrpo_scale.evaluation.report.text import HEADER, report_text, trace
from adrpo_scale.run.load import load_config
from tests.support.tiny import CONFIGS

OLD = Path(__file__).parents[1] / "golden" / "runs"
COLUMN = ("held_out", "reward")
HARD = [0.0, 4.0, -3.0, 9.0, 1.0, -7.0, 2.0, 5.0]  # what each prompt brings, whoever answers it


def made(folder, algorithm, seed, gains, *, prompts="p", weights="raw", each=True, overrides=()):
    """A run whose evaluation after iteration k + 1 exceeds the base by gains[k]."""
    folder = folder / f"{algorithm}-{seed}-{len(list(folder.iterdir()))}"
    folder.mkdir()
    config = CONFIGS / "demo" / "image_grpo.toml"
    settings = load_config(config, [f"seed={seed}", *overrides]).config.resolved()
    settings["algorithm"]["name"] = algorithm
    (folder / "config.json").write_text(json.dumps(settings))
    rows, by_prompt = [], []
    for iteration, gain in enumerate([0.0, *gains]):
        means = [hard + gain * (1 + 0.1 * place) for place, hard in enumerate(HARD)]
        of = {"iteration": iteration, "split": "held_out", "weights": weights}
        who = {"run": folder.name, "algorithm": algorithm, "seed": seed}
        rows.append({**who, **of, "metric": "reward", "value": sum(means) / 8, "n": 32})
        columns = {"reward": {"mean": means, "n": [4] * 8, "std": [2.0] * 8}}
        keys = [f"{prompts}{place}" for place in range(8)]
        by_prompt.append({**of, "prompts": keys, "metrics": columns})
    written(folder / "eval.jsonl", rows)
    if each:
        written(folder / "eval_prompts.jsonl", by_prompt)
    return str(folder)


def written(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def read(*names, weights="evaluated"):
    return [run for name in names for run in read_runs(name, weights)]


def cells_of(*names):
    return {line.label: line.cells[COLUMN] for line in table_lines(read(*names))}


def errors(text):
    """The second table: (row, name of the column) → text."""
    lines = [line.strip("| ").split(" | ") for line in text.split("\n\n")[1].splitlines()]
    return {
        (line[1], name): cell for line in lines[2:] for name, cell in zip(HEADER, line, strict=True)
    }


def test_errors_over_seeds_of_sampling_and_over_prompts_are_kept_apart(tmp_path):
    names = [made(tmp_path, "a", seed, [gain]) for seed, gain in enumerate((1.0, 2.0, 4.0))]
    cell = cells_of(*names)["a ×3"]
    values = [n.value for n in cell.numbers]
    assert cell.seed_error == pytest.approx(
        (sum((v - sum(values) / 3) ** 2 for v in values) / 2 / 3) ** 0.5
    )
    assert cell.sampling_error == pytest.approx(sampling_error([2.0] * 8, [4] * 8))
    assert cell.prompt_interval == bootstrap_interval(cell.mean_P.tolist())
    found = errors(report_text(read(*names)))
    assert found["a ×3", HEADER[3]].endswith(" (3)")
    assert found["a ×3", HEADER[5]].endswith("] (8)")
    assert found["base", HEADER[3]] == "nobody trained it"  # though three runs measured it
    assert cells_of(*names)["base"].seed_error is None
    assert errors(report_text(read(names[0])))["a ×1", HEADER[3]] == "– (1)"


def test_a_row_without_an_error_has_the_digits_of_those_beside_it(tmp_path):
    names = [made(tmp_path, "a", seed, [gain]) for seed, gain in enumerate((1.0, 1.02))]
    base, trained = (line[1] for line in comparison(read(*names))[1:])
    assert (base, trained) == ("1.375", "**2.739 ± 0.014**")  # half of 1.35 · 0.02 is the error


def test_the_mean_of_the_last_three_evaluations_is_that_of_each_prompt_too(tmp_path):
    name = made(tmp_path, "a", 0, [9.0, 1.0, 2.0, 3.0])
    (number,) = cells_of(name)["a ×1"].numbers
    assert number.iterations == (2, 3, 4)
    assert number.mean_P == pytest.approx([h + 2 * (1 + 0.1 * k) for k, h in enumerate(HARD)])
    assert number.value == pytest.approx(sum(number.mean_P) / 8)


def test_a_best_row_needs_paired_intervals_without_zero_over_seeds_and_over_prompts(tmp_path):
    """b gains .5 over a with every seed, though the seeds differ by more than that."""
    a = [made(tmp_path, "a", seed, [gain]) for seed, gain in enumerate((1.0, 3.0, 5.0))]
    b = [made(tmp_path, "b", seed, [gain]) for seed, gain in enumerate((1.5, 3.6, 5.4))]
    lines = table_lines(read(*a, *b))
    labels = [line.label for line in lines]
    assert labels == ["base", "a ×3", "b ×3"]
    assert marks(lines, COLUMN) == {2: "best"}  # a is above the base by 1 to 5: its interval has 0
    gaps = [1.35 * gap for gap in (0.5, 0.6, 0.4)]  # 1.35: the mean of a prompt's factor
    expected = t_interval(gaps)
    text = errors(report_text(read(*a, *b)))["b ×3", HEADER[6]]
    assert f"[{expected.low:.2f}, {expected.high:.2f}] over 3 seeds" in text
    assert text.startswith("0.68 (") and text.endswith(" to a ×3") and "over prompts" in text
    other = [made(tmp_path, "b", seed, [gain]) for seed, gain in enumerate((3.5, 2.9, 5.5))]
    assert marks(table_lines(read(*a, *other)), COLUMN) == {}  # not with every seed
    alone = table_lines(read(a[0], b[0]))
    assert marks(alone, COLUMN) == {2: "best", 1: "second"}  # one seed: over prompts alone
    one, other = (cell.mean for cell in list(cells_of(a[0], b[0]).values())[1:])
    assert [line[1] for line in comparison(read(a[0], b[0]))[2:]] == [
        f"*{one:.2f}*",
        f"**{other:.2f}**",
    ]


def test_without_anything_to_pair_nothing_is_marked(tmp_path):
    one = made(tmp_path, "a", 0, [1.0], each=False)
    other = made(tmp_path, "b", 0, [9.0], each=False)
    assert marks(table_lines(read(one, other)), COLUMN) == {}
    text = report_text(read(one, other))
    assert "nothing to pair" in text and "prompts of held_out: not recorded for base, a ×1" in text
    elsewhere = made(tmp_path, "b", 0, [9.0], prompts="q")
    text = report_text(read(made(tmp_path, "a", 0, [1.0]), elsewhere))
    assert "rows of different prompts are not compared prompt by prompt" in text
    assert text.count("8 prompts, set ") == 2


def test_what_is_no_goal_has_no_best_row(tmp_path):
    names = [made(tmp_path, "a", 0, [1.0]), made(tmp_path, "b", 0, [2.0])]
    for name in names:
        for file in ("eval.jsonl", "eval_prompts.jsonl"):
            path = Path(name) / file
            path.write_text(path.read_text().replace('"reward"', '"kl"'))
    lines = table_lines(read(*names))
    assert ("held_out", "kl") in lines[0].cells and marks(lines, ("held_out", "kl")) == {}


def test_seeds_that_are_missing_or_there_twice_are_named(tmp_path):
    a = [made(tmp_path, "a", seed, [1.0]) for seed in (0, 1, 2, 2)]
    b = [made(tmp_path, "b", seed, [1.0]) for seed in (0, 2)]
    text = report_text(read(*a, *b))
    assert "* unequal seeds: b ×2 has 0, 2 and lacks 1" in text
    assert f"* seed 2 of a ×3 is there twice: {Path(a[3]).name} is left out" in text
    assert "over 2 seeds" in errors(text)["a ×3", HEADER[6]]  # those that both have


def test_a_name_says_which_evaluation(tmp_path):
    name = made(tmp_path, "a", 0, [3.0, 1.0, 2.0, 2.5])
    value = {k: 1.375 + 1.35 * gain for k, gain in enumerate((3.0, 1.0, 2.0, 2.5), 1)}
    for which, iteration in {"@last": 4, "@best": 1, "@2": 2}.items():
        (number,) = next(c for k, c in cells_of(name + which).items() if k != "base").numbers
        assert (number.iterations, number.value) == ((iteration,), pytest.approx(value[iteration]))
    labels = [line.label for line in table_lines(read(name + "@*"))]
    assert labels == ["base", "a ×1 @1", "a ×1 @2", "a ×1 @3", "a ×1 @4"]
    with pytest.raises(RunFolderError, match="evaluated iterations: 1, 2, 3, 4"):
        read(name + "@7")
    with pytest.raises(CheckpointError, match="expected RUN@iteration"):
        read(name + "@newest")


def test_weights_that_were_not_evaluated_are_refused_and_a_change_is_not_averaged(tmp_path):
    name = made(tmp_path, "a", 0, [3.0, 1.0, 2.0], weights="ema")
    rows = [json.loads(line) for line in (Path(name) / "eval.jsonl").read_text().splitlines()]
    rows[1]["weights"] = "raw"  # the setting was changed after iteration 1
    written(Path(name) / "eval.jsonl", rows)
    of = {w: cells_of_weights(name, w) for w in ("evaluated", "ema", "raw")}
    assert of == {"evaluated": (2, 3), "ema": (2, 3), "raw": (1,)}
    with pytest.raises(RunFolderError, match="has evaluated ema weights alone"):
        read(made(tmp_path, "b", 0, [1.0], weights="ema"), weights="raw")


def cells_of_weights(name, weights):
    (number,) = table_lines(read(name, weights=weights))[1].cells[COLUMN].numbers
    return number.iterations


def test_each_cell_is_traced_to_runs_iterations_and_weights(tmp_path):
    names = [made(tmp_path, "a", seed, [1.0, 2.0], weights="ema") for seed in (0, 1)]
    rows = list(csv.DictReader(io.StringIO(trace(read(*names)))))
    assert [(row["row"], row["seed"]) for row in rows] == [
        *[("base", "0"), ("base", "1")],
        *[("a ×2", "0"), ("a ×2", "1")],
    ]
    assert {(r["iterations"], r["weights"]) for r in rows[2:]} == {("1 2", "ema")}
    assert rows[3]["folder"] == names[1] and rows[3]["run"] == Path(names[1]).name
    assert rows[0]["row training-seed s.e."] == "" != rows[2]["row training-seed s.e."]
    assert trace(read(*names)) == trace(read(*names)) and report_text(read(*names)) == report_text(
        read(*names)
    )


def test_measured_overlap_stands_under_the_table(tmp_path):
    name = made(tmp_path, "a", 0, [1.0])
    stated = {"overlap": {"trained": 100, "tested": 8, "shared": 3}}
    (Path(name) / "prompt_sets.json").write_text(json.dumps(stated))
    text = report_text(read(name))
    assert f"* 3 of 8 held-out prompts are among the 100 trained on ({Path(name).name})" in text


@pytest.mark.parametrize("name", sorted(path.name for path in OLD.iterdir()))
def test_a_folder_of_before_reports(name):
    text = report_text(read(str(OLD / name)))
    assert "| base |" in text and "not recorded for base" in text and "raw weights" in text


# ---- benchmark -----------------------------------------------------------------------------------


def judged(folder, name, right, **identity):
    """What `evaluate` leaves of 40 questions, of which `right` are answered rightly."""
    folder.mkdir(parents=True)
    who = {"run": name, "algorithm": "none", "seed": None, "iteration": 0} | identity
    (folder / "evaluation.json").write_text(json.dumps({"benchmark": "v1", **who}))
    lines = [{"id": f"q{k}", "task": "sound", "strict": k in right} for k in range(40)]
    written(folder / "questions.jsonl", lines)
    value = {"value": len(right) / 40, "n": 40, "metric": "strict"}
    written(
        folder / "eval.jsonl", [{**who, **value, "split": f"mmau:{s}"} for s in ("sound", "total")]
    )
    return str(folder)


def test_two_models_are_compared_question_by_question(tmp_path):
    """One alone gets 12 questions right, the other alone 1: p = 14 · 2 / 2^13."""
    best = judged(tmp_path / "one", "one", {*range(30)})
    other = judged(tmp_path / "two", "two", {*range(18), 39})
    text = report_text(read(best, other))
    assert "| none ×1, run = one | **75.0** | **75.0** |" in text
    assert "| none ×1, run = two | 47.5 | 47.5 |" in text
    gap = errors(text)["none ×1, run = one", HEADER[6]]
    assert "p = 0.0034" in gap and gap.startswith("27.5 ([")
    assert "nobody trained it" in text and "over seeds" not in gap
    assert "prompts of mmau:total: 40 prompts, set " in text
    close = judged(tmp_path / "three", "three", {*range(16), *range(30, 40)})
    assert "**" not in report_text(read(close, best)).split("\n\n")[0]


def test_a_trained_run_is_judged_with_its_seeds(tmp_path):
    folders = []
    for seed, right in enumerate((20, 22, 27)):
        run = Path(made(tmp_path, "a", seed, [1.0]))
        who = {"algorithm": "a", "seed": seed, "iteration": 60}
        folders.append(judged(run / "mmau-000060", run.name, {*range(right)}, **who))
    published = judged(tmp_path / "model", "model", {*range(10)})
    (cell, other) = (
        line.cells["mmau:total", "strict"] for line in table_lines(read(*folders, published))
    )
    assert cell.is_trained and [n.run.seed for n in cell.numbers] == [0, 1, 2]
    assert cell.seed_error > 0 and other.seed_error is None
    assert {n.iterations for n in cell.numbers} == {(60,)}
