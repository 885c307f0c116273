"""A real Slurm of many nodes on one machine: slurmctld, a slurmd per node, munge.

Everything lies under one folder and belongs to this process: daemons run in the foreground and are
ended by the ids that were recorded when they were started. Each node has a name, a hosts file and a
process namespace of its own, so that `hostname` is the node's, names resolve, and a SIGKILL of the
one process that holds the namespace is what pulling the plug is. Needs root and Debian's slurmctld,
slurmd, slurm-client, slurm-wlm-basic-plugins and munge (22.05).

By hand: `python -m tests.slurm.cluster /tmp/cluster` starts one and prints what to export.
"""

from __future__ import annotations

import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

PROGRAMS = ("slurmctld", "slurmd", "sbatch", "srun", "scancel", "squeue", "munged", "unshare")
GPUS = 8

SLURM_CONF = """\
ClusterName=virtual
SlurmctldHost=localhost
SlurmctldPort={port}
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
CryptoType=crypto/munge
AuthInfo=socket={root}/munge/socket,cred_expire=5
StateSaveLocation={root}/state
SlurmdSpoolDir={root}/spool/%n
SlurmctldPidFile={root}/slurmctld.pid
SlurmdPidFile={root}/%n.pid
SlurmctldLogFile={root}/slurmctld.log
SlurmdLogFile={root}/%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
MpiDefault=none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SlurmdParameters=config_overrides
GresTypes=gpu
SchedulerType=sched/backfill
SchedulerParameters=sched_interval=1,sched_min_interval=0,bf_interval=1,batch_sched_delay=0
KillWait={kill_wait}
SlurmdTimeout=5
SlurmctldTimeout=10
ReturnToService=1
MinJobAge=3600
MailProg=/bin/true
AccountingStorageType=accounting_storage/none
JobCompType=jobcomp/none
JobRequeue=1
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
"""


