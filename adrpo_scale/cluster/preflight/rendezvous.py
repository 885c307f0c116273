"""The rendezvous of all processes of a job before any process group: it can name absent ones.

Rank 0 opens a `TCPStore`. Every process says hello; then rank 0 gives orders, one after the other,
and every process answers each. The last order is to end, with the exit code for all processes.

The store takes what anybody on the network writes. So every message carries a seal by the secret
that the launcher drew for this start of the job, and others are ignored. On one machine the store
is open to that machine alone.
"""

from __future__ import annotations

import errno
import hmac
import json
import os
import socket
import sys
import time
import traceback
from collections.abc import Callable, Iterable, Mapping
from datetime import timedelta
from typing import Any

import torch.distributed as td

from adrpo_scale.cluster.preflight.base import Place, counted, listed
from adrpo_scale.core import dist
from adrpo_scale.core.errors import NodeError, StopRequested
from adrpo_scale.core.loopback import LOOPBACK, keep_gloo_inside, loopback_store, on_one_machine

Order = Mapping[str, Any]
END = "end"
SECRET = "ADRPO_SECRET"  # a variable that the launcher draws anew for every start of the job
_SEAL = 64  # characters of a seal
_POLL_SECONDS = 0.05  # polling: the store's own waits ignore signals and print warnings
_NOTICE_SECONDS = 15.0  # waiting time after which the awaited nodes are printed
_LATE_SECONDS = 3.0  # between the starts of the first and the last process
_BUSY_SECONDS = 15.0  # for a process that is busy when rank 0 ends, e.g. with a slow folder
_INTERFACE = (
    "set NCCL_SOCKET_IFNAME and GLOO_SOCKET_IFNAME to the interface between the nodes (`ip -br "
    "addr` lists them)"
)


class Meeting:
    """One process's side of the rendezvous. seconds: how long to wait for every other process."""

    def __init__(self, store: Any, place: Place, seconds: float) -> None:
        self.store, self.place, self.seconds = store, place, seconds
        self._number = 0  # of the next order
        self._secret = os.environ.get(SECRET, "").encode()
        self._strange: set[str] = set()  # keys under which lies what no process of the job wrote
        self._begin = time.monotonic()

    # ---- rank 0 ----------------------------------------------------------------------------------

    def absent(self) -> list[int]:
        """The ranks that have not said hello in time."""
        left = self._begin + self.seconds - time.monotonic()
        here = self._collect("hello", range(self.place.world), left)
        return [rank for rank in range(self.place.world) if rank not in here]

    def ask(
        self, order: Order, obey: Callable[[Order], Any], seconds: float | None = None
    ) -> dict[int, dict[str, Any]]:
        """Gives an order, obeys it too, and returns the answers in time, by rank: `{"answer": …}`
        or `{"error": text}`, each with its arrival time `at` by this process's clock."""
        self._set(f"order/{self._number}", order)
        step = f"answer/{self._number}"
        self._number += 1
        self._set(f"{step}/{self.place.rank}", _answer(order, obey))
        return self._collect(step, range(self.place.world), seconds or self.seconds)

    def end(self, code: int) -> None:
        """Orders all processes to exit with `code`. The store ends with this process, so it waits
        until all present processes have read the order, and briefly for late ones."""
        self._set(f"order/{self._number}", {"do": END, "code": code})
        ranks = [rank for rank in range(self.place.world) if rank != self.place.rank]
        told = self._collect("bye", ranks, _LATE_SECONDS)
        here = [rank for rank in ranks if self.store.check([f"hello/{rank}"])]
        self._collect("bye", [rank for rank in here if rank not in told], _BUSY_SECONDS)

    def _collect(self, step: str, ranks: Iterable[int], seconds: float) -> dict[int, Any]:
        """The answers under `step`, by rank; ranks without one in time are left out."""
        waiting, found = list(ranks), {}
        begin, is_noticed = time.monotonic(), step == "bye"
        while True:
            # All of them at each turn: any of them may have answered in the meantime.
            for rank in waiting:
                answer = self._get(f"{step}/{rank}")
                if answer is not None:
                    found[rank] = answer | {"at": time.time()}
            waiting = [rank for rank in waiting if rank not in found]
            waited = time.monotonic() - begin
            if not waiting or waited >= seconds:
                return found
            if waited > _NOTICE_SECONDS and not is_noticed:
                is_noticed = True
                self._notice(waiting, seconds - waited)
            time.sleep(_POLL_SECONDS)

    def _notice(self, ranks: list[int], left: float) -> None:
        who = f"{counted(len(ranks), 'process')} of {self.place.world}"
        names = [self.place.name_of(rank) or f"rank {rank}" for rank in ranks]
        text = f"preflight: waiting for {who} ({listed(names)}), up to {left:.0f} s more"
        print(text, file=sys.stderr, flush=True)

    # ---- the others ------------------------------------------------------------------------------

    def hello(self) -> None:
        self._set(f"hello/{self.place.rank}", {})

    def serve(self, obey: Callable[[Order], Any]) -> int:
        """Obeys rank 0 until it ends; returns the exit code. Raises NodeError where rank 0 is
        lost."""
        while True:
            order = self._hear()
            if order["do"] == END:
                self._set(f"bye/{self.place.rank}", {})
                return int(order["code"])
            step = f"answer/{self._number}"
            self._number += 1
            self._set(f"{step}/{self.place.rank}", _answer(order, obey))

    def _hear(self) -> Order:
        # Between two orders, rank 0 may wait this long for others, and works itself.
        deadline = time.monotonic() + 2 * self.seconds + 60
        key = f"order/{self._number}"
        try:
            while time.monotonic() < deadline:
                order = self._get(key)
                if order is not None:
                    return order
                time.sleep(_POLL_SECONDS)
        except td.DistError as error:
            raise NodeError(
                f"{self._who()} lost rank 0, which ended: {_first_line(error)}"
            ) from error
        raise NodeError(
            f"{self._who()} has heard nothing of rank 0 for {2 * self.seconds + 60:g} s; look at "
            "what rank 0 printed, and whether its node still answers"
        )

    def _who(self) -> str:
        return f"{self.place.name} (rank {self.place.rank} of {self.place.world})"

    # ---- the store -------------------------------------------------------------------------------

    def _set(self, key: str, value: Any) -> None:
        text = json.dumps(value)
        self.store.set(key, self._seal(key, text) + text)

    def _get(self, key: str) -> Any:
        """The value under a key; None where there is none yet, or the job's secret has not sealed
        it."""
        if not self.store.check([key]):
            return None
        found = self.store.get(key).decode(errors="replace")
        seal, text = found[:_SEAL], found[_SEAL:]
        if hmac.compare_digest(seal.encode(), self._seal(key, text).encode()):
            return json.loads(text)
        if key not in self._strange:
            self._strange.add(key)
            print(
                f"preflight: {key} was written without this job's {SECRET} and is ignored: does "
                "every node have the same environment?",
                file=sys.stderr,
                flush=True,
            )
        return None

    def _seal(self, key: str, text: str) -> str:
        """Proof that a process of this start of the job wrote `text` under `key`."""
        names = "/".join([*_start(), key])
        return hmac.new(self._secret, f"{names}\n{text}".encode(), "sha256").hexdigest()


