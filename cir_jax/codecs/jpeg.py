"""JPEG through Pillow's libjpeg-turbo: the published protocol's encoder."""

from typing import ClassVar

import numpy as np
from jaxtyping import UInt8
from PIL import features

from cir_jax import codecs
from cir_jax.codecs import _pillow
from cir_jax.errors import unknown

SUBSAMPLINGS = ("4:4:4", "4:2:2", "4:2:0")


class Codec:
    """Baseline JPEG at libjpeg's quality 1 (worst) to 100.

    Pillow's `save(quality=q)` and OpenCV's encoder give the same pixels; both are the
    protocol of the published tables, with 4:2:0 chroma unless said otherwise.
    """

    qualities: ClassVar[range] = range(1, 101)
    pillow_decodes: ClassVar[bool] = True
    suffix: ClassVar[str] = ".jpg"

    def __init__(self, subsampling: str = "4:2:0"):
        if subsampling not in SUBSAMPLINGS:
            raise unknown("JPEG chroma subsampling", subsampling, SUBSAMPLINGS)
        self.subsampling = subsampling
        self.name = "jpeg" if subsampling == "4:2:0" else f"jpeg:{subsampling}"

    @property
    def version(self) -> str:
        """The library that encodes, with its version and the arguments in force."""
        library = f"libjpeg-turbo {features.version_feature('libjpeg_turbo')}"
        return f"{library} through Pillow, {self.subsampling}"

    def encode(self, image: UInt8[np.ndarray, "h w c"], quality: int) -> bytes:
        """Compresses an RGB image, or a grey one of one channel.

        Raises:
            UserError: the quality is not in 1..100.
        """
        codecs.check_quality(self, quality)
        grey = image.shape[-1] == 1
        return _pillow.encode(
            image,
            "JPEG",
            quality=quality,
            **({} if grey else {"subsampling": self.subsampling}),
        )

    def decode(self, data: bytes) -> UInt8[np.ndarray, "h w c"]:
        """Decodes a bitstream to RGB, or to one channel if it is grey."""
        return _pillow.decode(data, "JPEG")
