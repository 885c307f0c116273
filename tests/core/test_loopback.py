"""Ranks of one machine meet where no other machine reaches them."""

from __future__ import annotations

import errno
import os
import socket
from datetime import timedelta

import pytest
import torch
import torch.distributed as td

from adrpo_scale.core import dist
from adrpo_scale.core.loopback import LOOPBACK, keep_gloo_inside, loopback_store, on_one_machine
from adrpo_scale.core.rank_facts import RankFacts
from tests.support.ranks import run_ranks

SECONDS = timedelta(seconds=30)


def free_port():
    with socket.create_server((LOOPBACK, 0)) as own:
        return own.getsockname()[1]


def listening(port):
    """Addresses on which somebody listens at this port, as the kernel writes them."""
    found = set()
    for table in ("tcp", "tcp6"):
        with open(f"/proc/net/{table}") as file:
            for line in file.read().splitlines()[1:]:
                _, local, _, state, *_ = line.split()
                address, own = local.split(":")
                if int(own, 16) == port and state == "0A":
                    found.add(address)
    return found


def test_the_store_of_one_machine_listens_on_its_loopback_alone():
    port = free_port()
    store = loopback_store(port, True, SECONDS)
    assert listening(port) == {"0100007F"}
    other = loopback_store(port, False, SECONDS)
    other.set("a", "b")
    assert store.get("a") == b"b"
    with pytest.raises(td.DistError, match=os.strerror(errno.EADDRINUSE)):
        loopback_store(port, True, SECONDS)


def test_where_all_ranks_are_on_one_machine():
    one, node = RankFacts(1, 4, 1, 4, "node.sh"), RankFacts(1, 4, 1, 2, "node.sh")
    stated = {"LOCAL_WORLD_SIZE": "4"}
    for host in ("localhost", "127.0.0.1", "127.0.1.1", "::1"):
        assert on_one_machine(node, host, {})
    assert on_one_machine(one, "node-3", stated)
    assert on_one_machine(RankFacts(1, 4, 1, 4, "srun"), "node-3", {})
    assert not on_one_machine(one, "node-3", {})  # nobody has stated how many there are of it
    assert not on_one_machine(node, "node-3", {"LOCAL_WORLD_SIZE": "2"})


def test_the_users_interface_is_kept(monkeypatch):
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "eth7")
    keep_gloo_inside()
    assert os.environ["GLOO_SOCKET_IFNAME"] == "eth7"
    monkeypatch.delenv("GLOO_SOCKET_IFNAME")
    keep_gloo_inside()
    assert os.environ.get("GLOO_SOCKET_IFNAME") in ("lo", "lo0", None)


def own_listeners():
    """Addresses on which this process listens."""
    inodes = set()
    for name in os.listdir("/proc/self/fd"):
        try:
            inodes.add(os.readlink(f"/proc/self/fd/{name}"))
        except OSError:
            continue
    found = set()
    for table in ("tcp", "tcp6"):
        with open(f"/proc/net/{table}") as file:
            for line in file.read().splitlines()[1:]:
                fields = line.split()
                if fields[3] == "0A" and f"socket:[{fields[9]}]" in inodes:
                    found.add(fields[1].split(":")[0])
    return found


def trains_twice(rank, world, port):
    """Two groups, one after the other, without a launcher's store, under the host's own name."""
    for name in ("TORCHELASTIC_USE_AGENT_STORE", "GLOO_SOCKET_IFNAME"):
        os.environ.pop(name, None)
    td.barrier()
    td.destroy_process_group()
    os.environ |= {"MASTER_ADDR": socket.gethostname(), "MASTER_PORT": str(port)}
    found = []
    for _ in range(2):
        with dist.process_group("cpu", 30):
            own = dist.new_group(30)
            found.append(int(dist.all_sum(torch.tensor(rank + 1))))
            found.append(dist.gather_objects(rank, own))
            listeners = own_listeners()
    td.init_process_group("gloo", store=td.HashStore(), rank=0, world_size=1)  # for the harness
    return found, sorted(listeners)


def test_ranks_of_one_machine_open_no_port_to_others():
    results = run_ranks(trains_twice, 2, free_port())
    assert [found for found, _ in results] == [[3, [0, 1]] * 2] * 2
    assert results[0][1] == ["0100007F"] and set(results[1][1]) <= {"0100007F"}