class Cluster:
    """root: folder for everything. kill_wait: seconds from SIGTERM to SIGKILL of an ended job."""

    def __init__(self, root: Path, nodes: int = 12, kill_wait: int = 15) -> None:
        self.root = root
        self.names = [f"a6000-{number:02d}" for number in range(1, nodes + 1)]
        self.kill_wait = kill_wait
        self.port = _free_ports(1 + nodes)  # the first: slurmctld's and the nodes' follow it
        self._daemons: dict[str, subprocess.Popen[bytes]] = {}
        self.env = os.environ | {"SLURM_CONF": str(root / "slurm.conf")}

    def __enter__(self) -> Cluster:
        try:
            self.start()
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(self, *error: object) -> None:
        self.stop()

    def start(self) -> None:
        missing = [program for program in PROGRAMS if shutil.which(program, path=_path()) is None]
        if missing:
            raise RuntimeError(
                f"{', '.join(missing)} not found: apt-get install slurmctld slurmd slurm-client "
                "slurm-wlm-basic-plugins munge"
            )
        self._write_files()
        self._spawn("munged", ["munged", "--foreground", *self._munge_options()])
        _wait_for("munge's socket", (self.root / "munge/socket").exists)
        self._spawn("slurmctld", ["slurmctld", "-D", "-i"])
        _wait_for("slurmctld", lambda: self.run("scontrol", "ping").returncode == 0)
        for name in self.names:
            self.power_on(name)
        _wait_for("the nodes", lambda: self.idle() == self.names)

    def stop(self) -> None:
        if "slurmctld" in self._daemons:
            self.run("scancel", "--full", "--user=root")
        for name in reversed(list(self._daemons)):
            daemon = self._daemons.pop(name)
            daemon.send_signal(signal.SIGKILL if name in self.names else signal.SIGTERM)
            try:
                daemon.wait(10)
            except subprocess.TimeoutExpired:
                daemon.kill()
                daemon.wait(10)

    def power_on(self, name: str, before: str = "true") -> None:
        """Starts a node's slurmd, as the first process of a namespace that dies with it.

        before: a shell command in that namespace, e.g. a mount that the other nodes do not have.
        """
        script = (
            f"mount --bind {self.root}/hosts /etc/hosts && hostname {name} && "
            f"mount -t proc proc /proc && {before} && exec slurmd -D -N {name}"
        )
        isolate = ["unshare", "--uts", "--mount", "--pid", "--fork", "--kill-child"]
        self._spawn(name, [*isolate, "--propagation", "private", "sh", "-c", script])

    def power_off(self, name: str) -> None:
        """Pulls the plug: everything on the node is gone at once."""
        daemon = self._daemons.pop(name)
        daemon.kill()
        daemon.wait(10)

    def inside(self, name: str, *command: str) -> subprocess.CompletedProcess[str]:
        """Runs a command where the node sees its files."""
        child = self.run("pgrep", "--parent", str(self._daemons[name].pid)).stdout.split()[0]
        return self.run("nsenter", f"--target={child}", "--mount", *command)

    def idle(self) -> list[str]:
        listed = self.run("sinfo", "--noheader", "--Node", "--format=%N %t", "-p", "main").stdout
        return sorted({line.split()[0] for line in listed.splitlines() if line.endswith(" idle")})

    def run(self, *command: str, **options: object) -> subprocess.CompletedProcess[str]:
        return subprocess.run(  # type: ignore[call-overload, no-any-return]
            command, env=self.env, capture_output=True, text=True, timeout=60, **options
        )

    def sbatch(self, *arguments: str, cwd: Path, **env: str) -> str:
        """Submits; returns the job id. Raises RuntimeError with sbatch's own words if refused."""
        done = subprocess.run(
            ["sbatch", "--parsable", *arguments],
            env=self.env | env,
            cwd=cwd,
            capture_output=True,
            text=True,
            timeout=60,
        )
        if done.returncode != 0:
            raise RuntimeError(done.stderr)
        return done.stdout.strip()

    def facts(self, job: str) -> dict[str, str]:
        """What `scontrol show job` says; empty for a job that Slurm has forgotten."""
        text = self.run("scontrol", "--oneliner", "show", "job", job).stdout
        return dict(word.partition("=")[::2] for word in text.split() if "=" in word)

    def state(self, job: str) -> str:
        return self.facts(job).get("JobState", "")

    def _munge_options(self) -> list[str]:
        folder = self.root / "munge"
        return [
            f"--socket={folder}/socket",
            f"--key-file={folder}/key",
            f"--pid-file={folder}/pid",
            f"--seed-file={folder}/seed",
            f"--log-file={folder}/log",
            "--num-threads=4",
        ]

    def _spawn(self, name: str, command: Sequence[str]) -> None:
        with (self.root / f"{name}.out").open("ab") as out:
            self._daemons[name] = subprocess.Popen(
                command,
                env=self.env | {"PATH": _path()},
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=out,
                start_new_session=True,  # a Ctrl-C in the tests' terminal is not for them
            )

    def _write_files(self) -> None:
        for name in ("munge", "state", "spool", "dev"):
            (self.root / name).mkdir(parents=True, exist_ok=True)
        (self.root / "munge").chmod(0o755)  # or munged refuses to let others in
        key = self.root / "munge/key"
        key.write_bytes(os.urandom(128))
        key.chmod(0o600)
        for number in range(GPUS):
            link = self.root / f"dev/nvidia{number}"
            if not link.is_symlink():
                link.symlink_to("/dev/null")  # without a device file the GPUs count as none
        nodes = []
        hosts = Path("/etc/hosts").read_text()
        for number, name in enumerate(self.names):
            address = f"127.0.1.{number + 1}"
            hosts += f"{address} {name}\n"
            nodes.append(
                f"NodeName={name} NodeHostname={name} NodeAddr={address} "
                f"Port={self.port + 1 + number} CPUs=64 RealMemory=512000 Gres=gpu:a6000:{GPUS}"
            )
        (self.root / "hosts").write_text(hosts)
        names = ",".join(self.names)
        four = ",".join(self.names[:4])
        partitions = [
            f"PartitionName=four Nodes={four} MaxTime=INFINITE PriorityTier=10 PreemptMode=OFF",
            f"PartitionName=main Nodes={names} Default=YES MaxTime=INFINITE PriorityTier=10 "
            "PreemptMode=OFF",
            *(
                f"PartitionName={name} Nodes={names} MaxTime=INFINITE PriorityTier=1 "
                f"PreemptMode={mode} GraceTime={grace}"
                for name, mode, grace in PREEMPTIBLE
            ),
        ]
        conf = SLURM_CONF.format(root=self.root, port=self.port, kill_wait=self.kill_wait)
        (self.root / "slurm.conf").write_text("\n".join([conf, *nodes, *partitions, ""]))
        gres = f"Name=gpu Type=a6000 File={self.root}/dev/nvidia[0-{GPUS - 1}]\n"
        (self.root / "gres.conf").write_text(gres)


# Partitions whose jobs give way to those of `main`: name, PreemptMode, GraceTime.
PREEMPTIBLE = (
    ("requeue0", "REQUEUE", 0),
    ("requeue30", "REQUEUE", 30),
    ("cancel0", "CANCEL", 0),
    ("cancel30", "CANCEL", 30),
)


def _free_ports(count: int) -> int:
    """The first of `count` ports in a row that nobody listens on, below those that the kernel gives
    to connections."""
    while True:
        first = random.randrange(20000, 32000 - count)
        try:
            for port in range(first, first + count):
                with socket.socket() as probe:
                    probe.bind(("", port))
        except OSError:
            continue
        return first


def _path() -> str:
    return os.environ["PATH"] + ":/usr/sbin:/sbin"  # where Debian puts daemons


def _wait_for(what: str, is_there: object, seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while not is_there():  # type: ignore[operator]
        if time.monotonic() > end:
            raise RuntimeError(f"{what} did not come up within {seconds:.0f} s")
        time.sleep(0.1)


if __name__ == "__main__":
    ends = {signal.SIGINT, signal.SIGTERM}
    with Cluster(Path(sys.argv[1])) as cluster:
        # Or they would end this process before its daemons, which inherit what is blocked earlier.
        signal.pthread_sigmask(signal.SIG_BLOCK, ends)
        print(f"export SLURM_CONF={cluster.env['SLURM_CONF']}", flush=True)
        signal.sigwait(ends)
