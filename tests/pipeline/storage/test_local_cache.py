"""The bounded folder of local copies that processes share: real processes, a real S3 server."""

import contextlib
import hashlib
import os
import pickle
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import IO

import pytest

from pipeline import storage
from pipeline.errors import InfinegError
from pipeline.storage import LocalCache

SIZE = 200_000
NUM_SHARDS, BOUND = 12, 5 * SIZE

# Reads shards in an order of its own and says how many it fetched. Exits with 1 on a wrong byte.
READER = """
import hashlib, random, sys
from pathlib import Path
from pipeline import storage
root, folder, seed, bound, size, number, reads = sys.argv[1:]
cache = storage.LocalCache(Path(folder), int(bound))
fetched = 0
def fetch(uri):
    def write(file):
        global fetched
        fetched += 1
        storage.fetch(uri, file)
    return write
rng = random.Random(int(seed))
for _ in range(int(reads)):
    shard = rng.randrange(int(number))
    content = cache.map(f"{shard}.tar", int(size), fetch(f"{root}/{shard}.tar"))[:]
    if content != hashlib.shake_128(b"%d" % shard).digest(int(size)):
        sys.exit(1)
print(fetched)
"""


def content_of(shard: int) -> bytes:
    return hashlib.shake_128(b"%d" % shard).digest(SIZE)


def start_reader(
    root: str, folder: Path, seed: int, reads: int = 150, number: int = NUM_SHARDS
) -> subprocess.Popen[str]:
    arguments = [root, folder, seed, BOUND, SIZE, number, reads]
    return subprocess.Popen(
        [sys.executable, "-c", READER, *map(str, arguments)], stdout=subprocess.PIPE, text=True
    )


@pytest.fixture
def shards_on_s3(s3_root: str) -> str:
    for shard in range(NUM_SHARDS):
        storage.write_atomic(f"{s3_root}/{shard}.tar", content_of(shard))
    return s3_root


def total_bytes(folder: Path) -> int:
    total = 0
    for entry in os.scandir(folder):
        with contextlib.suppress(FileNotFoundError):
            total += os.stat(entry.path).st_size
    return total


def test_two_processes_share_a_bounded_folder_and_fetch_again_what_was_evicted(
    shards_on_s3: str, tmp_path: Path
) -> None:
    folder = tmp_path / "cache"
    folder.mkdir()
    readers = [start_reader(shards_on_s3, folder, seed) for seed in range(2)]
    largest = 0
    while any(reader.poll() is None for reader in readers):
        largest = max(largest, total_bytes(folder))
        time.sleep(0.002)
    outputs = [reader.communicate()[0] for reader in readers]
    assert [reader.returncode for reader in readers] == [0, 0], "every byte was right"
    assert largest + SIZE > BOUND, "the bound was reached"
    assert largest <= BOUND + 2 * SIZE, "and exceeded by at most a shard each"
    assert sum(map(int, outputs)) > NUM_SHARDS, "what was evicted was fetched again"


def test_processes_that_want_the_same_fetch_it_once(shards_on_s3: str, tmp_path: Path) -> None:
    readers = [start_reader(shards_on_s3, tmp_path / "cache", seed, 20, 4) for seed in range(3)]
    outputs = [reader.communicate()[0] for reader in readers]
    assert sum(map(int, outputs)) == 4


def test_threads_that_want_the_same_write_it_once(tmp_path: Path) -> None:
    cache, calls = LocalCache(tmp_path, 10 * SIZE), []

    def write(file: IO[bytes]) -> None:
        calls.append(1)
        time.sleep(0.05)
        file.write(content_of(0))

    with ThreadPoolExecutor(8) as pool:
        maps = list(pool.map(lambda _: cache.map("x", SIZE, write)[:], range(16)))
    assert set(maps) == {content_of(0)}
    assert calls == [1]
    assert {path.name for path in tmp_path.iterdir()} == {"x", ".lock"}


def test_a_partial_copy_is_never_seen_and_its_room_is_free_again(tmp_path: Path) -> None:
    """Killed in the middle of a download; then one whose download fails."""
    script = (
        "import sys, time\nfrom pathlib import Path\nfrom pipeline.storage import LocalCache\n"
        "def write(file):\n"
        "    file.write(b'x' * 1000); file.flush(); print('half', flush=True); time.sleep(60)\n"
        f"LocalCache(Path({str(tmp_path)!r}), {BOUND}).map('a', {SIZE}, write)\n"
    )
    reader = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE)
    assert reader.stdout.readline() == b"half\n"
    assert not (tmp_path / "a").exists()
    assert total_bytes(tmp_path) == SIZE, "room is taken before it is used"
    reader.send_signal(signal.SIGKILL)
    reader.communicate()

    def fail(file: IO[bytes]) -> None:
        file.write(b"y" * 500)
        raise ConnectionError

    cache = LocalCache(tmp_path, BOUND)
    for name in ("a", "b"):
        with pytest.raises(ConnectionError):
            cache.map(name, SIZE, fail)
    assert {path.name for path in tmp_path.iterdir()} == {".lock"}
    assert cache.map("a", SIZE, lambda file: _write(file, 0))[:] == content_of(0)


def _write(file: IO[bytes], shard: int) -> None:
    file.write(content_of(shard))


def test_what_was_not_used_longest_goes_first_and_what_is_mapped_stays(tmp_path: Path) -> None:
    """A fourth of three: of this process's own maps those are given up that are in the way."""
    mine, other = LocalCache(tmp_path, 3 * SIZE), LocalCache(tmp_path, 3 * SIZE)
    held = other.map("0", SIZE, lambda file: _write(file, 0))
    for number in (1, 2, 3):
        mine.map(str(number), SIZE, lambda file, n=number: _write(file, n))
    names = {path.name for path in tmp_path.iterdir()} - {".lock"}
    assert names == {"0", "2", "3"}, "1 is older than 2, and 0 is in use"
    assert held[:] == content_of(0)
    del held
    other.map("3", SIZE, lambda file: _write(file, 3))
    for number in (4, 5):  # in place of 2, then of its own 0
        other.map(str(number), SIZE, lambda file, n=number: _write(file, n))
    names = {path.name for path in tmp_path.iterdir()} - {".lock"}
    assert names == {"3", "4", "5"}


def test_a_copy_of_another_size_is_written_anew(tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(b"half")
    cache = LocalCache(tmp_path)
    assert cache.map("x", SIZE, lambda file: _write(file, 5))[:] == content_of(5)
    with pytest.raises(InfinegError, match=r"y: 4 bytes written, not 200,000"):
        cache.map("y", SIZE, lambda file: file.write(b"half") and None)
    assert not (tmp_path / "y").exists()
    again = pickle.loads(pickle.dumps(cache))
    assert again.map("x", SIZE, lambda file: _write(file, 0))[:] == content_of(5)


def test_fetched_bytes_are_told_with_their_hash(s3_root: str) -> None:
    content = os.urandom(9 * 2**20)
    storage.write_atomic(f"{s3_root}/x.tar", content)
    with open(os.devnull, "wb") as file:
        fetched = storage.fetch(f"{s3_root}/x.tar", file)
    assert fetched == (hashlib.sha256(content).hexdigest(), len(content))
    uris = [f"{s3_root}/x.tar", f"{s3_root}/no_such.tar"]
    assert storage.sizes_of(uris) == {uris[0]: len(content)}
