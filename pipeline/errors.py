"""What can go wrong that is not a bug, and the exit code that each becomes.

    InfinegError                 1  a run that failed; the message says what to do
    |-- ConfigError              2  wrong use: names the field, the value seen, what is allowed
    |-- TooManyRejects           3  a partition with more rejects than its source allows
    |-- BadShard                 1  a shard that is missing or not what its record says
    `-- TransientStorageError    1  storage kept failing after the retries

Anything else that is raised is a bug and stops the run with a traceback.
"""


class InfinegError(Exception):
    """A failure whose message a user can act on."""

    exit_code = 1


class ConfigError(InfinegError):
    """A setting or an argument that cannot work."""

    exit_code = 2


class TooManyRejects(InfinegError):
    """More of a partition was rejected than `max_reject_fraction` allows."""

    exit_code = 3


class BadShard(InfinegError):
    """A shard, its sidecar or an image in it is missing, or not what the record says."""


class TransientStorageError(InfinegError):
    """A named transient storage error outlasted its retries; running again resumes."""
