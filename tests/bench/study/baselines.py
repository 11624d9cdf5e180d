"""Baselines on the same embeddings, by scikit-learn: logits of the held-out images.

Shapes: N training samples, M held-out samples, D embedding, H hidden, K things.
"""

import warnings
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from sklearn.neural_network import MLPClassifier
from sklearn.preprocessing import StandardScaler
from sklearn.svm import OneClassSVM

from train.metrics.ranking import Floats

_NEIGHBOURS = 5


@dataclass(frozen=True)
class Material:
    """The training data of a baseline, and the images that it predicts.

    embeddings are L2-normalised. others: name -> embedding_ND of training images of other things
    that `multi_label` also learns.
    """

    positive_ND: Floats
    negative_ND: Floats
    others: dict[str, Floats]
    held_out_MD: Floats
    seed: int


def logistic(material: Material) -> Floats:
    """L2-regularised logistic regression on standardised embeddings, classes balanced."""
    scaler = StandardScaler().fit(np.concatenate([material.positive_ND, material.negative_ND]))
    labels_N = np.repeat([1, 0], [len(material.positive_ND), len(material.negative_ND)])
    model = LogisticRegression(C=0.01, class_weight="balanced", max_iter=2000)
    model.fit(
        scaler.transform(np.concatenate([material.positive_ND, material.negative_ND])), labels_N
    )
    return _float32(model.decision_function(scaler.transform(material.held_out_MD)))


def neighbours(material: Material) -> Floats:
    """The mean of the 5 largest cosines to the positives: no negatives."""
    cosine_MN = material.held_out_MD @ material.positive_ND.T
    k = min(_NEIGHBOURS, cosine_MN.shape[1])
    return _float32(np.partition(cosine_MN, -k, axis=1)[:, -k:].mean(axis=1))


def one_class_svm(material: Material) -> Floats:
    """RBF kernel, nu 0.05 (Scholkopf et al., Neural Computation 2001): no negatives."""
    model = OneClassSVM(kernel="rbf", gamma="scale", nu=0.05).fit(material.positive_ND)
    return _float32(model.decision_function(material.held_out_MD))


def multi_label(material: Material) -> Floats:
    """A network for K classes with one sigmoid each, trained without background.

    It answers "" where no sigmoid passes its threshold. One hidden layer of 256, binary
    cross-entropy; the logit is the one of the target.
    """
    groups = [material.positive_ND, *material.others.values()]
    embedding_ND = np.concatenate(groups)
    labels_NK = np.repeat(np.eye(len(groups), dtype=int), [len(group) for group in groups], axis=0)
    scaler = StandardScaler().fit(embedding_ND)
    model = MLPClassifier(
        (256,),
        alpha=1e-3,
        max_iter=60,
        batch_size=min(64, len(embedding_ND)),
        random_state=material.seed,
    )
    with warnings.catch_warnings():
        # The number of passes is fixed, so a warning about convergence is expected.
        warnings.simplefilter("ignore", ConvergenceWarning)
        model.fit(scaler.transform(embedding_ND), labels_NK)
    hidden_MH = scaler.transform(material.held_out_MD) @ model.coefs_[0] + model.intercepts_[0]
    # The logit itself: a probability of 1 - 1e-17 is 1, and ties would hide the order.
    return _float32(np.maximum(hidden_MH, 0) @ model.coefs_[1][:, 0] + model.intercepts_[1][0])


def _float32(logits_M: Floats) -> Floats:
    """The type of a detector's logits: thresholds are set between adjacent values of this type."""
    return logits_M.astype(np.float32)


BASELINES: dict[str, Callable[[Material], Floats]] = {
    "logistic": logistic,
    "neighbours": neighbours,
    "one_class_svm": one_class_svm,
    "multi_label": multi_label,
}
