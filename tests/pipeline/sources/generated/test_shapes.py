"""The drawn world: labels of its pictures, and that only form shows a cat."""

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from sklearn.model_selection import cross_val_predict
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from pipeline.errors import ConfigError
from pipeline.sources import open_source
from pipeline.sources.generated import picture_rng, shapes
from support.pictures import first_pictures, pixels_at

GOLDEN_SHAPES = {
    "cat": [[153, 172, 172, 140], [150, 138, 131, 157], [119, 150, 156, 116], [119, 131, 118, 116]],
    "owl": [[94, 73, 82, 90], [52, 71, 72, 86], [48, 82, 81, 55], [42, 130, 121, 45]],
    "sofa": [[221, 228, 226, 214], [119, 123, 136, 187], [81, 86, 85, 123], [97, 102, 90, 121]],
}


def test_shapes_say_what_they_show() -> None:
    source = open_source("shapes", {"content": ["cat", "tiger", "far"], "image_size": 64})
    samples = {s.class_name: s for s in first_pictures(source, 15)}
    assert set(samples) == {"cat", "tiger", *shapes.GROUPS["far"]}
    cat, tiger, sofa = samples["cat"], samples["tiger"], samples["sofa"]
    assert (cat.label, cat.label_state, cat.stratum) == ("cat", "verified_present", None)
    assert (tiger.label, tiger.label_state, tiger.stratum) == ("", "verified_absent", "near")
    assert (sofa.label, sofa.label_state, sofa.stratum) == ("", "verified_absent", "far")
    assert cat.uri == "shapes.cat://0/0"


def test_unknown_content_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"unicorn: none of cat, near, far, tiger"):
        open_source("shapes", {"content": ["cat", "unicorn"]})


def test_classes_take_turns() -> None:
    source = open_source("shapes", {"content": ["near"], "image_size": 64})
    names = [s.class_name for s in first_pictures(source, 12)]
    assert sorted(names) == sorted(shapes.GROUPS["near"] * 2)


@pytest.mark.parametrize("name", shapes.CLASS_NAMES)
def test_pictures_of_a_class_differ_and_share_no_scene_with_cats(name: str) -> None:
    """Corners show the backdrop: the class is part of the address, so these differ too."""
    source = open_source("shapes", {"content": [name], "image_size": 64})
    cats = open_source("shapes", {"content": ["cat"], "image_size": 64, "seed": name == "cat"})
    images = [pixels_at(s.image, 64) for s in first_pictures(source, 6)]
    corners = [image[:6, :6].tobytes() for image in images]
    others = [pixels_at(s.image, 64)[:6, :6].tobytes() for s in first_pictures(cats, 6)]
    assert len({*corners, *others}) == 12


def test_shapes_of_an_address_look_the_same_on_any_machine() -> None:
    """Coarsely: the last bit of a sine may differ between machines and move a contour."""
    for name, golden in GOLDEN_SHAPES.items():
        pixels = shapes.draw(picture_rng(f"shapes.{name}", 0, 0), shapes.Params(), class_name=name)
        coarse = cv2.resize(pixels, (4, 4), interpolation=cv2.INTER_AREA).mean(axis=2)
        np.testing.assert_allclose(coarse, golden, atol=2)


@pytest.fixture(scope="module")
def thumbnails() -> dict[str, NDArray[np.float64]]:
    """float64[600, 8, 8, 3] for each group."""
    found = {}
    for group in shapes.GROUPS:
        source = open_source("shapes", {"content": [group], "image_size": 128})
        pictures = [pixels_at(sample.image, 8) for sample in first_pictures(source, 600)]
        found[group] = np.array(pictures, np.float64)
    return found


@pytest.mark.parametrize("negatives", [("near",), ("far",), ("near", "far")])
def test_neither_mean_colour_nor_a_thumbnail_tells_cats(
    thumbnails: dict[str, NDArray[np.float64]], negatives: tuple[str, ...]
) -> None:
    cats = thumbnails["cat"]
    others = np.concatenate([thumbnails[group][: 600 // len(negatives)] for group in negatives])
    assert _auroc(cats.mean(axis=(1, 2)), others.mean(axis=(1, 2))) < 0.75
    assert _auroc(cats.reshape(600, -1), others.reshape(600, -1)) < 0.75


def _auroc(present: NDArray[np.floating], absent: NDArray[np.floating]) -> float:
    """Cross-validated, of a linear model; C = 0.01 does best on thumbnails, of 1, 0.01, 0.001."""
    features = np.concatenate([present, absent])
    labels = np.repeat([1, 0], [len(present), len(absent)])
    model = make_pipeline(StandardScaler(), LogisticRegression(C=0.01, max_iter=2000))
    logits = cross_val_predict(model, features, labels, cv=5, method="decision_function")
    return float(roc_auc_score(labels, logits))


@pytest.mark.slow
def test_a_frozen_encoder_tells_cats() -> None:
    """The task can be solved: what a linear model cannot see in colours, an encoder sees."""
    # Imported here, because the quick tests must not wait for torch.
    from pipeline.config.encoder import EncoderConfig
    from pipeline.encoders.preprocessing import crop_pixels
    from pipeline.encoders.runtimes import prepare_encoder

    prepared = prepare_encoder(EncoderConfig(name="efficientnet_lite0"), gpus_per_worker=0)
    runtime = prepared.open()

    def embed(content: list[str]) -> NDArray[np.floating]:
        samples = first_pictures(open_source("shapes", {"content": content}), 300)
        crops = [crop_pixels(s.image, prepared.preprocessing) for s in samples]
        return np.concatenate(
            [runtime.embed(np.stack(crops[i : i + 50])) for i in range(0, 300, 50)]
        )

    assert _auroc(embed(["cat"]), embed(["near", "far"])) > 0.95
