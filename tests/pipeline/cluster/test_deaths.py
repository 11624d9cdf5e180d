"""A process that cannot go on without a child ends with it."""

import os
import signal
import subprocess
import sys

import pytest

PROGRAM = """
import subprocess, sys, time
from pipeline.cluster.deaths import ending_with_children
child = subprocess.Popen(["sleep", "60"])
other = subprocess.Popen(["cat"], stdin=subprocess.PIPE)
with ending_with_children({"sleep"}, "sleep has ended\\n"):
    print(child.pid, other.pid, flush=True)
    sys.stdin.readline()
child.kill()
child.wait()
time.sleep(0.2)
print("well", flush=True)
"""


@pytest.mark.parametrize("is_awaited", [True, False])
def test_process_ends_at_once_with_a_child_it_needs_and_with_no_other(is_awaited: bool) -> None:
    process = subprocess.Popen(
        [sys.executable, "-c", PROGRAM],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    with process:
        child, other = map(int, process.stdout.readline().split())
        os.kill(child if is_awaited else other, signal.SIGKILL)
        if is_awaited:
            assert process.wait(timeout=10) == 1
        out, error = process.communicate("go on\n" if not is_awaited else None, timeout=10)
        assert (out, error) == (("", "sleep has ended\n") if is_awaited else ("well\n", ""))
        assert process.returncode == (1 if is_awaited else 0)
