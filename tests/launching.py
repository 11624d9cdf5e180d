"""A config to launch, and clients of platforms that write down what they were asked."""

import json
import os
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from builds import CATS, ENCODER, squares

from pipeline.launch.job import JobKind, Platform
from pipeline.launch.platforms import prepare
from pipeline.launch.submission import Submission

_RECORDER = """#!{python}
import json, os, sys
record = {{
    "arguments": sys.argv[1:],
    "input": "" if sys.stdin.isatty() else sys.stdin.read(),
    "files": {{n: open(n, errors="replace").read() for n in os.listdir() if os.path.isfile(n)}},
}}
with open({log!r}, "a") as file:
    file.write(json.dumps(record) + "\\n")
print({answer!r})
sys.exit({exit_code})
"""


@dataclass(frozen=True)
class Recorder:
    """A program that stands where a platform's client would be."""

    log: Path

    @property
    def calls(self) -> list[dict[str, Any]]:
        lines = self.log.read_text().splitlines() if self.log.exists() else []
        return [json.loads(line) for line in lines]


def put_recorder(folder: Path, name: str, *, exit_code: int = 0, answer: str = "") -> Recorder:
    folder.mkdir(exist_ok=True)
    log = folder / f"{name}.log"
    text = _RECORDER.format(python=sys.executable, log=str(log), answer=answer, exit_code=exit_code)
    (folder / name).write_text(text)
    os.chmod(folder / name, 0o755)
    return Recorder(log)


def write_config(path: Path, **changes: Any) -> Path:
    """A config whose output lies on object storage; `cluster` has the sizes of a laptop."""
    data: dict[str, Any] = {
        "target": {"name": "cat"},
        "positives": [CATS],
        "sources": [squares(num_pictures=200, per_partition=100)],
        "encoder": ENCODER,
        "selection": {"budget": 40, "pilot": 60},
        "output": {"path": "s3://bucket/cats", "image_size": 64, "samples_per_shard": 40},
        "train": {"run": "runs/cats", "steps": 60},
    }
    path.write_text(yaml.safe_dump({**data, **changes}))
    return path


def launched(
    kind: str, config: Path, on: str, *overrides: str, schedule: str | None = None
) -> Submission:
    return prepare(JobKind(kind), str(config), Platform(on), overrides=overrides, schedule=schedule)


VOLUME = "cluster.kubernetes.volume_claim=runs"
QUEUE = "cluster.kubernetes.queue=team-a"
# Everything that can be rendered, with what it needs besides the config.
ALL: dict[str, tuple[str, str, list[str], str | None]] = {
    "kuberay build": ("build", "kuberay", [], None),
    "kuberay build, Kueue": ("build", "kuberay", [QUEUE], None),
    "kuberay nightly": ("build", "kuberay", [], "0 1 * * *"),
    "kuberay train": ("train", "kuberay", [VOLUME], None),
    "kubeflow train": ("train", "kubeflow", [VOLUME, QUEUE], None),
    "slurm build": ("build", "slurm", [], None),
    "slurm train": ("train", "slurm", [], None),
    "ray build": ("build", "ray", [], None),
    "ray train": ("train", "ray", ["train.run=/shared/runs/cats"], None),
    "ray cluster": ("cluster", "ray", [], None),
    "sky build": ("build", "sky", [], None),
    "sky train": ("train", "sky", ["train.run=/runs/cats"], None),
    "local build": ("build", "local", [], None),
    "local train": ("train", "local", [], None),
}


def launch_named(name: str, config: Path, *overrides: str) -> Submission:
    kind, on, needed, schedule = ALL[name]
    return launched(kind, config, on, *needed, *overrides, schedule=schedule)
