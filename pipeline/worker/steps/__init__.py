"""The steps of a row: read, decode, embed, score, select.

A step takes a batch, a `pyarrow.Table`, and returns it with columns added; it names the columns
that it READS and ADDS. It keeps the number and order of rows and does not change other columns,
except `reject_reason` and, when it rejects, `image`. It is deterministic and knows nothing of Ray.
"""
