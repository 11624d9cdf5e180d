"""Three tiny pictures, for the `toy` of every source."""

import numpy as np
import simplejpeg


def toy_jpegs() -> list[bytes]:
    """JPEGs of 64x48 pixels: a red, a green and a blue ramp."""
    ramp = np.linspace(0, 255, 64, dtype=np.uint8)
    jpegs = []
    for channel in range(3):
        pixels = np.zeros((48, 64, 3), np.uint8)
        pixels[..., channel] = ramp
        jpegs.append(simplejpeg.encode_jpeg(pixels, quality=90, colorsubsampling="420"))
    return jpegs
