"""Data sets whose negatives are half mined: a model trained on the first half mines the rest."""

import json
import shutil
from pathlib import Path

from pipeline import storage
from pipeline.mine.driver import mine
from study.datasets import Built, Choice, DataSets
from train.config import TrainConfig
from train.evaluate.run import evaluate_run
from train.loop.trainer import train
from train.mining.scorer import prepare_scorer


def get_mined(data_sets: DataSets, choice: Choice, *, train_config: TrainConfig) -> Built:
    """Build, train, calibrate, mine; if that is done already, only returns the generation.

    choice: `budget` negatives by similarity, then `mined_budget` more by the model.
    """
    built = data_sets.get(choice)
    record = data_sets.record_of(choice, "mined")
    if not record.exists():
        path = Path(train_config.run)
        train_config = train_config.model_copy(update={"generation": built.generation})
        train(built.config, train_config, resume=(path / "checkpoints").exists())
        evaluate_run(path)  # mining asks for a calibrated model
        only = (data_sets.stream_source(choice),)
        scorer = prepare_scorer(built.config, path)
        mined = mine(built.config, scorer, budget=choice.mined_budget, only=only)
        number = mined.generation.number
        storage.write_atomic(str(record), json.dumps({"generation": number}).encode())
        shutil.rmtree(path)
    return Built(built.config, json.loads(record.read_text())["generation"])
