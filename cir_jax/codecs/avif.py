"""AVIF through Pillow's own libavif: AV1 still pictures by libaom."""

from typing import ClassVar

import numpy as np
from jaxtyping import UInt8
from PIL import features

from cir_jax import codecs
from cir_jax.codecs import _pillow

SUBSAMPLING = "4:2:0"
SPEED = 6
"""libaom's speed, 0 (slowest) to 10: Pillow's and libavif's default."""


class Codec:
    """AVIF with 4:2:0 chroma at libavif's quality 0 (worst) to 100."""

    name = "avif"
    qualities: ClassVar[range] = range(101)
    pillow_decodes: ClassVar[bool] = True
    suffix: ClassVar[str] = ".avif"

    def __init__(self):
        _pillow.require("avif", "AVIF", "'pillow>=11.3'")

    @property
    def version(self) -> str:
        """The library that encodes, with its version and the arguments in force."""
        library = f"libavif {features.version('avif')} through Pillow"
        return f"{library}, aom, {SUBSAMPLING}, speed {SPEED}"

    def encode(self, image: UInt8[np.ndarray, "h w c"], quality: int) -> bytes:
        """Compresses an RGB image.

        Raises:
            UserError: the quality is not in 0..100, or the image is grey.
        """
        codecs.check_quality(self, quality)
        codecs.refuse_grey(self, image)
        return _pillow.encode(
            image,
            "AVIF",
            quality=quality,
            codec="aom",
            subsampling=SUBSAMPLING,
            speed=SPEED,
            # Tiles and threads follow the cores unless told, and the bytes with them.
            max_threads=1,
            autotiling=False,
        )

    def decode(self, data: bytes) -> UInt8[np.ndarray, "h w c"]:
        """Decodes a bitstream to RGB."""
        return _pillow.decode(data, "AVIF")
