"""The ranks of one machine meet where no other machine reaches them.

torch's store of addresses has no password and listens on every interface, and gloo's connections
on that of the host's name. Where all ranks run on one machine, both stay on its loopback here.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Mapping
from contextlib import suppress
from datetime import timedelta

import torch.distributed as td

from adrpo_scale.core.rank_facts import RankFacts

LOOPBACK = "127.0.0.1"
_INTERFACES = ("lo", "lo0")  # of Linux and macOS
_VARIABLE = "GLOO_SOCKET_IFNAME"


def on_one_machine(facts: RankFacts, host: str, env: Mapping[str, str] = os.environ) -> bool:
    """Whether all ranks are known to run on this machine. host: that of rank 0."""
    if host in ("localhost", "::1") or host.startswith("127."):
        return True
    is_stated = facts.launcher == "srun" or "LOCAL_WORLD_SIZE" in env
    return is_stated and facts.local_world == facts.world


def keep_gloo_inside() -> None:
    """Lets gloo connect over the loopback alone, unless the user has named an interface."""
    with suppress(OSError):
        there = {name for _, name in socket.if_nameindex()}
        own = next((name for name in _INTERFACES if name in there), None)
        if own is not None:
            os.environ.setdefault(_VARIABLE, own)


def loopback_store(port: int, opens: bool, timeout: timedelta) -> td.TCPStore:
    """The store at this port of the loopback; opens: whether this process opens it, or connects to
    it. Raises td.DistError where that fails."""
    if not opens:
        return td.TCPStore(LOOPBACK, port, None, False, timeout, wait_for_workers=False)
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as own:
        own.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            own.bind((LOOPBACK, port))
            own.listen(4096)
        except OSError as error:
            raise td.DistNetworkError(f"{LOOPBACK}:{port} cannot be opened: {error}") from error
        own.set_inheritable(False)
        return td.TCPStore(
            LOOPBACK,
            port,
            None,
            True,
            timeout,
            wait_for_workers=False,
            master_listen_fd=own.detach(),
        )
