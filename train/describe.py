"""What `model.json` says of a trained detector."""

from collections.abc import Mapping

from pydantic import JsonValue

from train.config.settings import Regularization
from train.data.mixture import mix
from train.job import Job
from train.model.detector import ModelInfo


def describe_model(job: Job, settings: Mapping[str, JsonValue], *, steps: int) -> ModelInfo:
    """`model.json` of the not yet calibrated detector, trained for `steps`."""
    train_config, encoder = job.train_config, job.detector.encoder
    return ModelInfo(
        targets=job.config.target_names,
        encoder=job.config.encoder,
        preprocessing=encoder.preprocessing,
        embedding_dim=encoder.embedding_dim,
        hidden_dim=train_config.hidden_dim,
        dropout=train_config.dropout,
        mode=train_config.mode,
        positive_share=train_config.num_positives / train_config.batch_size,
        trained_priors=_trained_priors(job),
        generation=job.generation.number,
        segments=job.segments,
        dataset=job.dataset.fingerprint,
        samples_seen=steps * train_config.batch_size,
        settings=dict(settings),
    )


def _trained_priors(job: Job) -> dict[str, float] | None:
    """Each target's share of the mix that its logits were trained on, where that is the stream's.

    None where hard negatives count for more than they are, easy samples for less, or labels are
    smoothed or mixed: then a logit is no log-odds in any mix that is known. Positives of other
    targets are negatives as often as they are drawn.
    """
    train_config = job.train_config
    is_regularized = train_config.regularization != Regularization()
    if train_config.correction == "none" or train_config.loss != "bce" or is_regularized:
        return None
    share_of_label = train_config.num_positives / train_config.batch_size
    label_N = job.rows.label_N
    rate_N = mix(job.rows, train_config.mixture).draw_rate_N
    num_positives = rate_N[label_N != ""].sum()
    return {
        target: float(share_of_label * rate_N[label_N == target].sum() / num_positives)
        for target in job.rows.targets
    }
