"""Where the processes of torchrun meet: in a store of their own, anew after each restart.

torchrun 2.14 hands all attempts one store, in which addresses of killed processes lie: those that
take their place would call them, and give up. A restart count does not tell attempts apart where
several agents take part, since only that of the failed one rises. But torchrun starts an attempt
only when all processes of the one before have ended, and so has the store that its rank 0 served.
"""

import os
import secrets
import socket
import time
from datetime import timedelta

from torch.distributed import DistError, Store, TCPStore  # type: ignore[attr-defined]

_NUMBER, _PLACE, _TOKEN = "infineg/attempts", "infineg/attempt", "infineg/token"
_CONNECT = timedelta(seconds=5)
_POLL_S = 0.1


def uses_agent_store() -> bool:
    """Whether torchrun started this process and serves one store to all attempts."""
    return os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"


def meet(rank: int, timeout: timedelta) -> Store:
    """The store of this attempt, served by rank 0. Raises DistError after `timeout`."""
    host, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    board = TCPStore(host, port, is_master=False, timeout=timeout)
    if rank == 0:
        return _open(board, _own_address(host, port), timeout)
    return _join(board, timeout)


def _open(board: Store, address: str, timeout: timedelta) -> Store:
    store = TCPStore(address, 0, is_master=True, wait_for_workers=False, timeout=timeout)
    token = secrets.token_hex(8)
    store.set(_TOKEN, token)
    number = board.add(_NUMBER, 1)
    board.set(f"{_PLACE}/{number}", f"{address} {store.port} {token}")
    return store


def _join(board: Store, timeout: timedelta) -> Store:
    """The latest place where somebody is at home."""
    deadline = time.monotonic() + timeout.total_seconds()
    while True:
        if number := board.add(_NUMBER, 0):
            address, port, token = board.get(f"{_PLACE}/{number}").decode().split()
            try:
                store = TCPStore(address, int(port), is_master=False, timeout=_CONNECT)
                if store.get(_TOKEN).decode() == token:
                    store.set_timeout(timeout)
                    return store
            except DistError:
                pass  # of an attempt that is over
        if time.monotonic() > deadline:
            raise DistError(f"timed out after {timeout}: rank 0 is not there")
        time.sleep(_POLL_S)


def _own_address(host: str, port: int) -> str:
    """By which this machine talks to the agent, and so is to be reached by all others."""
    with socket.create_connection((host, port)) as connection:
        return str(connection.getsockname()[0])
