"""The `train:` section of a config file, and how the whole file is read."""

from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal, Self, TypeVar

from pydantic import BaseModel, Field, ValidationError, model_validator

from pipeline.config.build import MetricsServer
from pipeline.config.loading import describe_errors, load_config
from pipeline.config.schema import Config
from pipeline.errors import ConfigError
from train.config.evaluate import EvaluateConfig
from train.model.groups import Stage

Mode = Literal["head", "finetune"]


ModelT = TypeVar("ModelT", bound=BaseModel)


# A step of `finetune` decodes and back-propagates images: fewer of them, at smaller rates.
_FINETUNE_DEFAULTS = {"steps": 2000, "batch_size": 64, "learning_rate": 3e-4}


class Finetuning(BaseModel, frozen=True, extra="forbid"):
    """`mode: finetune` alone. Steps are optimizer steps of the run, counted from 0."""

    # Rate of a group: backbone_learning_rate * layer_decay^(number of groups behind it). 1 is one
    # rate for all; 0.7 keeps early layers, which see edges and textures, near what they were.
    layer_decay: float = Field(1.0, gt=0, le=1)
    # Pairs of a step and how many of the last groups are trained from then on, such as
    # [[300, 2], [600, all]]; each group's rate rises and falls from its own step on. Default: all
    # of them from head_steps on.
    unfreeze: tuple[tuple[int, int | Literal["all"]], ...] = ()
    # Pairs of a share of the steps on images and the side in pixels from then on, such as
    # [[0, 128], [0.5, 192], [0.8, 224]]: small pictures first are faster. Default: the encoder's.
    image_sizes: tuple[tuple[float, int], ...] = ()

    @model_validator(mode="after")
    def _in_order(self) -> Self:
        steps = [step for step, _ in self.unfreeze]
        counts = [float("inf") if count == "all" else count for _, count in self.unfreeze]
        if any(a >= b for a, b in pairwise(steps)) or any(
            a >= b for a, b in pairwise([0, *counts])
        ):
            raise ValueError(f"unfreeze must rise in steps and groups: {list(self.unfreeze)}")
        shares = [share for share, _ in self.image_sizes]
        if shares and (
            shares[0] != 0 or shares[-1] >= 1 or any(a >= b for a, b in pairwise(shares))
        ):
            raise ValueError(f"image_sizes must begin at share 0 and rise, under 1: {shares}")
        if any(size < 32 for _, size in self.image_sizes):
            raise ValueError(f"image_sizes must be 32 or more: {list(self.image_sizes)}")
        return self

    def opening_steps(self, num_groups: int, *, first: int, never: int) -> list[int]:
        """The step from which on each group is trained; `never` for those that are not.

        Raises ConfigError where more groups are asked for than there are.
        """
        opened = [never] * num_groups
        for step, count in reversed(self.unfreeze or ((first, "all"),)):
            number = num_groups if count == "all" else count
            if number > num_groups:
                raise ConfigError(
                    f"train.finetuning.unfreeze: {number} groups from step {step} on, but the "
                    f"backbone has {num_groups}; `all` takes them all"
                )
            opened[num_groups - number :] = [step] * number
        return opened

    def stages(
        self, opening_steps: Sequence[int], steps: range, *, image_size: int
    ) -> list["Stage"]:
        """Cuts the steps on images where a group opens or the size changes."""
        sizes = [
            (steps.start + round(share * len(steps)), size) for share, size in self.image_sizes
        ] or [(steps.start, image_size)]
        changes = {*opening_steps, *(step for step, _ in sizes)}
        bounds = sorted({steps.start, steps.stop, *(step for step in changes if step in steps)})
        return [
            Stage(
                range(start, stop),
                num_open=sum(step <= start for step in opening_steps),
                image_size=[size for step, size in sizes if step <= start][-1],
            )
            for start, stop in pairwise(bounds)
        ]


BadShardPolicy = Literal["stop", "skip"]


Metric = Literal["val_loss", "val_auroc", "val_average_precision", "val_tpr_at_fpr"]


