"""Answers of earlier starts, read as a kill or an editor has left them."""

from __future__ import annotations

import pytest

from adrpo_scale.core.chat_endpoint import Answer
from adrpo_scale.core.errors import PromptError, RunFolderError
from adrpo_scale.core.folder_lock import RunLock
from adrpo_scale.evaluation.mmau.base import RECORD, Question, load_benchmark
from adrpo_scale.evaluation.mmau.evaluate import _ask
from adrpo_scale.evaluation.mmau.predictions import ANSWERS, IDENTITY, append, begin, merge
from tests.core.test_json_files import ODD

NO_ANSWER = {
    "no prediction": b'{"id": "a"}',
    "no id": b'{"prediction": "x"}',
    "id as list": b'{"id": ["a"], "prediction": "x"}',
    "null": b'{"id": "a", "prediction": null}',
    "cut as text": b'{"id": "a", "prediction": "x", "cut": "yes"}',
}


@pytest.mark.parametrize("line", {**ODD, **NO_ANSWER}.values(), ids={**ODD, **NO_ANSWER})
def test_a_bad_line_is_a_question_that_is_asked_again(tmp_path, line):
    whole = b'{"id": "b", "prediction": "y\xe2\x80\xa8z"}\n'
    (tmp_path / ANSWERS).write_bytes(line + b"\n" + whole)
    append(tmp_path, 3, {"c": Answer("later", is_cut=True)})
    assert merge(tmp_path) == {"b": Answer("y\u2028z"), "c": Answer("later", is_cut=True)}
    assert merge(tmp_path) == {"b": Answer("y\u2028z"), "c": Answer("later", is_cut=True)}


@pytest.mark.parametrize("content", ODD.values(), ids=ODD)
def test_an_identity_or_a_record_that_cannot_be_read_is_one_message(tmp_path, content):
    """Answers of an unknown model must not be taken for those of this one."""
    (tmp_path / IDENTITY).write_bytes(content)
    with pytest.raises(RunFolderError, match="choose another --to"):
        begin(tmp_path, {"model": "a"})
    (tmp_path / RECORD).write_bytes(content)
    with pytest.raises(PromptError, match="cannot be read"):
        load_benchmark(tmp_path, "answer")


def test_an_evaluation_that_has_lost_its_folder_writes_no_answer(tmp_path):
    class Model:
        def answers(self, questions):
            return [Answer("a") for _ in questions]

    question = Question("a", (), "", "sound", "", "", None, {})
    lock = RunLock(tmp_path)
    with lock:
        (tmp_path / "lock.json").write_text("{}")
        with pytest.raises(RunFolderError, match="taken over"):
            next(_ask(Model(), [question], 1, tmp_path, {}, lock.check))
    assert list(tmp_path.glob("answers*")) == []
