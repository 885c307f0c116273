"""Jobs that judge models and prepare data."""

from __future__ import annotations

import json
import threading

import pytest

from tests.slurm.jobs import Job
from tests.support.mmau import DOG, KEY, Server, make_data
from tests.support.sounds import avqa_row, write_audio, write_rows

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]
COUNT = 60  # questions; those of the first start take PAUSE each, so that a signal comes in between
PAUSE = 2.0
PATIENCE = 600.0


@pytest.fixture
def slow_server():
    """(a server, an event from which on it answers at once)."""
    server, may_hurry = Server(), threading.Event()

    def slowly(_):
        may_hurry.wait(PAUSE)
        return DOG

    server.replies = {number: [slowly] for number in range(COUNT)}
    yield server, may_hurry
    may_hurry.set()
    server.http.shutdown()
    server.http.server_close()


def test_an_evaluation_on_two_nodes_is_requeued_and_gives_the_table(cluster, tmp_path, slow_server):
    server, may_hurry = slow_server
    data, to = make_data(tmp_path / "data", COUNT), tmp_path / "out"
    arguments = ["configs/omni/mmau.toml", "--endpoint", "a-model", "--data", str(data)]
    arguments += ["--to", str(to), "--set", "endpoint.at_once=1"]
    env = {"OPENAI_BASE_URL": server.url, "OPENAI_API_KEY": KEY, "NO_PROXY": "127.0.0.1"}
    options = ["--nodes=2", "--gpus-per-node=0"]
    script = "slurm/evaluate.sbatch"
    job = Job(cluster, tmp_path, options, arguments, script, ADRPO_PROCESSES="1", **env)
    job.wait("a question of each node", lambda: {0, COUNT // 2} <= {*server.asked}, PATIENCE)
    job.usr1()
    job.wait("the requeue", lambda: job.restarts == 1, PATIENCE)
    first = len(server.asked)
    may_hurry.set()
    assert job.wait_end(PATIENCE) == "COMPLETED", job.log
    assert 2 <= first < COUNT and sorted(server.asked) == [*range(COUNT)]  # each asked once
    assert "| strict: the option inside `<answer>` | 100.00 |" in (to / "table.md").read_text()
    assert len((to / "questions.jsonl").read_text().splitlines()) == COUNT
    assert "code 85, asked to stop, or a rank hung: requeue" in job.log
    assert job.log.count("fit, in") == 2 and KEY not in job.log


def test_an_evaluation_that_cannot_be_carried_out_is_not_requeued(cluster, tmp_path):
    arguments = ["configs/omni/mmau.toml", "--endpoint", "x", "--data", str(tmp_path / "none")]
    options = ["--nodes=1", "--gpus-per-node=0"]
    script = "slurm/evaluate.sbatch"
    job = Job(cluster, tmp_path, options, arguments, script, ADRPO_PROCESSES="1")
    assert job.wait_end(PATIENCE) == "FAILED"
    assert "prepare mmau" in job.log and "== code 2: not requeued" in job.log
    assert job.restarts == 0


def test_data_is_prepared_on_a_cpu_node(cluster, tmp_path):
    write_audio(tmp_path / "wavs/v0.wav", 200, 1.0, 24000)
    rows = write_rows(tmp_path / "train_qa.json", [avqa_row(1, "v0")])
    arguments = ["avqa", "--audio", str(tmp_path / "wavs"), "--rows", str(rows)]
    arguments += ["--to", str(tmp_path / "avqa"), "--workers", "1"]
    job = Job(cluster, tmp_path, ["--gpus-per-node=0"], arguments, "slurm/prepare.sbatch")
    assert job.wait_end(PATIENCE) == "COMPLETED", job.log
    assert job.log.rstrip().endswith("== done") and "x 1 processes: prepare avqa" in job.log
    assert json.loads((tmp_path / "avqa/train.jsonl").read_text())["answer"] == "motorboat"
