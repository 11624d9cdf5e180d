"""Ray nodes as `ray start` makes them, one a host, to be killed one by one.

Each is a raylet with an object store and workers of its own; the first is the head. SIGKILL of all
processes of one is what others see of a machine that lost its power.
"""

import contextlib
import os
import secrets
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from support.processes import Host, free_port, kill_session, session_processes, wait_until

_STORE_BYTES = 100 * 2**20


@dataclass
class RayNodes:
    """The first is the head; a killed one keeps its place in the list."""

    hosts: list[Host]
    port: int
    folder: Path
    env: dict[str, str]
    nodes: list[subprocess.Popen[bytes]] = field(default_factory=list)

    @property
    def address(self) -> str:
        return f"{self.hosts[0].address}:{self.port}"

    def start(
        self, *, num_cpus: int = 1, num_gpus: int = 0, dashboard_port: int | None = None
    ) -> None:
        """The next host's. GPUs are promised to Ray, whatever the machine has."""
        host = self.hosts[len(self.nodes)]
        role = ["--address", self.address]
        if not self.nodes:
            role = ["--head", "--port", str(self.port), "--temp-dir", str(self.folder)]
            role += ["--include-dashboard", str(dashboard_port is not None).lower()]
            role += ["--dashboard-port", str(dashboard_port)] if dashboard_port else []
        options = [
            "--block", "--disable-usage-stats", "--node-ip-address", host.address,
            "--num-cpus", str(num_cpus), "--num-gpus", str(num_gpus),
            "--object-store-memory", str(_STORE_BYTES),
            "--min-worker-port", "0", "--max-worker-port", "0",
            # Any free one: two nodes of a machine cannot share the usual one.
            "--dashboard-agent-listen-port", "0",
        ]  # fmt: skip
        log = self.folder / f"node-{len(self.nodes)}.log"
        command = [*host.prefix, str(Path(sys.executable).with_name("ray")), "start"]
        # All hosts have the name of this machine, by which gloo would look for itself.
        env = os.environ | self.env | {"GLOO_SOCKET_IFNAME": host.interface}
        for is_last in (False, False, True):
            with log.open("wb") as file:
                node = subprocess.Popen(
                    [*command, *role, *options],
                    stdout=file, stderr=file, start_new_session=True, env=env,
                )  # fmt: skip
            try:
                wait_until(lambda: "Ray runtime started" in log.read_text(), node, log)
            except AssertionError:
                # Ray gives a node 30 seconds to start, which may be few on a busy machine.
                if is_last or "timed out during startup" not in log.read_text():
                    raise
                kill_session(node)
            else:
                self.nodes.append(node)
                return

    def kill(self, number: int) -> None:
        kill_session(self.nodes[number])

    def works(self, number: int) -> bool:
        """Whether a process of this node runs tasks of a build."""
        return self._runs(number, "ray::MapBatches")

    def trains(self, number: int) -> bool:
        return self._runs(number, "ray::RayTrainWorker")

    def _runs(self, number: int, name: str) -> bool:
        running = session_processes(self.nodes[number].pid).values()
        return any(name in command for command in running)


@contextlib.contextmanager
def ray_nodes(hosts: list[Host], *, num_started: int | None = None) -> Iterator[RayNodes]:
    """A cluster of a node a host, by default of all hosts; ends with all their processes."""
    folder = Path(tempfile.mkdtemp(prefix="rn"))  # short: paths of Unix sockets end at 107 bytes
    token = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}
    env = token | {"RAY_USAGE_STATS_ENABLED": "0"}
    env["RAY_gcs_rpc_server_reconnect_timeout_s"] = "20"  # a third of the usual, for a head
    cluster = RayNodes(hosts, free_port(), folder, env)
    try:
        for _ in hosts[:num_started]:
            cluster.start()
        yield cluster
    finally:
        for node in cluster.nodes:
            kill_session(node)
        shutil.rmtree(folder, ignore_errors=True)
