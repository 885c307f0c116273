"""JSON on the disk, read as a kill, a full disk or an editor has left it."""

from __future__ import annotations

import json
import logging
import os
import sys

import pytest

from adrpo_scale.core import json_files
from adrpo_scale.core.json_files import parse, parse_object, read_lines, read_object, read_regular
from adrpo_scale.core.lock_owner import Owner, parse_owner
from adrpo_scale.core.run_rows import evaluation_rows, metric_rows

DEEP = 5000
ODD = {  # lines that are no JSON objects, or none of numbers that can be counted with
    "half": b'{"iteration": 7, "rew',
    "two in one": b'{"iteration": 7, "r{"iteration": 8}',
    "empty": b"",
    "zeros": bytes(40),
    "list": b"[1, 2]",
    "number": b"17",
    "string": b'"iteration"',
    "null": b"null",
    "deep": b"[" * DEEP + b"]" * DEEP,
    "deep object": b'{"a":' * DEEP + b"1" + b"}" * DEEP,
    "not UTF-8": b"\xff\xfe\x80",
    "long number": b"1" * 5000,
    "text": b"Traceback (most recent call last):",
}
NO_ROW = {  # objects that are rows of neither file
    "no iteration": b'{"reward": 1.0}',
    "iteration as text": b'{"iteration": "7", "split": "a", "metric": "b", "value": 1}',
    "iteration as float": b'{"iteration": 7.0, "split": "a", "metric": "b", "value": 1}',
    "iteration is true": b'{"iteration": true, "split": "a", "metric": "b", "value": 1}',
    "iteration beyond": b'{"iteration": 1' + b"0" * 400 + b', "metric": "b", "value": 1}',
    "iteration NaN": b'{"iteration": NaN, "split": "a", "metric": "b", "value": 1}',
}
NO_EVALUATION = {
    "no value": b'{"iteration": 7, "split": "a", "metric": "b"}',
    "value as text": b'{"iteration": 7, "split": "a", "metric": "b", "value": "1"}',
    "value as list": b'{"iteration": 7, "split": "a", "metric": "b", "value": [1]}',
    "no split": b'{"iteration": 7, "metric": "b", "value": 1}',
    "metric as list": b'{"iteration": 7, "split": "a", "metric": ["b"], "value": 1}',
    "half a pair": b'{"iteration": 7, "split": "a", "metric": "\\ud800", "value": 1}',
}


@pytest.fixture(autouse=True)
def nothing_told(monkeypatch):
    monkeypatch.setattr(json_files, "_told", set())


def metric(iteration, **more):
    return {"iteration": iteration, "reward": 0.1 * iteration, **more}


def evaluation(iteration, value=1.0, split="train"):
    return {"run": "r", "iteration": iteration, "split": split, "metric": "reward", "value": value}


def written(path, *rows):
    """Rows as lines; bytes are lines as they are."""
    lines = (row if isinstance(row, bytes) else json.dumps(row).encode() for row in rows)
    path.write_bytes(b"".join(line + b"\n" for line in lines))
    return path


@pytest.mark.parametrize("line", {**ODD, **NO_ROW}.values(), ids={**ODD, **NO_ROW})
def test_a_bad_line_costs_itself_and_is_said_once(tmp_path, caplog, line):
    metrics = written(tmp_path / "metrics.jsonl", metric(1), line, metric(2))
    evaluations = written(tmp_path / "eval.jsonl", line, evaluation(1), evaluation(2))
    with caplog.at_level(logging.WARNING):
        for _ in range(3):
            assert metric_rows(metrics) == [metric(1), metric(2)]
            assert evaluation_rows(evaluations) == [evaluation(1), evaluation(2)]
    assert [str(metrics) in text for text in caplog.messages] == [True, False]


@pytest.mark.parametrize("line", NO_EVALUATION.values(), ids=NO_EVALUATION)
def test_an_evaluation_needs_a_number_of_a_metric_on_a_split(tmp_path, line):
    path = written(tmp_path / "eval.jsonl", evaluation(1), line)
    assert evaluation_rows(path) == [evaluation(1)]


def test_a_last_line_without_its_end_is_left_out_in_silence(tmp_path, caplog):
    path = written(tmp_path / "metrics.jsonl", metric(1))
    path.write_bytes(path.read_bytes() + json.dumps(metric(2)).encode())
    assert metric_rows(path) == [metric(1)] and caplog.messages == []


def test_numbers_that_json_does_not_have_are_no_numbers(tmp_path):
    odd = b'{"iteration": 1, "a": NaN, "b": 1e999, "c": -Infinity, "d": ' + b"9" * 30 + b"}"
    path = written(tmp_path / "metrics.jsonl", odd)
    assert metric_rows(path) == [{"iteration": 1, "a": None, "b": None, "c": None, "d": None}]
    for text in ('{"a": NaN}', "1e999", "[-Infinity]", "9" * 5000, str(2**63)):
        parse(text)
        with pytest.raises(ValueError, match="not finite, or beyond 64 bits"):
            parse(text, strict=True)
    assert parse(str(-(2**63) + 1), strict=True) == -(2**63) + 1


def test_of_two_writers_one_row_stays_and_the_order_is_that_of_iterations(tmp_path):
    path = tmp_path / "metrics.jsonl"
    found = metric_rows(written(path, metric(6), metric(9), metric(7), metric(6, seconds=2.0)))
    assert found == [metric(6, seconds=2.0), metric(7), metric(9)]
    rows = [evaluation(0), evaluation(0, split="held_out"), evaluation(0, 2.0), evaluation(5)]
    assert evaluation_rows(written(path, *rows)) == [rows[2], rows[1], rows[3]]


def unreadable(path):
    """Names behind which there is no file that can be read to its end."""
    path.mkdir()
    os.mkfifo(path / "fifo")
    (path / "folder").mkdir()
    (path / "endless").symlink_to("/dev/zero")
    (path / "loop").symlink_to("loop")
    (path / "nowhere").symlink_to("elsewhere")
    with (path / "huge").open("wb") as file:
        file.truncate(json_files.LARGEST + 1)
    return sorted(path.iterdir())


def test_what_is_no_file_counts_as_absent_and_keeps_nobody_waiting(tmp_path, caplog):
    for path in unreadable(tmp_path / "names"):
        with pytest.raises(OSError, match=path.name):
            read_regular(path)
        for _ in range(2):
            assert read_lines(path) == [] and read_object(path) is None
    said = [text for text in caplog.messages if "counts as absent" in text]
    assert len(said) == len(set(said)) == 5  # a link to nowhere is an absent file


def test_objects_are_read_whole_or_not_at_all(tmp_path):
    path = tmp_path / "x.json"
    for line in (content for name, content in ODD.items() if name != "empty"):
        path.write_bytes(line)
        assert read_object(path) is None
        with pytest.raises(ValueError, match=r"."):
            parse_object(line)
    path.write_text('{"a": {"b": "ä\u2028"}}')
    assert read_object(path) == {"a": {"b": "ä\u2028"}}
    assert written(path, {"a": "x\u2028y"}) and read_lines(path) == [{"a": "x\u2028y"}]


def test_locks_of_any_content_name_nobody():
    for content in (*ODD.values(), b"[" * 65536, b'{"pid": 1e999, "heartbeat_seconds": NaN}'):
        assert parse_owner(content) == Owner()
    long = json.dumps({"restart_count": "1" * (sys.get_int_max_str_digits() + 1), "host": "a"})
    assert parse_owner(long.encode()) == Owner(host="a")
