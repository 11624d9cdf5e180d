"""Copies of batches to a GPU ahead of time, and decoding there. Not yet measured on a GPU.

Shapes: B batch, C H W image.
"""

import warnings
from collections import deque
from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor
from torchvision.io import ImageReadMode, decode_jpeg

from pipeline.encoders.preprocessing import decode_rgb
from train.data.batches import AugmentedImages, Batch
from train.data.order import Rows

Decode = Callable[..., list[Tensor]]  # torchvision.io.decode_jpeg of a list


def on_device(batches: Iterator[Batch], device: torch.device) -> Iterator[Batch]:
    """The batches on `device`, copied (or decoded) there while the previous step still runs."""
    if device.type != "cuda":
        yield from batches
        return
    side = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
    copied: deque[torch.cuda.Event] = deque()
    while True:
        if len(copied) == 2:
            copied.popleft().synchronize()  # the next request lets the loader overwrite that batch
        with torch.cuda.stream(side):
            batch = next(batches, None)
            if batch is None:
                return
            batch = Batch(*(_copy(tensor, device) for tensor in batch))
            copied.append(side.record_event())
        current = torch.cuda.current_stream(device)
        current.wait_event(copied[-1])
        for tensor in batch:
            tensor.record_stream(current)  # else the side stream may reuse its memory
        yield batch


def _copy(tensor: Tensor, device: torch.device) -> Tensor:
    if tensor.device == device:
        return tensor
    pinned = tensor if tensor.is_pinned() else tensor.pin_memory()
    return pinned.to(device, non_blocking=True)


class DecodedOnDevice:
    """`AugmentedImages` that are decoded on a GPU; randomness and crops are the same.

    Pixels differ by rounding, and where nvJPEG differs from libjpeg.
    """

    def __init__(self, images: AugmentedImages, device: torch.device) -> None:
        self._images = images
        self._device = device

    def read(self, rows_B: Rows, positions_B: Rows) -> Tensor:
        """pixels_BCHW uint8 on the device, channels last."""
        try:
            pictures = decode_on(self._device, list(self._images.encoded(rows_B)))
        except ValueError:  # from the CPU: one image is damaged; `decoded` names or replaces it
            decoded = (self._images.decoded(row) for row in rows_B.tolist())
            pictures = [pixels_CHW.to(self._device) for pixels_CHW in decoded]
        views = [
            # In float, since CUDA's antialiased resampler does not take uint8.
            self._images.view(pixels_CHW.float(), int(position))
            for pixels_CHW, position in zip(pictures, positions_B, strict=True)
        ]
        return torch.stack(views).contiguous(memory_format=torch.channels_last)


def decode_on(
    device: torch.device, images: Sequence[bytes], *, decode: Decode = decode_jpeg
) -> list[Tensor]:
    """pixels_CHW uint8 of each image; the CPU decodes those that `decode` fails on."""
    encoded = [torch.frombuffer(bytearray(image), dtype=torch.uint8) for image in images]
    try:
        with warnings.catch_warnings():
            # torchvision 0.29 moves its decoders to TorchCodec, which older releases do not have.
            warnings.simplefilter("ignore", DeprecationWarning)
            return decode(encoded, mode=ImageReadMode.RGB, device=device)
    except torch.OutOfMemoryError:
        raise
    except RuntimeError:
        if len(images) > 1:  # one image fails the whole list, and the error does not name it
            return [decode_on(device, [image], decode=decode)[0] for image in images]
        return [torch.from_numpy(decode_rgb(images[0])).permute(2, 0, 1).to(device)]
