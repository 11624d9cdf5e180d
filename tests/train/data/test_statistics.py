"""Mean and deviation of the features: of photographs, and of an encoder without embeddings too."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from pipeline.dataset import Dataset
from pipeline.encoders.networks import load_encoder
from support.train_runs import ENCODER, read_train_rows
from train.data.bad_shards import RowImages
from train.data.images import ShardImages
from train.data.rows import TrainRows, read_embeddings
from train.data.statistics import embed_photographs, photograph_statistics


@pytest.fixture
def rows(dataset: Path) -> TrainRows:
    return read_train_rows(str(dataset), Dataset(str(dataset)).read_generation(), ["cat"])


def test_generated_pictures_do_not_count(dataset: Path, rows: TrainRows) -> None:
    embedding_ND = read_embeddings(str(dataset), rows)
    sources = np.repeat([shard.source for shard in rows.shards], np.diff(rows.starts))
    is_photo_N = sources != "noise"
    assert (is_photo_N == rows.is_photo_N).all()
    assert 0 < is_photo_N.sum() < len(is_photo_N)
    mean_D, sd_D = photograph_statistics(rows, embedding_ND)
    photographs = embedding_ND[is_photo_N].astype(np.float64)
    np.testing.assert_allclose(mean_D, photographs.mean(0), atol=1e-6)
    np.testing.assert_allclose(sd_D, photographs.std(0), rtol=1e-4)
    none = replace(rows, is_photo_N=np.zeros_like(rows.is_photo_N))
    mean_D, _ = photograph_statistics(none, embedding_ND)
    np.testing.assert_allclose(mean_D, embedding_ND.astype(np.float64).mean(0), atol=1e-6)


def test_a_feature_that_does_not_vary_stays_finite(rows: TrainRows) -> None:
    embedding_ND = np.tile(np.float16([0.5, -1.0]), (len(rows.keys), 1))
    mean_D, sd_D = photograph_statistics(rows, embedding_ND)
    assert (mean_D.tolist(), sd_D.tolist()) == ([0.5, -1.0], [1.0, 1.0])


def test_embeddings_that_the_data_set_lacks_are_made(dataset: Path, rows: TrainRows) -> None:
    images = RowImages(rows, ShardImages(str(dataset), rows.shards, generation=1), "stop")
    encoder = load_encoder(ENCODER).eval()
    mean_D, sd_D = embed_photographs(rows, images, encoder)
    assert mean_D.shape == sd_D.shape == (encoder.embedding_dim,)
    assert torch.isfinite(mean_D).all()
    assert (sd_D > 0).all()
