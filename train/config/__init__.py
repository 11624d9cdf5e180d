"""All settings of a run and of its evaluation."""

from train.config.data import WINDOW, MixtureEntry, Polarity, Strength
from train.config.evaluate import EvaluateConfig
from train.config.loop import EarlyStopping, Finetuning, Metric, Mode
from train.config.loss import Correction, Regularization
from train.config.run import BadShardPolicy, LoaderKind, TrackerConfig
from train.config.train import TrainConfig, load_train_config

__all__ = [
    "WINDOW",
    "BadShardPolicy",
    "Correction",
    "EarlyStopping",
    "EvaluateConfig",
    "Finetuning",
    "LoaderKind",
    "Metric",
    "MixtureEntry",
    "Mode",
    "Polarity",
    "Regularization",
    "Strength",
    "TrackerConfig",
    "TrainConfig",
    "load_train_config",
]
