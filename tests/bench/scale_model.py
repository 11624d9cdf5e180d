"""The cost of a build by the rates of docs/scale.md, as a table.

    python tests/bench/scale_model.py

A model, not a measurement: rates of one machine, multiplied.
"""

from dataclasses import dataclass

# Candidates a second: of a core, of a GPU, of the driver.
CORE_LOOK = 72
CORE_DECODE = 425
GPU_EMBED = 2000
DRIVER_TABLES = 100_000
# Bytes.
SAMPLE = 26_000
LEDGER_ROW = 88
EMBEDDING = 2_560
# Requests: writes and reads of a part, writes of a shard.
PART_WRITES, PART_READS, SHARD_WRITES = 2, 16, 2
SAMPLES_PER_PART, SAMPLES_PER_SHARD = 512, 1000
CANDIDATES_PER_ROUND = 1_000_000

COLUMNS = (
    "", "candidates", "selected", "read TB", "core-hours",
    "GPU-hours + core-hours", "shards GB", "ledger GB", "embeddings GB", "writes", "reads",
    "rounds", "driver hours",
)  # fmt: skip


@dataclass(frozen=True)
class Stream:
    name: str
    num_candidates: float
    share: float  # selected
    bytes_read: float  # of a candidate


STREAMS = (
    Stream("ImageNet", 1.3e6, 0.1, 107_000),
    Stream("Open Images, boxed", 1.7e6, 0.1, 295_000),
    Stream("Open Images, all", 9e6, 0.1, 295_000),
    Stream("a billion from the web", 1e9, 0.01, 100_000),
)


def row_of(stream: Stream) -> list[str]:
    number, hour = stream.num_candidates, 3600
    selected = number * stream.share
    parts, shards = number / SAMPLES_PER_PART, selected / SAMPLES_PER_SHARD
    return [
        stream.name,
        _short(number),
        _short(selected),
        _short(number * stream.bytes_read / 1e12),
        _short(number / CORE_LOOK / hour),
        f"{_short(number / GPU_EMBED / hour)} + {_short(number / CORE_DECODE / hour)}",
        _short(selected * SAMPLE / 1e9),
        _short(number * LEDGER_ROW / 1e9),
        _short(number * EMBEDDING / 1e9),
        _short(PART_WRITES * parts + SHARD_WRITES * shards),
        _short(PART_READS * parts),
        _short(-(-number // CANDIDATES_PER_ROUND)),
        _short(number / DRIVER_TABLES / hour),
    ]


def _short(number: float) -> str:
    """Two digits: 0.14, 3.4, 26, 3,900, 1.3 million."""
    if number >= 1e6:
        return f"{float(f'{number / 1e6:.2g}'):,g} million"
    return f"{float(f'{number:.2g}'):,g}"


def table() -> str:
    # One column per stream: with one row per stream it is too wide to read.
    first, *others = zip(COLUMNS, *(row_of(stream) for stream in STREAMS), strict=True)
    lines = [first, ["---"] * len(first), *others]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in lines)


if __name__ == "__main__":
    print(table())
