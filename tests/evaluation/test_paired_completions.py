"""Completions of two rows side by side."""

from __future__ import annotations

from adrpo_scale.evaluation.report.paired_completions import paired_completions
from tests.support.judged import lines


def row(folder, texts, scores):
    """texts: by (set, prompt, seed, sample), numbered in their order. scores: by number."""
    manifest, completions = [], []
    for number, ((name, prompt, seed, sample), text) in enumerate(texts.items()):
        own = {"id": number, "prompt": prompt, "seed": seed, "sample": sample}
        manifest.append({**own, "set": name, "prompt_id": 0, "category": "maths"})
        completions.append({**own, "text": text, "finished": number != 1, "length": number + 2})
    lines(folder / "manifest.jsonl", manifest)
    lines(folder / "completions.jsonl", completions)
    lines(folder / "scores" / "judge.jsonl", [{"id": k, "score": v} for k, v in scores.items()])
    return folder


def test_two_completions_share_their_prompt_and_noise(tmp_path):
    one = row(
        tmp_path / "one",
        {("a", "p", 0, 0): "one", ("a", "p", 1, 0): "two", ("b", "p", 0, 0): "three"},
        {0: 2.0, 1: None, 2: 1.0},
    )
    other = row(
        tmp_path / "other",
        {("b", "p", 0, 0): "III", ("a", "p", 1, 0): "II", ("a", "p", 0, 0): "I"},
        {0: 0.25, 1: 0.5, 2: 0.5},
    )
    pairs = paired_completions(one, other)
    assert [(p.asked.set, p.noise.seed, p.one.text, p.other.text) for p in pairs] == [
        ("a", 0, "one", "I"),
        ("a", 1, "two", "II"),
        ("b", 0, "three", "III"),
    ]
    assert [pair.gap("judge") for pair in pairs] == [1.5, None, 0.75]
    assert pairs[0].gap("nobody") is None and pairs[0].asked.category == "maths"
    assert [(p.one.finished, p.one.length) for p in pairs] == [(True, 2), (False, 3), (True, 4)]
    assert [p.asked.set for p in paired_completions(one, other, set="b")] == ["b"]
    assert paired_completions(one, other, prompt="q") == []


def test_a_sample_that_one_row_lacks_is_in_no_pair(tmp_path):
    one = row(tmp_path / "one", {("a", "p", 0, 0): "x", ("a", "q", 0, 0): "y"}, {})
    other = row(tmp_path / "other", {("a", "q", 0, 0): "z"}, {})
    (pair,) = paired_completions(one, other)
    assert (pair.asked.prompt, pair.one.text, pair.other.text) == ("q", "y", "z")
    assert paired_completions(one, tmp_path) == []
