"""A detector as a program of torch.export: `torch.export.load(path).module()(pixels)`.

Nothing in it is pickled: weights are plain bytes, the graph and the metadata JSON.
"""

import io

import torch
from torch import Tensor, nn

from train.model.detector import DetectorModel
from train.model.info import ModelInfo
from train.model.onnx_file import OnnxInfo

METADATA = "infineg.json"  # in `extra_files`


class WithEmbedding(nn.Module):
    """pixels_BCHW uint8 -> embedding_BD, logits_BK."""

    def __init__(self, model: DetectorModel) -> None:
        super().__init__()
        self.model = model

    def forward(self, pixels_BCHW: Tensor) -> tuple[Tensor, Tensor]:
        embedding_BD = self.model.encoder(pixels_BCHW)
        return embedding_BD, self.model.head_logits(embedding_BD)


def export_program(model: DetectorModel, info: ModelInfo) -> bytes:
    """The content of a .pt2 file; any number of pictures at once."""
    size = info.preprocessing.image_size
    example = torch.zeros(2, 3, size, size, dtype=torch.uint8)
    program = torch.export.export(
        WithEmbedding(model.cpu().eval()).requires_grad_(False),
        (example,),
        dynamic_shapes=({0: torch.export.Dim("B")},),
    )
    program.example_inputs = None  # it would be pickled
    for node in program.graph.nodes:
        node.meta.pop("stack_trace", None)  # files of this machine
    file = io.BytesIO()
    metadata = OnnxInfo.of(info).model_dump_json(indent=1)
    torch.export.save(program, file, extra_files={METADATA: metadata})
    return file.getvalue()
