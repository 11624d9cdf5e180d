"""A config to launch, and clients of platforms that write down what they were asked."""

import json
import os
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Generic, Literal, TypeVar

from pydantic import BaseModel, Field

from pipeline.config import yaml_text
from pipeline.launch import JobKind, Platform
from pipeline.launch.platforms import prepare
from pipeline.launch.submission import Submission
from support.builds import CATS, ENCODER, squares

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
    path.write_text(yaml_text.dump({**data, **changes}))
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


Pod = dict[str, Any]
Whole = Annotated[int, Field(ge=0, strict=True)]
T = TypeVar("T")


class _Model(BaseModel, extra="forbid"):
    pass


class _Spec(_Model, Generic[T]):
    spec: T


class _Template(_Model, Generic[T]):
    template: T


class Metadata(_Model):
    name: str = Field(pattern=r"^[a-z0-9]([a-z0-9-]*[a-z0-9])?$", max_length=41)  # KubeRay: + 6
    namespace: str
    labels: dict[str, str] = {}


class AutoscalerOptions(_Model):
    version: Literal["v1", "v2"]
    idleTimeoutSeconds: Whole
    upscalingMode: Literal["Default", "Aggressive", "Conservative"]
    securityContext: dict[str, Any]


class AuthOptions(_Model):
    mode: Literal["disabled", "token"]


class HeadGroup(_Model):
    rayStartParams: dict[str, str]
    template: Pod


class WorkerGroup(_Model):
    groupName: str
    replicas: Whole
    minReplicas: Whole
    maxReplicas: Whole
    rayStartParams: dict[str, str]
    template: Pod


class RayCluster(_Model):
    rayVersion: str
    authOptions: AuthOptions
    enableInTreeAutoscaling: bool = False
    autoscalerOptions: AutoscalerOptions | None = None
    headGroupSpec: HeadGroup
    workerGroupSpecs: list[WorkerGroup]


class RayJobSpec(_Model):
    entrypoint: str
    backoffLimit: Whole
    shutdownAfterJobFinishes: bool
    ttlSecondsAfterFinished: Whole
    preRunningDeadlineSeconds: Whole | None = None
    submissionMode: Literal["K8sJobMode", "HTTPMode", "InteractiveMode", "SidecarMode"]
    submitterPodTemplate: Pod
    rayClusterSpec: RayCluster


class RayJob(_Spec[RayJobSpec]):
    apiVersion: Literal["ray.io/v1"]
    kind: Literal["RayJob"]
    metadata: Metadata


class RayCronJobSpec(_Model):
    schedule: str
    timeZone: str
    jobTemplate: RayJobSpec


class RayCronJob(_Spec[RayCronJobSpec]):
    apiVersion: Literal["ray.io/v1"]
    kind: Literal["RayCronJob"]
    metadata: Metadata


class RuntimeRef(_Model):
    apiGroup: Literal["trainer.kubeflow.org"]
    kind: Literal["ClusterTrainingRuntime", "TrainingRuntime"]
    name: str


class Trainer(_Model):
    image: str
    command: list[str]
    env: list[dict[str, Any]]
    numNodes: Whole
    numProcPerNode: Whole
    resourcesPerNode: dict[Literal["requests", "limits"], dict[str, Any]]


class PatchedContainer(_Model):
    name: Literal["node"]  # no image, command or envFrom can be patched
    securityContext: dict[str, Any]
    volumeMounts: list[dict[str, Any]]


class PatchedPod(_Model):
    serviceAccountName: str
    securityContext: dict[str, Any]
    tolerations: list[dict[str, Any]] = []
    containers: list[PatchedContainer]
    volumes: list[dict[str, Any]]


class PatchedJob(_Template[_Spec[_Template[_Spec[PatchedPod]]]]):
    name: Literal["node"]


class PatchedJobs(_Model):
    replicatedJobs: list[PatchedJob]


class RuntimePatch(_Model):
    manager: str = Field(pattern=r"^[a-z0-9.-]+/[a-z0-9.-]+$")
    trainingRuntimeSpec: _Template[_Spec[PatchedJobs]]


class TrainJobSpec(_Model):
    runtimeRef: RuntimeRef
    trainer: Trainer
    runtimePatches: list[RuntimePatch]


class TrainJob(_Spec[TrainJobSpec]):
    apiVersion: Literal["trainer.kubeflow.org/v1alpha1"]
    kind: Literal["TrainJob"]
    metadata: Metadata


MODELS: dict[str, type[BaseModel]] = {
    model.__name__: model for model in (RayJob, RayCronJob, TrainJob)
}


def pods_of(document: dict[str, Any]) -> list[dict[str, Any]]:
    """Every pod that a manifest asks for, whole, as a v1 Pod."""
    spec = document["spec"]
    if document["kind"] == "TrainJob":
        patched = spec["runtimePatches"][0]["trainingRuntimeSpec"]["template"]["spec"]
        pod = patched["replicatedJobs"][0]["template"]["spec"]["template"]["spec"]
        trainer = spec["trainer"]
        given = {key: trainer[key] for key in ("image", "command", "env")}
        container = {**pod["containers"][0], **given, "resources": trainer["resourcesPerNode"]}
        return [_pod({"spec": {**pod, "containers": [container]}})]
    job = spec["jobTemplate"] if document["kind"] == "RayCronJob" else spec
    cluster = job["rayClusterSpec"]
    groups = [cluster["headGroupSpec"], *cluster["workerGroupSpecs"]]
    return [_pod(job["submitterPodTemplate"]), *(_pod(group["template"]) for group in groups)]


def _pod(template: dict[str, Any]) -> dict[str, Any]:
    metadata = {"name": "pod", **template.get("metadata", {})}
    return {"apiVersion": "v1", "kind": "Pod", **template, "metadata": metadata}
