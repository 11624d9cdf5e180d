"""What happens when a process or a machine of Ray dies: this process ends, or says which.

Without it Ray waits, hangs for up to a minute, or ends this process without a message.
"""

import contextlib
import logging
import os
import socket
import sys
import threading
from collections.abc import Iterator, Set

import psutil
import ray
from ray.exceptions import RayError, RayTaskError

from pipeline.errors import InfinegError

_log = logging.getLogger(__name__)

_CHECK_S = 3.0  # between checks of the head of a cluster
_MAX_FAILED_CHECKS = 3  # before a warning
DIED = (
    "a process of Ray was killed or has crashed, perhaps for lack of memory (see `dmesg`, "
    "/tmp/ray/session_latest/logs). Run the same command again: it resumes."
)


@contextlib.contextmanager
def watching_head(address: str | None) -> Iterator[None]:
    """Warns when the head of a joined cluster is gone: Ray waits, and then ends this process."""
    if address is None or address.startswith("ray://"):  # Ray Client reports it at once
        yield
        return
    is_over = threading.Event()
    gcs_address: str = ray.get_runtime_context().gcs_address
    host, _, port = gcs_address.rpartition(":")

    def watch() -> None:
        num_failed = 0
        while not is_over.wait(_CHECK_S):
            try:
                socket.create_connection((host.strip("[]"), int(port)), _CHECK_S).close()
                num_failed = 0
            except OSError:
                num_failed += 1
            if num_failed == _MAX_FAILED_CHECKS:
                _log.warning(
                    "the head of the Ray cluster at %s does not answer. Unless it is back within "
                    "a minute Ray ends this process; run the same command again then, on any "
                    "cluster: it resumes", address,
                )  # fmt: skip

    threading.Thread(target=watch, name="head watch", daemon=True).start()
    try:
        yield
    finally:
        is_over.set()


@contextlib.contextmanager
def named_deaths() -> Iterator[None]:
    """Raises InfinegError for errors of Ray itself, such as the death of a machine or process.

    An error in the code of a task stays a RayTaskError: it is a bug.
    """
    try:
        yield
    except RayTaskError:
        raise
    except RayError as error:
        raise InfinegError(f"{DIED} Ray says: {error}") from error


@contextlib.contextmanager
def ending_with_children(names: Set[str], message: str) -> Iterator[None]:
    """Within the block this process ends, with exit code 1, when a child of such a name does.

    For code that would hang without the child. Only for children that exist at the beginning, and
    not on macOS before Python 3.13, which lacks `os.waitid`.
    """
    is_over = threading.Event()

    def wait_for(pid: int) -> None:
        with contextlib.suppress(ChildProcessError):  # another has waited for it
            os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
        if not is_over.is_set():
            sys.stderr.write(message)
            sys.stderr.flush()
            os._exit(1)  # at once: an orderly end would hang

    for child in psutil.Process().children() if hasattr(os, "waitid") else ():
        with contextlib.suppress(psutil.NoSuchProcess):
            if child.name() in names:
                threading.Thread(target=wait_for, args=(child.pid,), daemon=True).start()
    try:
        yield
    finally:
        is_over.set()
