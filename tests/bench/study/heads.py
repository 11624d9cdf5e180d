"""`PYTHONPATH=tests/bench python -m study.heads PHOTOS --out DIR`: heads compared on embeddings.

Whether a hidden layer or views help, and whether the difference of neighbours does. Heads
are those of the trainer, trained like it does on five folds; test pictures are of other origins.
Shapes: B batch, D embedding, F folds, N rows, P positives, S seeds, V views.
"""

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Annotated, Any

import numpy as np
import torch
import typer
from numpy.typing import NDArray
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits

from pipeline.config.encoder import EncoderConfig
from pipeline.encoders.networks import load_encoder
from pipeline.encoders.preprocessing import decode_rgb
from study.embedded import Embedded, embed_photos
from study.photos import Photo, find_photos
from train.config import TrainConfig
from train.data.augment import augment
from train.loop.optim import make_optimizer, set_learning_rates
from train.metrics.calibration import calibrate_target
from train.model.detector import Head, Standardize

Floats = NDArray[np.float32]
_CARNIVORES = range(2085620, 2138442)  # of wnids: dogs to meerkats
_NUM_CATS, _NUM_VIEWS = 300, 8
_NUM_NEAREST = (10, 5)  # positives, negatives
_ALPHA, _DELTA = 0.01, 0.05
COLUMNS = ("near@95", "near@98", "far@95", "far@98", "TPR", "1 - AUROC")
app = typer.Typer(add_completion=False)


@dataclass(frozen=True)
class World:
    """Rows to train on, positives first, and those of other origins to test on."""

    embedding_ND: Floats
    is_positive_N: NDArray[np.bool_]
    fold_N: NDArray[np.int64]
    views_VPD: Floats | None
    cats: Floats
    near: Floats
    far: Floats
    seed: int


@dataclass(frozen=True)
class Arm:
    hidden_dim: int = 0
    has_views: bool = False
    has_neighbours: bool = False


ARMS = {
    "hidden layer of 256": Arm(hidden_dim=256),
    "as the trainer does": Arm(),
    "8 views": Arm(has_views=True),
    "and the difference of neighbours": Arm(has_neighbours=True),
}
# Look-alikes, clothes, things and skies or (B) ImageNet; positives, negatives (None: all).
SIZES: dict[str, tuple[int, int | None]] = {
    "A": (300, None), "B": (300, None), "C": (40, 100), "10 and 30": (10, 30),
    "17 and 40": (17, 40), "50 and 200": (50, 200),
}  # fmt: skip


@app.command()
def main(
    photos: Annotated[str, typer.Argument(help="Folder with cats/, near/, random/, ...")],
    out: Annotated[Path, typer.Option(help="Folder for all that it makes.")] = Path("study"),
    seeds: Annotated[int, typer.Option(help="Runs of each arm.")] = 10,
    worlds: Annotated[list[str], typer.Option()] = list(SIZES),  # noqa: B006
) -> None:
    """Percent of false positives of each arm, and differences to the first: DIR/heads.json."""
    embedded = embed_photos(find_photos(photos), out / "embeddings.npz")
    views_VPD = _embed_views(embedded, out / "views.npy")
    results = []
    for name in worlds:
        worlds_S = [make_world(embedded, views_VPD, name, seed) for seed in range(seeds)]
        rows_of = {arm: measure_all(worlds_S, settings) for arm, settings in ARMS.items()}
        first_SC = next(iter(rows_of.values()))
        for arm, row_SC in rows_of.items():
            difference_SC = row_SC - first_SC
            error_C = difference_SC.std(axis=0, ddof=min(1, seeds - 1)) / seeds**0.5
            line = {"world": name, "arm": arm, "seeds": seeds}
            for index, column in enumerate(COLUMNS):
                numbers = (row_SC.mean(0), difference_SC.mean(0), error_C)
                line[column] = [round(float(each[index]), 2) for each in numbers]
            results.append(line)
            print(json.dumps(line), flush=True)
    (out / "heads.json").write_text(json.dumps(results, indent=1) + "\n")


def measure_all(worlds: Sequence[World], arm: Arm) -> NDArray[np.float64]:
    """`COLUMNS` of each world (S, 6), in percent."""
    return np.array([_measure(world, arm) for world in worlds])


