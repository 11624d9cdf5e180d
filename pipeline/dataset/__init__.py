"""The data set on disk: its schema, records, shards, tables, commits, lease and duplicates."""

from pipeline.dataset.dataset import Dataset

__all__ = ["Dataset"]
