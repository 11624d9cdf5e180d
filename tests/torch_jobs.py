"""`infineg train` as real processes, under torchrun and alone: to watch, to signal, to kill."""

import contextlib
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

from commands import kill_session
from train_dataset import write_config

TORCHRUN = [sys.executable, "-m", "torch.distributed.run"]


def write_job(dataset: Path, run: Path, **train: object) -> Path:
    """A config beside its run; `train` extends the section."""
    run.parent.mkdir(parents=True, exist_ok=True)
    return write_config(run.with_suffix(".yaml"), dataset=dataset, run=run, train=train)


def start_job(
    config: Path,
    *arguments: str,
    log: Path,
    launcher: list[str] | None = None,
    limits: str = "",
    **env: str,
) -> subprocess.Popen[bytes]:
    """`launcher` [python] -m train train CONFIG ..., in a session of its own.

    limits: a command of the shell before, such as `ulimit -f 100`.
    """
    command = [*(launcher or [sys.executable]), "-m", "train", "train", str(config), *arguments]
    if limits:
        command = ["bash", "-c", f'{limits}; exec "$@"', "bash", *command]
    with log.open("ab") as file:
        return subprocess.Popen(
            command,
            stdout=file,
            stderr=file,
            env={**os.environ, "OMP_NUM_THREADS": "1", **env},
            start_new_session=True,
        )


def on_two(*options: str) -> list[str]:
    """torchrun with two processes on this machine."""
    return [*TORCHRUN, "--standalone", "--nproc-per-node", "2", *options]


def workers_of(job: subprocess.Popen[bytes]) -> list[int]:
    """Process ids of torchrun's, by rank; each has a session of its own."""
    listed = Path(f"/proc/{job.pid}/task/{job.pid}/children").read_text().split()
    return [pid for pid in map(int, listed) if _environment(pid).get("RANK")]


def _environment(pid: int) -> dict[str, str]:
    pairs = Path(f"/proc/{pid}/environ").read_bytes().decode().split("\0")
    return dict(pair.partition("=")[::2] for pair in pairs if pair)


def kill_job(job: subprocess.Popen[bytes]) -> None:
    """SIGKILL to it and to what torchrun has started for it."""
    if job.poll() is None:
        for pid in workers_of(job):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
    kill_session(job)


def steps_logged(run: Path) -> int:
    path = run / "log.jsonl"
    return len(path.read_text().splitlines()) if path.exists() else 0


def losses_logged(run: Path) -> list[float]:
    return [json.loads(line)["loss"] for line in (run / "log.jsonl").read_text().splitlines()]


def checkpoint_steps(run: Path) -> list[int]:
    """Of the committed ones."""
    return [
        int(path.stem.partition("-")[2])
        for path in sorted((run / "checkpoints").glob("step-*.json"))
    ]


def model_bytes(run: Path) -> bytes:
    return (run / "model.safetensors").read_bytes()
