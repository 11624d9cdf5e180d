"""Opens networks in ONNX on CPU threads of the caller. Imports no torch.

A model may come from strangers. ONNX keeps large tensors in files of any name beside the model if
it says so, and ONNX Runtime would read them: such models are refused.
"""

import importlib
import re
from typing import Any

from pipeline.errors import InfinegError

# The key of such a name in protobuf: field 1 of 8 bytes, each number in any of its spellings.
_NAMES_FILES = re.compile(rb"(?:\x0a|\x8a\x80*\x00)(?:\x08|\x88\x80*\x00)location")


def open_session(model: bytes, *, where: str = "the model") -> Any:
    """An `onnxruntime.InferenceSession` on one CPU thread; several threads may run it at once.

    Raises InfinegError for what is no model, and for one that names other files.
    """
    # Not at the top: a training process on a GPU does not need it.
    ort = importlib.import_module("onnxruntime")
    if _NAMES_FILES.search(model):
        raise InfinegError(
            f"{where}: keeps tensors in other files, which are not followed; export it as one file"
        )
    options = ort.SessionOptions()
    # One thread per worker: the workers fill the machine, and sums keep their order.
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 3
    refused = importlib.import_module("onnxruntime.capi.onnxruntime_pybind11_state")
    try:
        return ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    except (refused.InvalidProtobuf, refused.InvalidGraph, refused.Fail) as error:
        reason = str(error).partition("\n")[0]
        raise InfinegError(f"{where}: not a model that ONNX Runtime opens ({reason})") from None
