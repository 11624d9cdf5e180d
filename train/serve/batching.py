"""Puts images of requests that arrive together into one batch for the network.

While a batch is in the network, later images gather, so that batches grow with the load by
themselves; a lone image waits only a few milliseconds for company.
"""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass

from train.serve.model import Prediction

MAX_BATCH = 32
_MAX_WAIT_S = 0.003


@dataclass(frozen=True)
class _Waiting:
    image: bytes
    answer: asyncio.Future[Prediction | str]


class Batcher:
    """Predicts for one image a call, in batches of at most `MAX_BATCH`.

    predict: runs in a thread, one batch at a time. on_batch: gets the size of each.
    """

    def __init__(
        self,
        predict: Callable[[Sequence[bytes]], list[Prediction | str]],
        *,
        on_batch: Callable[[int], None],
    ) -> None:
        self._predict = predict
        self._on_batch = on_batch
        # Without a bound of its own: `Admission` lets in no more requests than may wait.
        self._queue: asyncio.Queue[_Waiting] = asyncio.Queue()
        self._task: asyncio.Task[None] | None = None

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Within the block, `predict` is answered."""
        self._task = asyncio.create_task(self._run())
        try:
            yield
        finally:
            self._task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._task

    @property
    def is_alive(self) -> bool:
        return self._task is not None and not self._task.done()

    async def predict(self, image: bytes) -> Prediction | str:
        """The prediction for an image file, or the reason why there is none."""
        answer: asyncio.Future[Prediction | str] = asyncio.get_running_loop().create_future()
        self._queue.put_nowait(_Waiting(image, answer))
        return await answer

    async def _run(self) -> None:
        while True:
            batch = [each for each in await self._gather() if not each.answer.done()]
            if not batch:  # all have been given up
                continue
            self._on_batch(len(batch))
            try:
                found = await asyncio.to_thread(self._predict, [each.image for each in batch])
            except Exception as error:  # a bug costs these requests; the next batch may do
                for each in batch:
                    if not each.answer.done():
                        each.answer.set_exception(error)
                continue
            for each, prediction in zip(batch, found, strict=True):
                if not each.answer.done():
                    each.answer.set_result(prediction)

    async def _gather(self) -> list[_Waiting]:
        """The next images: as many as come in a few milliseconds after the first."""
        batch = [await self._queue.get()]
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_MAX_WAIT_S):
                while len(batch) < MAX_BATCH:
                    batch.append(await self._queue.get())
        while len(batch) < MAX_BATCH and not self._queue.empty():
            batch.append(self._queue.get_nowait())
        return batch
