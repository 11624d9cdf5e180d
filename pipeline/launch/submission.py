"""A manifest and the client that it is submitted with."""

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
    """A command, run without a shell, and the text that it reads."""

    arguments: Sequence[str]
    text: str  # of the manifest
    file: str | None = None  # name of the file that the client reads; None: standard input
    folder: str | None = None  # where the file is kept; None: it is temporary
    watch: str = ""  # printed after submission: how to watch the job

    @property
    def command(self) -> str:
        return shlex.join(self.arguments)


def submit(submission: Submission) -> int:
    """Runs the client and returns its exit code. Raises InfinegError if it is not installed."""
    program = submission.arguments[0]
    if shutil.which(program) is None:
        raise InfinegError(
            f"{program} is not on this machine, so nothing was started: "
            f"{_INSTALL.get(program, 'install it')}. --dry-run shows what would be submitted"
        )
    folder, text = submission.folder, submission.text or None
    with ExitStack() as stack:
        if submission.file is not None:
            folder = folder or stack.enter_context(tempfile.TemporaryDirectory())
            (Path(folder) / submission.file).write_text(submission.text)
            text = None
        arguments = list(submission.arguments)
        return subprocess.run(arguments, input=text, text=True, cwd=folder, check=False).returncode