def _answer(order: Order, obey: Callable[[Order], Any]) -> dict[str, Any]:
    """The answer to an order; an exception becomes one, so that rank 0 can name the node at
    once."""
    try:
        return {"answer": obey(order)}
    except StopRequested:
        raise
    except Exception as error:
        return {"error": f"{type(error).__name__}: {error}", "trace": traceback.format_exc()}


def meet(place: Place, seconds: float) -> Meeting:
    """Opens the store on rank 0, or connects to it. Raises NodeError where that fails, ConfigError
    where its address is not stated."""
    if place.world == 1:
        return Meeting(td.HashStore(), place, seconds)
    if dist.rank_facts().launcher == "srun":
        dist.set_srun_rendezvous()
    host, port = dist.meeting_point(place.world)
    if on_one_machine(dist.rank_facts(), host):
        host = LOOPBACK
    opens = place.rank == 0 and not _has_store()
    if not opens:
        # Longer than rank 0 waits: it must not count this process as absent for giving up.
        _reach(place, host, port, seconds + 10)
    store = _open(place, host, port, opens)
    return Meeting(td.PrefixStore("-".join(["preflight", *_start()]), store), place, seconds)


def _has_store() -> bool:
    """Whether the launcher's own process has a store at that port already: torchrun's."""
    return os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"


def _start() -> list[str]:
    """The start of the job: an earlier one may still write."""
    return [os.environ.get(name, "") for name in _START]


_START = ("SLURM_JOB_ID", "SLURM_RESTART_COUNT", "TORCHELASTIC_RESTART_COUNT")


def _open(place: Place, host: str, port: int, opens: bool) -> Any:
    timeout = timedelta(seconds=30)
    try:
        if host == LOOPBACK:
            keep_gloo_inside()
            if opens or not _has_store():
                return loopback_store(port, opens, timeout)
        return td.TCPStore(host, port, None, opens, timeout, wait_for_workers=False)
    except (td.DistError, RuntimeError) as error:
        if not opens:
            raise NodeError(
                f"{place.name} (rank {place.rank}) reaches {host}:{port}, but what answers there "
                f"is not rank 0 ({_first_line(error)}); set another MASTER_PORT"
            ) from error
        taken = os.strerror(errno.EADDRINUSE) in str(error) or "EADDRINUSE" in str(error)
        what = "another process has the port: set another MASTER_PORT" if taken else _INTERFACE
        raise NodeError(
            f"{place.name} (rank 0) cannot open MASTER_ADDR:MASTER_PORT = {host}:{port} "
            f"({_first_line(error)}); {what}"
        ) from error


def _reach(place: Place, host: str, port: int, seconds: float) -> None:
    """Waits until the port is open. The store's own attempts print much and do not name the
    node."""
    deadline = time.monotonic() + seconds
    while True:
        try:
            socket.create_connection((host, port), timeout=5).close()
            return
        except OSError as error:
            if time.monotonic() > deadline:
                raise NodeError(_unreachable(place, host, port, seconds, error)) from error
        time.sleep(0.2)


def _unreachable(place: Place, host: str, port: int, seconds: float, error: OSError) -> str:
    """The error message; it names the faulty end as far as this process can tell."""
    if isinstance(error, socket.gaierror):
        why = (
            f"the name does not resolve here: fix it, or exclude this node: --exclude={place.name}"
        )
    elif isinstance(error, ConnectionRefusedError):
        why = "its node answers, but rank 0 has not started there: look at what rank 0 printed"
    else:
        why = f"if other nodes reach it, --exclude={place.name}; if none does, {_INTERFACE}"
    return (
        f"{place.name} (rank {place.rank} of {place.world}) cannot reach rank 0 at "
        f"MASTER_ADDR:MASTER_PORT = {host}:{port} within {seconds:g} s ({error}); {why}"
    )


def _first_line(error: Exception) -> str:
    return str(error).splitlines()[0] if str(error) else repr(error)
