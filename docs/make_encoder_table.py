"""Measures the table of docs/encoders.md and writes it there, between its two markers.

    python docs/make_encoder_table.py

Weights are random (neither dimension nor time depend on them), so nothing is downloaded. Time is
CPU time of ONNX Runtime on one thread, which other processes on the machine disturb little.
"""

import re
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from pipeline.config.encoder import EncoderConfig
from pipeline.encoders.networks import load_encoder
from pipeline.encoders.origin import weights_origin
from pipeline.encoders.runtimes import prepare_encoder

PAGE = Path(__file__).parent / "encoders.md"
BEGIN, END = "<!-- table: begin -->\n", "<!-- table: end -->\n"
NUM_TIMED, NUM_WARM = 20, 3
# Name and sizes; None is the model's own.
MODELS: dict[str, tuple[int | None, ...]] = {
    "efficientnet_lite0": (None,),
    "efficientnet_lite1": (None,),
    "efficientnet_lite2": (None,),
    "timm/resnet50.a1_in1k": (None,),
    "timm/convnext_tiny.in12k": (None,),
    "timm/convnext_tiny.dinov3_lvd1689m": (None,),
    "timm/vit_small_patch16_dinov3.lvd1689m": (224, None),
    "timm/vit_small_patch14_reg4_dinov2.lvd142m": (224, None),
    "timm/vit_base_patch14_reg4_dinov2.lvd142m": (224,),
    "timm/vit_pe_core_tiny_patch16_384.fb": (224, None),
    "timm/vit_pe_core_small_patch16_384.fb": (224, None),
    "timm/vit_pe_core_base_patch16_224.fb": (None,),
    "timm/vit_base_patch16_siglip_224.v2_webli": (None,),
    "timm/vit_base_patch32_clip_224.openai": (None,),
    "timm/fastvit_mci0.apple_mclip2_dfndr2b": (None,),
}


def rows() -> Iterator[str]:
    """Lines of the table, one a network and size."""
    yield "| `encoder.name` | px | values | parameters, 10^6 | licence | CPU ms an image |"
    yield "|---|---|---|---|---|---|"
    for name, sizes in MODELS.items():
        for size in sizes:
            yield _row(name, size)


def _row(name: str, image_size: int | None) -> str:
    config = EncoderConfig(name=name, weights="random", image_size=image_size)
    encoder = load_encoder(config)
    size = encoder.preprocessing.image_size
    num_parameters = sum(p.numel() for p in encoder.backbone.parameters())
    milliseconds = _cpu_milliseconds(config, size)
    own = " (own)" if image_size is None else ""
    licence = weights_origin(EncoderConfig(name=name)).license
    return (
        f"| `{name}` | {size}{own} | {encoder.embedding_dim:,} | {num_parameters / 1e6:.1f} | "
        f"{licence} | {np.median(milliseconds):.0f} "
        f"[{min(milliseconds):.0f}, {max(milliseconds):.0f}] |"
    )


def _cpu_milliseconds(config: EncoderConfig, size: int) -> list[float]:
    runtime = prepare_encoder(config, gpus_per_worker=0).open()
    pixels_BCHW = np.random.default_rng(0).integers(0, 256, (1, 3, size, size), dtype=np.uint8)
    spent = []
    for _ in range(NUM_WARM + NUM_TIMED):
        began = time.process_time()
        runtime.embed(pixels_BCHW)
        spent.append(1000 * (time.process_time() - began))
    return spent[NUM_WARM:]


def main() -> None:
    table = "\n".join(rows())
    text = re.sub(
        f"{BEGIN}.*{END}", f"{BEGIN}\n{table}\n\n{END}", PAGE.read_text(), flags=re.DOTALL
    )
    PAGE.write_text(text)


if __name__ == "__main__":
    main()
