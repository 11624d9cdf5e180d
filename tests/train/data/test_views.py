"""Views of positives: what they are, which is drawn, and that they are made once."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from pipeline.dataset import Dataset
from pipeline.encoders.networks import encoder_identity, load_encoder
from pipeline.encoders.preprocessing import decode_rgb
from support.train_runs import (
    ENCODER,
    SHORT,
    assert_same_run,
    read_train_rows,
    run_training,
    state_of,
)
from train.data import views
from train.data.augment import augment
from train.data.rows import TrainRows, read_embeddings
from train.data.views import ViewMaker, draw_views
from train.distributed.world import World
from train.loop.stream import embedding_batches

ALONE = World.alone()


@pytest.fixture
def rows(dataset: Path) -> TrainRows:
    return read_train_rows(str(dataset), Dataset(str(dataset)).read_generation(), ["cat"])


def maker_of(dataset: Path, cache: Path, **settings: Any) -> ViewMaker:
    encoder = load_encoder(ENCODER)
    known: dict[str, Any] = {"strength": "light", "seed": 0}
    return ViewMaker(
        root=str(dataset), encoder=encoder, identity=encoder_identity(encoder, ENCODER),
        cache_dir=str(cache), **known | settings,
    )  # fmt: skip


def test_a_view_is_the_embedding_of_an_augmented_crop(
    dataset: Path, rows: TrainRows, tmp_path: Path
) -> None:
    maker = maker_of(dataset, tmp_path)
    view_VPD = maker.read(rows, num_views=3, world=ALONE)
    assert view_VPD.shape == (2, 40, maker.encoder.embedding_dim)
    assert view_VPD.dtype == np.float16
    # The 5th of the second shard of positives (20 a shard), its second view.
    numbers = [i for i, shard in enumerate(rows.shards) if shard.label]
    shard = rows.shards[numbers[1]]
    row = int(rows.starts[numbers[1]]) + 5
    start = int(rows.tar_offset_N[row])
    image = (dataset / shard.path).read_bytes()[start : start + int(rows.tar_size_N[row])]
    pixels_CHW = torch.from_numpy(decode_rgb(image)).permute(2, 0, 1)
    rng = np.random.default_rng((0, 2, 5, int(shard.sha256[:16], 16)))
    with torch.inference_mode():
        wanted_D = maker.encoder(augment(pixels_CHW, size=32, strength="light", rng=rng)[None])[0]
    assert np.allclose(view_VPD[1, 25], wanted_D.numpy(), atol=2e-3)


def test_views_are_made_once_and_more_of_them_keep_the_first(
    dataset: Path, rows: TrainRows, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[tuple[int, int]] = []
    embed = ViewMaker._embed

    def counted(self: Any, rows: Any, images: Any, number: int, view: int) -> Any:
        made.append((number, view))
        return embed(self, rows, images, number, view)

    monkeypatch.setattr(ViewMaker, "_embed", counted)
    first = maker_of(dataset, tmp_path).read(rows, num_views=3, world=ALONE)
    assert len(made) == 2 * 2, "two shards of positives, two views besides the original"
    again = maker_of(dataset, tmp_path).read(rows, num_views=3, world=ALONE)
    assert len(made) == 4
    assert np.array_equal(first, again)
    more = maker_of(dataset, tmp_path).read(rows, num_views=4, world=ALONE)
    assert [view for _, view in made[4:]] == [3, 3]
    assert np.array_equal(more[:2], first)
    elsewhere = maker_of(dataset, tmp_path / "other").read(rows, num_views=3, world=ALONE)
    assert np.array_equal(elsewhere, first)
    assert np.load(next((tmp_path / "views").glob("*.npy"))).dtype == np.float16


@pytest.mark.parametrize("changed", [{"strength": "heavy"}, {"seed": 1}])
def test_views_of_other_settings_are_others(
    dataset: Path, rows: TrainRows, tmp_path: Path, changed: dict[str, Any]
) -> None:
    first = maker_of(dataset, tmp_path).read(rows, num_views=2, world=ALONE)
    other = maker_of(dataset, tmp_path, **changed).read(rows, num_views=2, world=ALONE)
    assert not np.array_equal(first, other)
    assert len(list((tmp_path / "views").iterdir())) == 2 * 2


def test_draws_are_even_and_a_function_of_the_position() -> None:
    positions = np.arange(40_000)
    drawn = draw_views(positions, num_views=4, seed=7)
    assert np.bincount(drawn) == pytest.approx(10_000, rel=0.03)
    pairs = np.bincount(4 * drawn[:-1] + drawn[1:])
    assert pairs == pytest.approx(2_500, rel=0.1), "the next one does not depend on this one"
    assert np.array_equal(draw_views(positions[500:600], num_views=4, seed=7), drawn[500:600])
    assert not np.array_equal(draw_views(positions, num_views=4, seed=8), drawn)


def test_positives_come_in_all_their_views_with_their_labels_and_weights(
    dataset: Path, rows: TrainRows, tmp_path: Path
) -> None:
    plain, viewed = (
        state_of(dataset, tmp_path / "run", **SHORT, folds=1, views=n, cache_dir=str(tmp_path))
        for n in (1, 3)
    )
    assert plain.view_VPD is None
    embedding_ND = read_embeddings(str(dataset), rows)
    cached = torch.from_numpy(embedding_ND).float()
    views_of_row: dict[int, set[bytes]] = {}
    for step in range(200):
        before, after = (
            embedding_batches(state, embedding_ND).read(step) for state in (plain, viewed)
        )
        for mine, theirs in zip(before[1:], after[1:], strict=True):
            assert torch.equal(mine, theirs), "labels, weights and order know nothing of views"
        is_positive_B = before.targets_BK[:, 0] == 1
        assert torch.equal(after.inputs[~is_positive_B], before.inputs[~is_positive_B])
        for row, embedding_D in zip(
            after.rows_B[is_positive_B].tolist(), after.inputs[is_positive_B], strict=True
        ):
            views_of_row.setdefault(row, set()).add(embedding_D.numpy().tobytes())
    assert {len(seen) for seen in views_of_row.values()} == {3}
    for row, seen in views_of_row.items():
        assert cached[row].numpy().tobytes() in seen


def test_a_second_run_embeds_no_view_again(
    dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    section = SHORT | {"views": 3, "cache_dir": str(tmp_path / "cache")}
    first = run_training(dataset, tmp_path / "a", **section)
    monkeypatch.delattr(views, "augment")
    assert_same_run(run_training(dataset, tmp_path / "b", **section), first)
