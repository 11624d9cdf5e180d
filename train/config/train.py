"""The `train:` section of a config file, and how the whole file is read."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Self

from pydantic import model_validator

from pipeline.config.loading import InvalidSettings, load_config, validate
from pipeline.config.schema import Config
from pipeline.errors import ConfigError
from train.config.data import DataSettings
from train.config.evaluate import EvaluateConfig
from train.config.loop import LoopSettings
from train.config.loss import LossSettings
from train.config.optim import OptimSettings
from train.config.run import RunSettings

# Of a head with a hidden layer; a linear one is a convex problem, with a penalty of its own.
_HIDDEN_DEFAULTS = {"learning_rate": 1e-3, "weight_decay": 1e-4}
# A step of `finetune` decodes and back-propagates images: fewer of them, at smaller rates.
_FINETUNE_DEFAULTS = {
    "steps": 2000, "batch_size": 64, "learning_rate": 3e-4, "weight_decay": 1e-4, "folds": 1,
    "hidden_dim": 256,
}  # fmt: skip
_LEAST_BATCH = 32


# pydantic lists the fields of the last base first.
class TrainConfig(
    RunSettings,
    LossSettings,
    OptimSettings,
    DataSettings,
    LoopSettings,
    frozen=True,
    extra="forbid",
):
    """One run. Each base checks its own settings; checks across them are here."""

    @model_validator(mode="before")
    @classmethod
    def _defaults_of_mode(cls, data: Any) -> Any:
        if not isinstance(data, dict):
            return data
        if data.get("mode") == "finetune":
            return {**_FINETUNE_DEFAULTS, **data}
        return {**_HIDDEN_DEFAULTS, **data} if data.get("hidden_dim") else data

    @model_validator(mode="after")
    def _check_together(self) -> Self:
        if self.mode == "head" and self.regularization.cutmix:
            raise ValueError("regularization.cutmix is about images; mode: head has none")
        if self.mode == "finetune" and self.views > 1 and self.head_steps == 0:
            raise ValueError(f"views {self.views} are for steps on embeddings; head_steps is 0")
        if self.loss == "ohem" and self.accumulate > 1:
            raise ValueError(
                f"accumulate {self.accumulate} with ohem, which needs the losses of the whole "
                "batch at once; use accumulate: 1 and a smaller batch_size"
            )
        return self

    @model_validator(mode="after")
    def _check_fsdp(self) -> Self:
        refused = {
            "mode: head, which trains no backbone": self.mode == "head",
            "compile": self.compile,
            "ema_decay": self.ema_decay is not None,
            "early_stopping": self.early_stopping is not None,
            "amp: fp16 (bf16 does)": self.amp == "fp16",
        }
        for other, is_set in refused.items():
            if self.parallel == "fsdp" and is_set:
                raise ValueError(f"parallel: fsdp does not go with {other}; ddp does")
        return self

    @property
    def num_samples(self) -> int:
        """Samples of the whole run; repeated ones count as often as they are drawn."""
        return self.steps * self.batch_size

    def for_rows(self, num_rows: int) -> Self:
        """batch_size halved for as long as half of it still holds that many rows.

        Not less than `_LEAST_BATCH`, and not one without positives or without negatives.
        """
        size = self.batch_size
        while size % 2 == 0 and size // 2 >= max(num_rows, _LEAST_BATCH):
            if not 0 < round(self.positive_share * (size // 2)) < size // 2:
                break
            size //= 2
        return self.model_copy(update={"batch_size": size})

    def result_inputs(self) -> dict[str, Any]:
        """The settings that the trained weights depend on: all but `RunSettings`."""
        return self.model_dump(mode="json", exclude=set(RunSettings.model_fields))


def load_train_config(
    path: str | Path, overrides: Sequence[str] = ()
) -> tuple[Config, TrainConfig, EvaluateConfig]:
    """Reads and checks the whole config file; raises ConfigError that names the wrong field."""
    config = load_config(path, overrides)
    try:
        train_config = validate(TrainConfig, config.train, section="train")
        evaluate_config = validate(EvaluateConfig, config.evaluate, section="evaluate")
    except InvalidSettings as error:
        raise ConfigError(f"{path}: {error}") from None
    if not train_config.run:
        run = f"runs/{'_'.join(config.target_names)[:64]}"
        train_config = train_config.model_copy(update={"run": run})
    return config, train_config, evaluate_config
