"""Batches and bounds without HTTP, with networks that are slow or have a bug."""

import asyncio
import threading
import time
from collections.abc import Sequence

import pytest
from fastapi import HTTPException

from train.serve.admission import Admission
from train.serve.batching import MAX_BATCH, Batcher
from train.serve.model import Prediction


def test_images_that_wait_for_the_network_make_the_next_batches() -> None:
    sizes: list[int] = []
    is_free = threading.Event()

    def network(images: Sequence[bytes]) -> list[Prediction | str]:
        is_free.wait(10)
        return [image.decode() for image in images]

    async def run() -> list[Prediction | str]:
        batcher = Batcher(network, on_batch=sizes.append)
        async with batcher.running():
            first = asyncio.create_task(batcher.predict(b"first"))
            await asyncio.sleep(0.1)
            rest = [asyncio.create_task(batcher.predict(str(n).encode())) for n in range(70)]
            await asyncio.sleep(0)
            is_free.set()
            return [await first, *await asyncio.gather(*rest)]

    assert asyncio.run(run()) == ["first", *map(str, range(70))]
    assert sizes == [1, MAX_BATCH, MAX_BATCH, 6]


def test_a_lone_image_waits_only_milliseconds() -> None:
    async def run() -> float:
        batcher = Batcher(lambda images: ["done"] * len(images), on_batch=lambda _: None)
        async with batcher.running():
            begun = time.monotonic()
            await batcher.predict(b"")
            return time.monotonic() - begun

    assert asyncio.run(run()) < 0.1


def test_a_bug_costs_the_requests_of_its_batch_and_no_others() -> None:
    def network(images: Sequence[bytes]) -> list[Prediction | str]:
        if b"bad" in images:
            raise RuntimeError("bug")
        return ["good"] * len(images)

    async def run() -> list[object]:
        batcher = Batcher(network, on_batch=lambda _: None)
        async with batcher.running():
            found = await asyncio.gather(batcher.predict(b"bad"), return_exceptions=True)
            assert batcher.is_alive
            return [*found, await batcher.predict(b"good")]

    bad, good = asyncio.run(run())
    assert (repr(bad), good) == ("RuntimeError('bug')", "good")


def test_images_that_were_given_up_are_not_looked_at() -> None:
    seen: list[bytes] = []
    is_free = threading.Event()

    def network(images: Sequence[bytes]) -> list[Prediction | str]:
        is_free.wait(10)
        seen.extend(images)
        return ["done"] * len(images)

    async def run() -> None:
        batcher = Batcher(network, on_batch=lambda _: None)
        async with batcher.running():
            first = asyncio.create_task(batcher.predict(b"first"))
            await asyncio.sleep(0.1)
            left = asyncio.create_task(batcher.predict(b"left"))
            await asyncio.sleep(0)
            left.cancel()
            is_free.set()
            await asyncio.gather(first, batcher.predict(b"last"))

    asyncio.run(run())
    assert seen == [b"first", b"last"]


def test_admission_bounds_pictures_and_bytes_and_gives_both_back() -> None:
    admission = Admission(max_pictures=2, max_bytes=100)
    with admission.admit() as first, admission.admit() as second:
        with pytest.raises(HTTPException) as refused, admission.admit():
            pass
        assert refused.value.status_code == 503
        first.add(60)
        with pytest.raises(HTTPException) as refused:
            second.add(41)
        assert refused.value.headers == {"Retry-After": "1"}
        second.add(40)
    assert (admission.num_pictures, admission.num_bytes) == (0, 0)
    with admission.admit() as third:
        third.add(100)
