"""On Kubernetes: KubeRay for builds and Ray Train, Kubeflow Trainer for torchrun."""

import shlex
from importlib.metadata import version
from typing import Any

from pipeline.errors import ConfigError
from pipeline.launch import JobKind
from pipeline.launch.job import Job
from pipeline.launch.submission import Submission
from pipeline.launch.templates import fill_yaml, header_of, to_yaml
from pipeline.launch.values import Nodes

_CONFIG_DIR = "/etc/infineg"
# The root is read-only, and so is the home of the image.
_HOME = {"name": "HOME", "value": "/tmp"}
_CONFIG = f"{_CONFIG_DIR}/config.yaml"


def on_kuberay(job: Job, *, schedule: str | None = None) -> Submission:
    """A RayJob; with `schedule`, five fields of cron, a RayCronJob."""
    _require_lasting_places(job)
    if schedule is not None and (job.kind != JobKind.BUILD or len(schedule.split()) != 5):
        raise ConfigError(
            f"--schedule {schedule!r} with {job.kind}: give five fields of cron, such as "
            "'0 1 * * *', and a build"
        )
    values = _values(job)
    workers = ("--launcher", "ray", "--num-workers", str(job.values.training_processes))
    command = job.command(_CONFIG, *(workers if job.kind == JobKind.TRAIN else ()))
    values |= {
        "config": job.on_cluster(grows=job.values.kubernetes.queue is None),
        "command": shlex.join(command),
        "ray_version": version("ray"),
    }
    # It gets no credential: it only talks to the head.
    values["submitter_pod"] = values["pod"](
        "ray-job-submitter", job.values.submitter, environment=[_HOME], restart="Never"
    )
    template = f"kuberay/{job.kind}.yaml.j2"
    manifest = fill_yaml(template, values)
    kind = "rayjob"
    if schedule is not None:
        template, kind = "kuberay/nightly.yaml.j2", "raycronjob"
        manifest = fill_yaml(template, {**values, "build": manifest, "schedule": schedule})
    values |= {"pods": {"app.kubernetes.io/instance": job.name}, "is_ray": True}
    return _apply(job, template, values, manifest, kind)


def on_kubeflow(job: Job) -> Submission:
    """A TrainJob of Kubeflow Trainer."""
    if job.kind != JobKind.TRAIN:
        raise ConfigError(f"--on kubeflow: only trains; use --on kuberay for {job.kind}")
    _require_lasting_places(job)
    values = _values(job)
    pod = values["pod"]("node", job.values.trainers)
    values |= {
        "config": job.text,
        "arguments": ["torchrun", "--no-python", *job.command(_CONFIG)],
        # A new store for each attempt: the old one holds the addresses of processes that ended.
        "environment": [
            *values["environment"],
            {"name": "TORCH_DISABLE_SHARE_RDZV_TCP_STORE", "value": "1"},
        ],
        "processes_per_node": max(job.values.trainers.gpus, 1),
        "node": pod["spec"]["containers"][0],
        "security": pod["spec"]["securityContext"],
    }
    values |= {"pods": {"jobset.sigs.k8s.io/jobset-name": job.name}, "is_ray": False}
    template = "kubeflow/train.yaml.j2"
    return _apply(job, template, values, fill_yaml(template, values), "trainjob")


def _apply(job: Job, template: str, values: dict[str, Any], manifest: Any, kind: str) -> Submission:
    shared = [fill_yaml(f"kubernetes/{name}.yaml.j2", values) for name in ("config", "policy")]
    documents = "---\n".join(map(to_yaml, [*shared, manifest]))
    text = f"{header_of(template)}\n{documents}"
    where = f"--namespace {job.values.kubernetes.namespace}"
    watch = (
        f"watch: kubectl get {kind} {job.name} {where}; to end it, or before launching it again: "
        f"kubectl delete {kind} {job.name} {where}"
    )
    if job.variables:
        watch = (
            f"{', '.join(job.variables)} of the config: from the Secret "
            f"{job.values.kubernetes.secret}, or set cluster.env\n{watch}"
        )
    return Submission(["kubectl", "apply", "-f", "-"], text, watch=watch)


def _values(job: Job) -> dict[str, Any]:
    """Every name used in the templates."""
    site = job.values
    claim = site.kubernetes.volume_claim
    data = {"persistentVolumeClaim": {"claimName": claim}} if claim else {"emptyDir": {}}
    groups = {"decode": site.cpu_workers, "embed": site.gpu_workers}
    values: dict[str, Any] = {
        **site.model_dump(),
        "job": job.name,
        "environment": _environment(job),
        "mounts": [
            {"name": "config", "mountPath": _CONFIG_DIR, "readOnly": True},
            {"name": "data", "mountPath": site.kubernetes.volume_path},
            {"name": "shm", "mountPath": "/dev/shm"},  # between processes of a pod
            {"name": "tmp", "mountPath": "/tmp"},  # logs of Ray, caches
        ],
        "volumes": [
            {"name": "config", "configMap": {"name": job.name}},
            {"name": "data", **data},
            {"name": "shm", "emptyDir": {"medium": "Memory"}},
            {"name": "tmp", "emptyDir": {}},
        ],
        "workers": {name: nodes.model_dump() for name, nodes in groups.items() if nodes.max},
    }

    def pod(name: str, nodes: Any, metrics_port: int | None = None, **others: Any) -> Any:
        port = str(metrics_port) if metrics_port else None  # an annotation is a string
        of_pod = {"name": name, "nodes": Nodes.model_validate(nodes), "metrics_port": port}
        return fill_yaml("kubernetes/pod.yaml.j2", values | {"restart": None} | of_pod | others)

    return values | {"pod": pod, "metrics_port": job.metrics_port}


def _environment(job: Job) -> list[dict[str, Any]]:
    """Plain values as they are, the others by reference to the Secret."""
    kubernetes = job.values.kubernetes
    plain = [{"name": name, "value": value} for name, value in job.values.env.items()]
    plain += [] if "HOME" in job.values.env else [_HOME]
    names = dict.fromkeys([*job.variables, *kubernetes.secret_keys])
    return plain + [
        {
            "name": name,
            "valueFrom": {
                "secretKeyRef": {"name": kubernetes.secret, "key": name, "optional": True}
            },
        }
        for name in names
        if name not in job.values.env
    ]


def _require_lasting_places(job: Job) -> None:
    """Raises ConfigError if the output of the job would be lost with its pod."""
    kubernetes = job.values.kubernetes
    for field, place in job.places.items():
        if "://" in place:
            continue
        if kubernetes.volume_claim is None:
            raise ConfigError(
                f"{field} {place!r} would be lost with its pod: use a URL, or a volume: "
                "--set cluster.kubernetes.volume_claim=NAME of a ReadWriteMany claim"
            )
        root = kubernetes.volume_path
        if place.startswith("/") and not f"{place}/".startswith(f"{root.rstrip('/')}/"):
            raise ConfigError(
                f"{field} {place!r} would be lost with its pod: the volume "
                f"{kubernetes.volume_claim} is mounted at {root}; use a path in it, or a relative "
                "one"
            )