class EarlyStopping(BaseModel, frozen=True, extra="forbid"):
    """Looks at the val split now and then; the best weights by `metric` become the model.

    Of several targets the mean counts. Negatives weigh 1 / inclusion_probability.
    """

    metric: Metric = "val_auroc"  # val_loss: the lower, the others: the higher, the better
    every: int = Field(100, ge=1)  # optimizer steps between looks; the last step is looked at, too
    patience: int = Field(5, ge=1)  # looks without a better value after which training ends
    fpr: float = Field(0.01, gt=0, lt=1)  # of val_tpr_at_fpr: the false-positive rate allowed


Polarity = Literal["positives", "negatives"]


class MixtureEntry(BaseModel, frozen=True, extra="forbid"):
    """The share of some sources in their stream: `proportion`, or `repeat` (default 1)."""

    source: str = Field(min_length=1)  # a name, or a pattern such as near_*, taken together
    stream: Polarity | None = None  # needed where its sources have samples in both
    proportion: float | None = Field(None, ge=0, le=1)  # of the stream; 0 draws none
    repeat: float | None = Field(None, gt=0)  # as often as without the entry, times this
    # Draws of one sample in the whole run; a mixture that needs more is refused.
    max_repetition_factor: float | None = Field(None, gt=0)

    @model_validator(mode="after")
    def _one_share(self) -> Self:
        if self.proportion is not None and self.repeat is not None:
            raise ValueError(f"{self.source}: give proportion or repeat, not both")
        if self.proportion and self.proportion * WINDOW < 1:
            raise ValueError(
                f"{self.source}: proportion {self.proportion:g} is less than 1 in {WINDOW:,}; "
                "give 0, or at least that"
            )
        return self


class Regularization(BaseModel, frozen=True, extra="forbid"):
    """Any of these leaves logits that are no log-odds until they are calibrated."""

    label_smoothing: float = Field(0.0, ge=0, lt=1)  # e: targets are e/2 and 1 - e/2
    # Beta(a, a) is what the shares of mixup and cutmix are drawn from, 0 is off; 0.2 blends a
    # little, 1 evenly. Where both are on, each step takes one of them by chance.
    mixup: float = Field(0.0, ge=0)  # of embeddings and images
    cutmix: float = Field(0.0, ge=0)  # of images; a step on embeddings goes without

    @property
    def mixes(self) -> bool:
        return self.mixup > 0 or self.cutmix > 0


Strength = Literal["off", "crop", "light", "heavy", "randaugment", "trivialaugment"]


class WandbConfig(BaseModel, frozen=True, extra="forbid"):
    """Weights & Biases, which is not installed with this package and else never imported."""

    project: str
    name: str | None = None  # of the run there; default the run's folder
    # offline writes RUN/wandb, which `wandb sync` uploads when you say so; online calls home.
    mode: Literal["offline", "online"] = "offline"