def make_world(embedded: Embedded, views_VPD: Floats | None, name: str, seed: int) -> World:
    """One seed's cats, negatives and folds, and the pictures of other origins to test on."""
    rng = np.random.default_rng(seed)
    kinds = [_kind_of(photo) for photo in embedded.photos]
    cats, near, things, carnivores, others = (
        rng.permutation([n for n, kind in enumerate(kinds) if kind == wanted])
        for wanted in ("cats", "near", "random", "carnivores", "imagenet")
    )
    negatives, test = np.concatenate([near, things]), (carnivores, others)
    if name == "B":
        negatives, test = np.concatenate([carnivores, others]), (near, things)
    num_positives, num_negatives = SIZES[name]
    if num_negatives is not None:  # as many look-alikes as others
        half = num_negatives // 2
        negatives = np.concatenate([near[:half], things[: num_negatives - half]])
    rows = np.concatenate([cats[:num_positives], negatives])
    image_ND = embedded.embedding_NVD[:, 0]
    return World(
        embedding_ND=image_ND[rows],
        is_positive_N=np.arange(len(rows)) < num_positives,
        fold_N=rng.integers(5, size=len(rows)),
        views_VPD=None if views_VPD is None else views_VPD[:, cats[:num_positives]],
        cats=image_ND[cats[_NUM_CATS:]],
        near=image_ND[test[0]],
        far=image_ND[test[1]],
        seed=seed,
    )


def _kind_of(photo: Photo) -> str:
    folder, _, rest = photo.kind.partition("/")
    if folder != "imagenet_sample":
        return folder
    return "carnivores" if int(rest[1:9]) in _CARNIVORES else "imagenet"


def _measure(world: World, arm: Arm) -> list[float]:
    head = _train(world, arm)
    tested = (world.cats, world.near, world.far)
    scores = [_logits(head, each) for each in tested]
    if arm.has_neighbours:
        scores = _with_neighbours(world, head, tested, scores)
    cats, near, far = scores
    rates = [
        100 * float(np.mean(negatives >= np.quantile(cats, 1 - tpr, method="lower")))
        for negatives in (near, far)
        for tpr in (0.95, 0.98)
    ]
    is_cat = np.repeat([True, False], [len(cats), len(near)])
    area = roc_auc_score(is_cat, np.concatenate([cats, near]))
    return [*rates, 100 * _tpr_at_threshold(head, world), 100 * (1 - float(area))]


def _tpr_at_threshold(head: Head, world: World) -> float:
    """At the threshold that the trainer would guarantee, from held-out logits of training."""
    calibration = calibrate_target(
        _held_out_logits(head, world).astype(np.float64),
        world.is_positive_N,
        np.ones(len(world.fold_N)),
        target="cat",
        alpha=_ALPHA,
        delta=_DELTA,
        deploy_prior=0.5,
    )
    head.eval()
    return float(np.mean(_logits(head, world.cats) >= calibration.threshold))


def _train(world: World, arm: Arm) -> Head:
    torch.manual_seed(world.seed)
    settings = TrainConfig(run="none", hidden_dim=arm.hidden_dim).for_rows(len(world.fold_N))
    embedding_ND = torch.from_numpy(world.embedding_ND)
    head = Head(
        embedding_ND.shape[1],
        1,
        hidden_dim=settings.hidden_dim,
        dropout=settings.dropout,
        num_folds=settings.folds,
    )
    assert isinstance(head.standardize, Standardize)
    head.standardize.set(embedding_ND.mean(0), embedding_ND.std(0).clamp(min=1e-6))
    detector: Any = SimpleNamespace(head=head)
    optimizer = make_optimizer(detector, settings, num_rows=len(world.fold_N))
    fold_N, folds_F = torch.from_numpy(world.fold_N), torch.arange(settings.folds)
    target_N = torch.from_numpy(world.is_positive_N).float()
    for step, rows_B in enumerate(_batches(world, settings)):
        inputs_BD = embedding_ND[rows_B]
        if arm.has_views:
            inputs_BD = _draw_views(world, rows_B, inputs_BD, step)
        set_learning_rates(optimizer, step)
        weight_BF = (fold_N[rows_B][:, None] != folds_F).float() / (1 - 1 / settings.folds)
        logits_BF = head(inputs_BD, by_fold=True)[:, :, 0]
        loss_BF = _loss(logits_BF, target_N[rows_B][:, None].expand_as(logits_BF))
        optimizer.zero_grad()
        (loss_BF * weight_BF).mean().backward()
        optimizer.step()
    return head.eval()


_loss = partial(binary_cross_entropy_with_logits, reduction="none")


def _batches(world: World, settings: TrainConfig) -> Iterator[NDArray[np.int64]]:
    rng = np.random.default_rng([world.seed, 1])
    kinds = (np.flatnonzero(world.is_positive_N), np.flatnonzero(~world.is_positive_N))
    counts = (settings.num_positives, settings.batch_size - settings.num_positives)
    orders = [_endless(rows, rng) for rows in kinds]
    for _ in range(settings.steps):
        pairs = zip(orders, counts, strict=True)
        yield np.array([next(order) for order, count in pairs for _ in range(count)])


