"""A manifest and the client that takes it: printed, or handed over."""

import shlex
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from pipeline.errors import InfinegError

_INSTALL = {
    "kubectl": "install kubectl (https://kubernetes.io/docs/tasks/tools/) and choose a context",
    "sbatch": "run this where Slurm's commands are, such as a login node",
    "infineg": "install it into the environment of this Python",
    "ray": "pip install 'infineg[cluster]'",
    "sky": "pip install 'skypilot[aws]', or for your cloud, and run: sky check",
    "torchrun": "it comes with PyTorch; activate the environment that has it",
}


@dataclass(frozen=True)
class Submission:
    """What is run, without a shell, and what it reads."""

    arguments: Sequence[str]
    text: str  # of the manifest
    file: str | None = None  # its name, where the client reads a file; else its standard input
    folder: str | None = None  # where the file stays; None: it is needed for a moment
    watch: str = ""  # what to do next

    @property
    def command(self) -> str:
        return shlex.join(self.arguments)


def submit(submission: Submission) -> int:
    """Runs the client; returns its exit code. Raises InfinegError where there is no such client."""
    program = submission.arguments[0]
    if shutil.which(program) is None:
        raise InfinegError(
            f"{program} is not on this machine, so nothing was started: "
            f"{_INSTALL.get(program, 'install it')}. --dry-run shows what would be"
        )
    with ExitStack() as stack:
        if submission.file is None:
            return _run(submission, folder=None, text=submission.text or None)
        folder = submission.folder or stack.enter_context(tempfile.TemporaryDirectory())
        (Path(folder) / submission.file).write_text(submission.text)
        return _run(submission, folder=folder, text=None)


def _run(submission: Submission, *, folder: str | None, text: str | None) -> int:
    done = subprocess.run(
        list(submission.arguments), input=text, text=True, cwd=folder, check=False
    )
    return done.returncode