class TrainConfig(BaseModel, frozen=True, extra="forbid"):
    """One run. Everything but the last block decides what comes out."""

    run: str  # folder of the run, e.g. runs/cats
    mode: Mode = "head"  # head: on cached embeddings; finetune: the backbone too, on images
    generation: int | None = Field(None, ge=1)  # of the data set; default the latest
    seed: int = Field(0, ge=0)  # of order, augmentation, dropout and the head's first weights
    batch_size: int = Field(256, ge=2)  # samples a step over all processes; finetune: 64
    positive_share: float = Field(0.25, gt=0, lt=1)  # of each batch: the prior trained on
    steps: int = Field(1000, ge=1)  # optimizer steps in all; finetune: 2000
    learning_rate: float = Field(1e-3, gt=0)  # peak, of the head; finetune: 3e-4
    backbone_learning_rate: float = Field(3e-5, gt=0)  # peak, of the backbone in finetune
    weight_decay: float = Field(1e-4, ge=0)  # decoupled; none on biases and norms
    warmup_steps: int = Field(50, ge=0)  # linear rise before the cosine; again on unfreezing
    hidden_dim: int = Field(256, ge=0)  # units of the head's hidden layer; 0 is a linear head
    dropout: float = Field(0.1, ge=0, lt=1)  # before the last layer
    # How sampling by similarity is undone: weights of 1 / inclusion_probability, or the logarithm
    # of that probability as offset of the logits, or not at all. See train/data/corrections.py.
    correction: Literal["weight", "offset", "none"] = "weight"
    max_weight: float = Field(20.0, ge=1)  # clip of a negative's weight, in units of their mean
    loss: Literal["bce", "focal", "ohem"] = "bce"  # cross-entropy; the others stress what is hard
    focal_gamma: float = Field(2.0, ge=0)  # focal; 0 is bce, more spends less on what is easy
    # focal: weight of positives, 1 - it of negatives. None weighs neither: positive_share and the
    # importance weights balance the classes already.
    focal_alpha: float | None = Field(None, gt=0, lt=1)
    ohem_share: float = Field(0.25, gt=0, le=1)  # ohem; of a batch's negatives, the hardest count
    head_steps: int = Field(300, ge=0)  # finetune: of `steps`, on the head alone before unfreezing
    finetuning: Finetuning = Finetuning()  # rates by depth, unfreezing, image sizes
    regularization: Regularization = Regularization()  # label smoothing, mixup, cutmix
    early_stopping: EarlyStopping | None = None  # by a metric of the val split
    max_grad_norm: float | None = Field(None, gt=0)  # gradients are scaled down to it; logged
    # Of a moving average of the weights, which is evaluated and exported in their place; 0.999
    # averages over about the last 1,000 steps.
    ema_decay: float | None = Field(None, gt=0, lt=1)
    accumulate: int = Field(1, ge=1)  # parts of a process's batch, one in memory at a time
    # Autocast. auto is bf16 on a GPU, else off; fp16, for GPUs without bf16, scales the loss.
    amp: Literal["auto", "bf16", "fp16", "off"] = "auto"
    compile: bool = False  # torch.compile: slow first step of each phase, faster ones after
    # Of images in finetune, and of the views. crop: crop and flip alone; heavy: light and two mild
    # distortions; randaugment: two operations of magnitude 9 of 30; trivialaugment: one of any.
    augment: Strength = "light"
    # finetune; where images are decoded: cuda on the GPU that trains, for machines with few cores
    # a GPU. Its pixels are not quite the CPU's. Written without a GPU at hand: unmeasured.
    decode: Literal["cpu", "cuda"] = "cpu"
    # Views of each positive that the head is trained on: its embedding as the data set has it, and
    # views - 1 of augmented crops, embedded once. 0 and 1 are the data set's alone.
    views: int = Field(1, ge=0)
    max_repetition_factor: float = Field(500.0, gt=0)  # warns when a positive is drawn more often
    # Shares of sources in the stream of positives, or of negatives, such as
    # [{source: near_*, proportion: 0.3}, {source: noise, repeat: 2}]; see train/data/mixture.py.
    mixture: tuple[MixtureEntry, ...] = ()

    checkpoint_every: int = Field(500, ge=1)  # steps that a crash can cost
    keep_checkpoints: int = Field(2, ge=1)
    log_every: int = Field(10, ge=1)  # steps between lines of log.jsonl
    metrics: MetricsServer = MetricsServer()  # for Prometheus, of the main process: {port: 9465}
    wandb: WandbConfig | None = None  # logs to Weights & Biases, too
    device: Literal["auto", "cpu", "cuda"] = "auto"  # auto: a GPU where there is one
    # How several processes share a model in finetune: ddp, each has all of it; fsdp, each a part of
    # every weight, gradient and moment, for backbones that do not fit one GPU.
    parallel: Literal["ddp", "fsdp"] = "ddp"
    # Algorithms that give the same bits each time, on as many processes of the same kind of
    # machine; slower on GPUs, and an operation that has none is an error that names it.
    deterministic: bool = False
    timeout_s: float = Field(600, gt=0)  # for which a process waits for another before it gives up
    workers: int | None = Field(
        None, ge=0
    )  # that decode ahead, a rank; default one a core, at most 8
    # What they are: forked processes, or threads, which need no fork and no more memory, but share
    # the interpreter with the training and wait with it for the disk.
    loader: Literal["process", "thread"] = "process"
    cache_dir: str | None = None  # local copies of remote shards; default ~/.cache/infineg
    # Of such copies, and of embeddings where they are many, all processes of a machine together;
    # what was not used longest goes first. null is no bound.
    cache_gb: float | None = Field(100.0, gt=0)
    # What a missing or damaged shard does: stop the run; or skip: shards that are missing, of
    # another size or without a sidecar are left out, and told; another image of the same shard
    # stands in for one that cannot be decoded.
    on_bad_shard: BadShardPolicy = "stop"

    @model_validator(mode="before")
    @classmethod
    def _defaults_of_mode(cls, data: Any) -> Any:
        if isinstance(data, dict) and data.get("mode") == "finetune":
            return {**_FINETUNE_DEFAULTS, **data}
        return data

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if not 0 < self.num_positives < self.batch_size:
            raise ValueError(
                f"positive_share {self.positive_share:g} of batch_size {self.batch_size} "
                "leaves a batch without positives or without negatives"
            )
        if self.mode == "finetune" and self.head_steps >= self.steps:
            raise ValueError(f"head_steps {self.head_steps} must be under steps {self.steps}")
        self._check_mode()
        self._check_ohem()
        if self.views > 1 and self.augment == "off":
            raise ValueError(f"views {self.views} with augment: off would all be the same picture")
        return self

    def _check_mode(self) -> None:
        if self.mode == "head":
            if self.finetuning != Finetuning() or self.regularization.cutmix:
                raise ValueError(
                    "finetuning and regularization.cutmix are about images; mode: head has none"
                )
            return
        for step, _ in self.finetuning.unfreeze:
            if not self.head_steps <= step < self.steps:
                raise ValueError(
                    f"finetuning.unfreeze step {step} must lie from head_steps {self.head_steps} "
                    f"on and under steps {self.steps}"
                )
        if self.views > 1 and self.head_steps == 0:
            raise ValueError(f"views {self.views} are for steps on embeddings; head_steps is 0")

    def _check_ohem(self) -> None:
        """ohem ranks the samples of a whole batch, with one label each."""
        if self.loss != "ohem":
            return
        if self.accumulate > 1:
            raise ValueError(
                f"accumulate {self.accumulate} with ohem, which needs the losses of the whole "
                "batch at once; take accumulate: 1 and a smaller batch_size"
            )
        if self.regularization.mixes:
            raise ValueError(
                "regularization mixup or cutmix with ohem, which ranks samples of one label; take "
                "loss: bce or focal"
            )

    @property
    def num_positives(self) -> int:
        """Positives of each global batch; the rest are negatives."""
        return round(self.positive_share * self.batch_size)

    @property
    def num_samples(self) -> int:
        """Samples of the whole run, repeated ones counted as often as they are drawn."""
        return self.steps * self.batch_size

    def result_inputs(self) -> dict[str, Any]:
        """The settings that the trained weights depend on."""
        how_only = {
            "run",
            "checkpoint_every",
            "keep_checkpoints",
            "log_every",
            "metrics",
            "wandb",
            "device",
            "parallel",
            "deterministic",
            "timeout_s",
            "workers",
            "loader",
            "cache_dir",
            "cache_gb",
            "on_bad_shard",
        }
        return self.model_dump(mode="json", exclude=how_only)


def load_train_config(
    path: str | Path, overrides: Sequence[str] = ()
) -> tuple[Config, TrainConfig, EvaluateConfig]:
    """The whole config file, checked; raises ConfigError that names the field at fault."""
    config = load_config(path, overrides)
    train_config = _validate(TrainConfig, config.train, "train", path)
    return config, train_config, _validate(EvaluateConfig, config.evaluate, "evaluate", path)


def _validate(
    model: type[ModelT], section: Mapping[str, Any], name: str, path: str | Path
) -> ModelT:
    try:
        return model.model_validate(section)
    except ValidationError as error:
        lines = describe_errors(error).split("\n  ")
        problems = (line.removeprefix("config: ") for line in lines)
        described = "\n  ".join(f"{name}.{problem}" for problem in problems)
        raise ConfigError(f"{path}: {described}") from None


LoaderKind = Literal["process", "thread"]


WINDOW = 1000  # positions of a stream in which each stream of a mixture has its exact count
