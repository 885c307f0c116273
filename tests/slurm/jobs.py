"""Jobs on the virtual cluster: submitted as a user does it, and watched from outside."""

from __future__ import annotations

import copy
import json
import os
import re
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from tests.slurm.cluster import Cluster
from tests.support.starts import TINY, committed_iterations, records_of
from tests.support.tiny import CONFIGS

ROOT = CONFIGS.parent
CONFIG = "configs/demo/image_adrpo.toml"
PACED = [  # a run whose iterations take as long as PAUSE says, and a checkpoint of each
    *TINY,
    'rewards=[{kind="function", path="tests.slurm.rewards:bright"}]',
    "checkpoint.every_iterations=1",
    "checkpoint.keep_last=3",
    "engine.timeout_seconds=90",
]


class Job:
    """A submitted job. folder: for its log and its run."""

    def __init__(
        self,
        cluster: Cluster,
        folder: Path,
        options: Sequence[str],
        arguments: Sequence[str],
        script: str = "slurm/train.sbatch",
        **env: str,
    ) -> None:
        self.cluster, self.folder = cluster, folder
        folder.mkdir(parents=True, exist_ok=True)
        self.run = folder / "run"
        self.log_file = folder / "log.txt"
        env = {
            "ADRPO_PYTHON": sys.executable,
            "ADRPO_CACHE": str(folder / "cache"),
            "ADRPO_RUNS": str(folder / "runs"),
            "ADRPO_PATIENCE": "15",
            "OMP_NUM_THREADS": "1",
            **env,
        }
        options = ["--gpus-per-node=1", f"--output={self.log_file}", *options]
        self.id = cluster.sbatch(*options, script, *arguments, cwd=ROOT, **env)

    def element(self, number: int, run: Path) -> Job:
        """One element of an array, whose run is in `run`."""
        job = copy.copy(self)
        job.id, job.run = f"{self.id}_{number}", run
        return job

    @property
    def log(self) -> str:
        return self.log_file.read_text() if self.log_file.exists() else ""

    @property
    def state(self) -> str:
        return self.cluster.state(self.id)

    @property
    def restarts(self) -> int:
        return int(self.cluster.facts(self.id)["Restarts"])

    def nodes(self) -> list[str]:
        """Where it runs, or ran last."""
        listed = self.cluster.facts(self.id)["NodeList"]
        return self.cluster.run("scontrol", "show", "hostnames", listed).stdout.split()

    def metrics(self) -> list[dict[str, object]]:
        file = self.run / "metrics.jsonl"
        lines = file.read_text().splitlines(keepends=True) if file.exists() else []
        return [json.loads(line) for line in lines if line.endswith("\n")]

    def wait(self, what: str, is_so: Callable[[], object], seconds: float = 120) -> None:
        """Waits until `is_so()`; fails with the log if it does not come about."""
        end = time.monotonic() + seconds
        while not is_so():
            if time.monotonic() > end:
                raise AssertionError(
                    f"job {self.id}: {what} did not happen in {seconds:.0f} s; state {self.state}, "
                    f"log:\n{self.log}"
                )
            time.sleep(0.1)

    def wait_iteration(self, number: int, seconds: float = 120) -> None:
        """Until iteration `number` has been written down and its checkpoint committed."""

        def is_there() -> bool:
            return bool(self.metrics()) and max([*committed_iterations(self.run), 0]) >= number

        self.wait(f"iteration {number}", is_there, seconds)

    def wait_start(self, number: int, seconds: float = 120) -> None:
        self.wait(f"start {number}", lambda: len(records_of(self.run)) >= number, seconds)

    def wait_end(self, seconds: float = 150) -> str:
        """Until Slurm is done with the job, whatever the end; its state."""
        ends = ("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL", "PREEMPTED")
        self.wait("its end", lambda: self.state in ends, seconds)
        return self.state

    def usr1(self) -> None:
        """What `--signal=B:USR1@...` sends before the time limit."""
        self.cluster.run("scancel", "--batch", "--signal=USR1", self.id)

    def pid(self, rank: int) -> int:
        """Process id, on this machine, of a rank of this job."""
        conf = f"SLURM_CONF={self.cluster.env['SLURM_CONF']}"  # there may be two clusters
        wanted = {f"RANK={rank}", f"SLURM_JOB_ID={self.id}", conf}
        for folder in Path("/proc").iterdir():
            if not folder.name.isdecimal() or int(folder.name) == os.getpid():
                continue
            try:
                variables = (folder / "environ").read_text().split("\0")
                command = (folder / "cmdline").read_text()
            except OSError:
                continue  # it has ended
            if wanted <= set(variables) and "adrpo_scale" in command and "node.sh" not in command:
                return int(folder.name)
        raise AssertionError(f"no process of rank {rank} of job {self.id}")

    def starts(self) -> list[dict[str, object]]:
        return records_of(self.run)

    def restart_lines(self) -> list[str]:
        return re.findall(r"^== job \S+, restart \d+", self.log, re.M)


def train(run: Path, overrides: Sequence[str] = (), *flags: str) -> list[str]:
    """Arguments of the script for a PACED run in `run`."""
    sets = [part for override in [*PACED, *overrides] for part in ("--set", override)]
    return [CONFIG, "--run-dir", str(run), *sets, *flags]
