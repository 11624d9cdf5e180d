"""Starts a build or a training: here, on Kubernetes, Slurm, Ray or a cloud.

`infra/` has the templates of manifests and job scripts, and the values that they share. This
package fills them in and gives them to the platform's own client.
"""

from enum import StrEnum


class JobKind(StrEnum):
    """The first word after `infineg launch`."""

    BUILD = "build"
    TRAIN = "train"
    CLUSTER = "cluster"  # machines for jobs to come


class Platform(StrEnum):
    """The values of --on."""

    KUBERAY = "kuberay"
    KUBEFLOW = "kubeflow"
    SLURM = "slurm"
    RAY = "ray"
    SKY = "sky"
    LOCAL = "local"
