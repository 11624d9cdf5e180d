"""From a config to the submission for a platform."""

from collections.abc import Sequence

from pipeline.errors import ConfigError
from pipeline.launch import JobKind, Platform
from pipeline.launch.job import read_job
from pipeline.launch.kubernetes import on_kubeflow, on_kuberay
from pipeline.launch.machines import on_ray, on_sky, on_slurm, on_this_machine
from pipeline.launch.submission import Submission

_ON = {
    Platform.KUBERAY: on_kuberay,
    Platform.KUBEFLOW: on_kubeflow,
    Platform.SLURM: on_slurm,
    Platform.RAY: on_ray,
    Platform.SKY: on_sky,
    Platform.LOCAL: on_this_machine,
}
# Jobs there inherit the environment of this process.
_SHARE_ENVIRONMENT = (Platform.LOCAL, Platform.SLURM)


def prepare(
    kind: JobKind,
    path: str,
    platform: Platform,
    *,
    overrides: Sequence[str] = (),
    values: str | None = None,
    schedule: str | None = None,
) -> Submission:
    """The manifest and the command that submits it; raises ConfigError before anything starts."""
    is_here = platform in _SHARE_ENVIRONMENT
    job = read_job(kind, path, overrides, values, is_here=is_here)
    if job.kind == JobKind.CLUSTER and platform != Platform.RAY:
        raise ConfigError(f"cluster --on {platform}: `ray up` starts clusters, so --on ray")
    if schedule is not None and platform != Platform.KUBERAY:
        raise ConfigError(
            f"--schedule --on {platform}: only KubeRay has nightly jobs; elsewhere cron or "
            "scrontab runs `infineg launch`"
        )
    if schedule is not None:
        return on_kuberay(job, schedule=schedule)
    return _ON[platform](job)
