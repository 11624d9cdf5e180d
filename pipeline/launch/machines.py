"""On this machine, Slurm, a Ray cluster or rented machines (SkyPilot)."""

import json
import sys
from collections.abc import Iterable
from pathlib import Path

from pipeline.errors import ConfigError
from pipeline.launch import JobKind
from pipeline.launch.job import LEASE_WAIT_S, Job
from pipeline.launch.submission import Submission
from pipeline.launch.templates import INFRA, fill_script, fill_yaml, header_of, to_yaml


def on_this_machine(job: Job) -> Submission:
    """In the foreground; training on several GPUs under torchrun."""
    _, *arguments = job.command(str(job.path), *_set(job.overrides))
    command = [_beside_python("infineg"), *arguments]
    processes = job.values.training_processes
    # The number in infra/values.yaml is for the machines of the site.
    is_sized = "trainers" in (job.data.get("cluster") or {})
    if job.kind == JobKind.TRAIN and is_sized and processes > 1:
        torchrun = [_beside_python("torchrun"), "--standalone", "--nproc-per-node", str(processes)]
        return Submission([*torchrun, "--no-python", *command], "")
    return Submission(command, "")


def _beside_python(program: str) -> str:
    """A program of this environment, also where the environment is not on PATH."""
    path = Path(sys.executable).with_name(program)
    return str(path) if path.exists() else program


def on_slurm(job: Job) -> Submission:
    """A script for sbatch, which passes on the environment with its credentials."""
    site = job.values
    nodes = site.cpu_workers if job.kind == JobKind.BUILD else site.trainers
    words = [str(job.path.resolve()), *_set(job.overrides)]
    if job.kind == JobKind.BUILD:
        wait = [] if job.config.build.lease_wait_s else [f"build.lease_wait_s={LEASE_WAIT_S}"]
        command = ["infineg", "build", *words, *_set(wait)]
    else:
        command = ["--no-python", "infineg", "train", *words, "--resume"]
    values = {
        "job": job.name,
        "nodes": nodes,
        "slurm": site.slurm,
        "env": site.env,
        "bin": site.slurm.bin or str(Path(sys.executable).parent),
        "command": command,
        "processes_per_node": max(nodes.gpus, 1),
    }
    text = fill_script(f"slurm/{job.kind}.sh.j2", values)
    return Submission(["sbatch"], text, watch="watch: squeue --me, and the log beside this folder")


def on_ray(job: Job) -> Submission:
    """A job on a running Ray cluster; the job kind `cluster` starts one with `ray up`."""
    if job.kind == JobKind.CLUSTER:
        return _ray_up(job)
    for field, place in job.places.items():
        if "://" not in place and not place.startswith("/"):
            raise ConfigError(
                f"{field} {place!r}: a job's folder is deleted with the job. Use a URL, or the "
                "path of a folder that all machines of the cluster share"
            )
    options = []
    if job.kind == JobKind.TRAIN:
        options = ["--launcher", "ray", "--num-workers", str(job.values.training_processes)]
    environment = json.dumps({"env_vars": dict(job.values.env)})
    arguments = [
        *("ray", "job", "submit", "--address", job.values.ray.address, "--working-dir", "."),
        *("--runtime-env-json", environment, "--no-wait", "--"),
        *job.command("config.yaml", *options),
    ]
    address = job.values.ray.address
    watch = f"watch: ray job logs --follow --address {address} ID, infineg status DATASET"
    return Submission(arguments, job.on_cluster(grows=True), "config.yaml", watch=watch)


def on_sky(job: Job) -> Submission:
    """A managed job of SkyPilot."""
    site = job.values
    checkout = INFRA.parent
    if not (checkout / "pyproject.toml").exists():
        raise ConfigError(
            f"--on sky: the machines install a checkout of infineg, and {checkout} is not one"
        )
    for field, place in job.places.items():
        lasts = "://" in place or (field == "train.run" and place.startswith("/runs/"))
        if not lasts:
            raise ConfigError(
                f"{field} {place!r} would be lost with its machine: output.path must be a URL, "
                "train.run below /runs, where the bucket sky.runs is mounted"
            )
    wanted = dict.fromkeys(job.variables)
    template = f"sky/{job.kind}.yaml.j2"
    envs = {"INFINEG_CONFIG": job.on_cluster(grows=False), **site.env, **wanted}
    values = {**site.model_dump(), "job": job.name, "checkout": str(checkout), "envs": envs}
    text = f"{header_of(template)}\n{to_yaml(fill_yaml(template, values))}"
    given = [word for name in wanted for word in ("--env", name)]
    arguments = ["sky", "jobs", "launch", "--yes", "--detach-run", *given, "task.yaml"]
    return Submission(arguments, text, "task.yaml", watch="watch: sky jobs queue")


def _ray_up(job: Job) -> Submission:
    site = job.values
    groups = {"decode": site.cpu_workers, "embed": site.gpu_workers}
    workers = {name: nodes for name, nodes in groups.items() if nodes.max}
    for name, nodes in {"head": site.head, **workers}.items():
        if nodes.instance_type is None:
            raise ConfigError(f"cluster: the machines of {name} need an instance_type for `ray up`")
    values = {
        **site.model_dump(),
        "job": job.name,
        "workers": {name: nodes.model_dump() for name, nodes in workers.items()},
        "max_workers": sum(nodes.max for nodes in workers.values()),
    }
    template = "ray/cluster.yaml.j2"
    text = f"{header_of(template)}\n{to_yaml(fill_yaml(template, values))}"
    file = f"{job.name}.yaml"
    watch = f"next: ray dashboard {file}; at the end: ray down {file}"
    return Submission(["ray", "up", "--yes", file], text, file, folder=".", watch=watch)


def _set(overrides: Iterable[str]) -> list[str]:
    return [word for override in overrides for word in ("--set", override)]
