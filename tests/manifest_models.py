"""The fields of KubeRay 1.7 (ray.io/v1) and Kubeflow Trainer 2.3 that our manifests use.

Written down from their published definitions: an unknown field, which an API server would drop
without a word, fails here. What is a pod is left to Kubernetes' own schemas.
"""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, Field

Pod = dict[str, Any]
Whole = Annotated[int, Field(ge=0, strict=True)]


class _Model(BaseModel, extra="forbid"):
    pass


class Metadata(_Model):
    name: str = Field(pattern=r"^[a-z0-9]([a-z0-9-]*[a-z0-9])?$", max_length=41)  # KubeRay: + 6
    namespace: str
    labels: dict[str, str] = {}


class AutoscalerOptions(_Model):
    version: Literal["v1", "v2"]
    idleTimeoutSeconds: Whole
    upscalingMode: Literal["Default", "Aggressive", "Conservative"]


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
    rayClusterSpec: RayCluster


class RayJob(_Model):
    apiVersion: Literal["ray.io/v1"]
    kind: Literal["RayJob"]
    metadata: Metadata
    spec: RayJobSpec


class RayCronJobSpec(_Model):
    schedule: str
    timeZone: str
    jobTemplate: RayJobSpec


class RayCronJob(_Model):
    apiVersion: Literal["ray.io/v1"]
    kind: Literal["RayCronJob"]
    metadata: Metadata
    spec: RayCronJobSpec


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


class _PatchedPodTemplate(_Model):
    spec: PatchedPod


class _PatchedJobSpec(_Model):
    template: _PatchedPodTemplate


class _PatchedJobTemplate(_Model):
    spec: _PatchedJobSpec


class _PatchedJob(_Model):
    name: Literal["node"]
    template: _PatchedJobTemplate


class _PatchedJobs(_Model):
    replicatedJobs: list[_PatchedJob]


class _PatchedJobSet(_Model):
    spec: _PatchedJobs


class _PatchedRuntime(_Model):
    template: _PatchedJobSet


class RuntimePatch(_Model):
    manager: str = Field(pattern=r"^[a-z0-9.-]+/[a-z0-9.-]+$")
    trainingRuntimeSpec: _PatchedRuntime


class TrainJobSpec(_Model):
    runtimeRef: RuntimeRef
    trainer: Trainer
    runtimePatches: list[RuntimePatch]


class TrainJob(_Model):
    apiVersion: Literal["trainer.kubeflow.org/v1alpha1"]
    kind: Literal["TrainJob"]
    metadata: Metadata
    spec: TrainJobSpec


MODELS: dict[str, type[BaseModel]] = {
    "RayJob": RayJob,
    "RayCronJob": RayCronJob,
    "TrainJob": TrainJob,
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
    return [_pod(group["template"]) for group in groups]


def _pod(template: dict[str, Any]) -> dict[str, Any]:
    metadata = {"name": "pod", **template.get("metadata", {})}
    return {"apiVersion": "v1", "kind": "Pod", **template, "metadata": metadata}
