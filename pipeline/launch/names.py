"""What can be launched, and where. Imports nothing, for `infineg --help` to be quick."""

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
