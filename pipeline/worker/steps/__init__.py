"""What is done to rows: decode, embed, score, select.

A step takes a batch, a `pyarrow.Table`, and returns it with columns added; it names those it
READS and those it ADDS. It keeps number and order of rows, leaves others' columns alone but
`reject_reason` and, when rejecting, `image`, is deterministic, and knows nothing of Ray.
"""
