"""The pool: candidates that were embedded once, for every data set that takes from them.

    pool.json                                  by which encoder, of images of which size
    <kind>-<hash>/source.json                  a source, and how it was cut into spans
    <kind>-<hash>/<span>-<part>.parquet        embedded candidates, with small previews

The name of a source's folder follows from its kind and its params, that of a span from the ids of
its partitions: a build finds what it would read itself, in the same order and in the same batches.
A file is complete when it is there, and everything is written anew to the same bytes.
"""

from pipeline.pool.pool import Pool, PooledPart, PooledSource

__all__ = ["Pool", "PooledPart", "PooledSource"]
