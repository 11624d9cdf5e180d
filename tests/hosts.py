"""Hosts on one machine: network namespaces on a switch, which have nothing else to talk through."""

import contextlib
import os
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass


@dataclass(frozen=True)
class Host:
    address: str
    prefix: tuple[str, ...] = ()  # goes before a command that is to run there
    interface: str = "lo"


@dataclass(frozen=True)
class Network:
    outside: str  # this machine itself, as the hosts see it
    hosts: list[Host]
    is_real: bool


@contextlib.contextmanager
def network(number: int) -> Iterator[Network]:
    """So many hosts; where this machine allows no namespaces, all of them are its loopback."""
    ip = shutil.which("ip", path=f"{os.environ['PATH']}:/usr/sbin:/sbin")
    name = f"inf{os.getpid()}"
    if ip is None or not _succeeds(ip, "link", "add", "name", name, "type", "bridge"):
        yield Network("127.0.0.1", [Host("127.0.0.1")] * number, is_real=False)
        return
    # Of this process alone: two networks of the same addresses would share their routes.
    subnet = f"10.{64 + os.getpid() % 128}.{os.getpid() // 128 % 256}"
    hosts = []
    try:
        for words in (
            ["address", "add", f"{subnet}.254/24", "dev", name],
            ["link", "set", name, "up"],
        ):
            subprocess.run([ip, *words], check=True)
        for i in range(1, number + 1):
            space, address = f"{name}-{i}", f"{subnet}.{i}"
            _add_host(ip, bridge=name, space=space, address=address)
            hosts.append(Host(address, (ip, "netns", "exec", space), "eth0"))
        yield Network(f"{subnet}.254", hosts, is_real=True)
    finally:
        for i in range(1, number + 1):  # its end of the cable goes with it
            _succeeds(ip, "netns", "delete", f"{name}-{i}")
        subprocess.run([ip, "link", "delete", name], check=True)


def _add_host(ip: str, *, bridge: str, space: str, address: str) -> None:
    cable = space.replace("-", "v")
    peer = ["type", "veth", "peer", "name", "eth0", "netns", space]
    for words in (
        ["netns", "add", space],
        ["link", "add", cable, *peer],
        ["link", "set", cable, "master", bridge, "up"],
        ["-n", space, "address", "add", f"{address}/24", "dev", "eth0"],
        ["-n", space, "link", "set", "eth0", "up"],
        ["-n", space, "link", "set", "lo", "up"],
    ):
        subprocess.run([ip, *words], check=True)


def _succeeds(*command: str) -> bool:
    return subprocess.run(command, capture_output=True, check=False).returncode == 0