def _endless(rows: NDArray[np.int64], rng: np.random.Generator) -> Iterator[np.int64]:
    while True:
        yield from rng.permutation(rows)


def _draw_views(world: World, rows_B: NDArray[np.int64], inputs_BD: Tensor, step: int) -> Tensor:
    rng, inputs_BD = np.random.default_rng([world.seed, 2, step]), inputs_BD.clone()
    assert world.views_VPD is not None
    for place, row in enumerate(rows_B):
        view = rng.integers(_NUM_VIEWS)
        if world.is_positive_N[row] and view:
            inputs_BD[place] = torch.from_numpy(world.views_VPD[view - 1, row])
    return inputs_BD


def _held_out_logits(head: Head, world: World) -> NDArray[np.float32]:
    with torch.inference_mode():
        held_out = head.eval().held_out_logits(torch.from_numpy(world.embedding_ND), world.fold_N)
    head.train()
    return held_out[:, 0].numpy()


def _logits(head: Head, embedding_ND: Floats) -> NDArray[np.float32]:
    with torch.inference_mode():
        return head(torch.from_numpy(embedding_ND))[:, 0].numpy()


def _with_neighbours(
    world: World, head: Head, tested: tuple[Floats, ...], scores: list[Floats]
) -> list[Floats]:
    """Log-odds of logit and difference together, fitted on held-out rows of training."""
    mean_D, sd_D = world.embedding_ND.mean(0), world.embedding_ND.std(0).clip(1e-6)

    def standardize(embedding_ND: Floats) -> Floats:
        features_ND = (embedding_ND - mean_D) / sd_D
        return features_ND / np.linalg.norm(features_ND, axis=1, keepdims=True)

    trained_ND, is_positive_N = standardize(world.embedding_ND), world.is_positive_N

    def difference(query_MD: Floats, known_N: NDArray[np.bool_]) -> Floats:
        means = []
        for members_N, k in zip((is_positive_N, ~is_positive_N), _NUM_NEAREST, strict=True):
            cosine_MN = query_MD @ trained_ND[members_N & known_N].T
            means.append(np.sort(cosine_MN, axis=1)[:, -k:].mean(axis=1))
        return means[0] - means[1]

    own_N = np.zeros(len(trained_ND), np.float32)
    for fold in range(5):
        is_held_out_N = world.fold_N == fold
        own_N[is_held_out_N] = difference(trained_ND[is_held_out_N], ~is_held_out_N)
    both_N2 = np.stack([_held_out_logits(head, world), own_N], axis=1)
    head.eval()
    center_2, spread_2 = both_N2.mean(0), both_N2.std(0)
    fit = LogisticRegression(class_weight="balanced").fit(
        (both_N2 - center_2) / spread_2, is_positive_N
    )
    every_N = np.ones(len(trained_ND), bool)
    pairs = (
        np.stack([score, difference(standardize(embedding), every_N)], axis=1)
        for score, embedding in zip(scores, tested, strict=True)
    )
    decide: Callable[[Floats], Floats] = fit.decision_function
    return [decide((pair - center_2) / spread_2) for pair in pairs]


def _embed_views(embedded: Embedded, path: Path) -> Floats:
    """views_VPD of augmented crops; zeros for all but positives. Kept in `path`."""
    if path.exists():
        return np.load(path).astype(np.float32)
    encoder = load_encoder(EncoderConfig()).eval()
    shape = (_NUM_VIEWS - 1, *embedded.embedding_NVD[:, 0].shape)
    views_VPD, size = np.zeros(shape, np.float16), encoder.preprocessing.image_size
    cats = [n for n, photo in enumerate(embedded.photos) if _kind_of(photo) == "cats"]
    for view in range(_NUM_VIEWS - 1):
        for start in range(0, len(cats), 64):
            pixels = []
            for n in cats[start : start + 64]:
                image = decode_rgb(Path(embedded.photos[n].path).read_bytes())
                rng, whole = np.random.default_rng([view, n]), torch.from_numpy(image)
                crop = augment(whole.permute(2, 0, 1), size=size, strength="light", rng=rng)
                pixels.append(crop)
            with torch.inference_mode():
                views_VPD[view, cats[start : start + 64]] = encoder(torch.stack(pixels)).numpy()
    np.save(path, views_VPD)
    return views_VPD.astype(np.float32)


if __name__ == "__main__":
    app()
