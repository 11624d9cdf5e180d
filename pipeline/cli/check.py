"""The first samples of one source, decoded as in a build, without encoder and Ray."""

import itertools

import pyarrow as pa

from pipeline.config.schema import Config
from pipeline.dataset.schema import Positioned
from pipeline.errors import ConfigError
from pipeline.sources import open_entry
from pipeline.worker.steps.decode import decode_batch
from pipeline.worker.steps.read import SourceDefaults, read_batch


def read_first_samples(config: Config, name: str, number: int) -> pa.Table:
    """Rows of at most `number` samples. Raises ConfigError for a source not in the config."""
    entry = config.find_entry(name)
    source = open_entry(entry, config.role_of(entry))
    tables, missing = [], number
    for partition in source.partitions():
        samples = list(itertools.islice(source.read(partition), missing))
        positioned = [Positioned(partition.id, n, sample) for n, sample in enumerate(samples)]
        rows = read_batch(positioned, SourceDefaults.of(config, entry))
        tables.append(decode_batch(rows, config.output.image_settings))
        missing -= len(samples)
        if missing <= 0:
            break
    if not tables:
        raise ConfigError(f"source {name!r}: no partition found, nothing to read")
    return pa.concat_tables(tables)
