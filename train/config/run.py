"""How a run runs: files, logs, devices, processes. Nothing here changes the trained weights."""

from typing import Literal

from pydantic import BaseModel, Field

from pipeline.config.build import MetricsServer

LoaderKind = Literal["process", "thread"]
BadShardPolicy = Literal["stop", "skip"]


class TrackerConfig(BaseModel, frozen=True, extra="forbid"):
    """An experiment tracker: an optional package, imported only with this section."""

    kind: Literal["mlflow", "trackio", "wandb"] = Field(
        description="MLflow, Trackio or Weights & Biases."
    )
    project: str = Field(description="Project, in MLflow experiment, to log to.")
    name: str | None = Field(None, description="Name of the run there; default the run's folder.")
    online: bool = Field(
        False,
        description="False keeps all in the run's folder. True sends it while it trains to where "
        "the package's own environment variables say.",
    )


class RunSettings(BaseModel, frozen=True, extra="forbid"):
    """A run may be resumed with other values of these settings, but for `run`."""

    run: str = Field("", description="Folder of the run. Default: runs/TARGET.")
    checkpoint_every: int = Field(
        500, ge=1, description="Steps between checkpoints: the most that a crash can cost."
    )
    keep_checkpoints: int = Field(2, ge=1, description="Latest checkpoints that are kept.")
    log_every: int = Field(10, ge=1, description="Steps between lines of log.jsonl.")
    metrics: MetricsServer = Field(
        MetricsServer(), description="Prometheus metrics of the main process, such as {port: 9465}."
    )
    tracker: TrackerConfig | None = Field(
        None, description="Also logs to MLflow, Trackio or Weights & Biases."
    )
    device: Literal["auto", "cpu", "cuda"] = Field(
        "auto", description="auto takes a GPU if there is one."
    )
    parallel: Literal["ddp", "fsdp"] = Field(
        "ddp",
        description="How several processes share a model in finetune. ddp: each has all of it; "
        "fsdp: each has a part of every weight, gradient and moment, for backbones too large for "
        "one GPU.",
    )
    deterministic: bool = Field(
        False,
        description="Only algorithms that give the same bits each time, on as many processes of "
        "the same kind of machine. Slower on GPUs; an operation without such an algorithm is an "
        "error that names it.",
    )
    timeout_s: float = Field(
        600, gt=0, description="Seconds that a process waits for another before it gives up."
    )
    workers: int | None = Field(
        None,
        ge=0,
        description="Workers per process that decode ahead; default one per core, at most 8.",
    )
    loader: LoaderKind = Field(
        "process",
        description="What the workers are: forked processes; or threads, which need no fork and "
        "no extra memory, but share the interpreter with the training.",
    )
    cache_dir: str | None = Field(
        None, description="Folder for local copies of remote shards; default ~/.cache/infineg."
    )
    cache_gb: float | None = Field(
        100.0,
        gt=0,
        description="Limit in GB of these copies, and of embeddings if they are many, for all "
        "processes of a machine together; the least recently used go first. null is no limit.",
    )
    on_bad_shard: BadShardPolicy = Field(
        "stop",
        description="What a missing or damaged shard does. stop ends the run; skip leaves out "
        "shards that are missing, of another size or without a sidecar, and logs them, and "
        "replaces an image that cannot be decoded by another one of its shard.",
    )
