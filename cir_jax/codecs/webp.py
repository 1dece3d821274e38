"""Lossy WebP through Pillow's libwebp."""

from typing import ClassVar

import numpy as np
from jaxtyping import UInt8
from PIL import features

from cir_jax import codecs
from cir_jax.codecs import _pillow

METHOD = 4
"""libwebp's effort, 0 to 6: its own default."""


class Codec:
    """Lossy WebP (VP8, chroma always 4:2:0) at quality 0 (worst) to 100."""

    name = "webp"
    qualities: ClassVar[range] = range(101)
    pillow_decodes: ClassVar[bool] = True
    suffix: ClassVar[str] = ".webp"

    def __init__(self):
        _pillow.require("webp", "WebP")

    @property
    def version(self) -> str:
        """The library that encodes, with its version and the arguments in force."""
        return f"libwebp {features.version('webp')} through Pillow, method {METHOD}"

    def encode(self, image: UInt8[np.ndarray, "h w c"], quality: int) -> bytes:
        """Compresses an RGB image.

        Raises:
            UserError: the quality is not in 0..100, or the image is grey.
        """
        codecs.check_quality(self, quality)
        codecs.refuse_grey(self, image)
        return _pillow.encode(image, "WEBP", quality=quality, method=METHOD)

    def decode(self, data: bytes) -> UInt8[np.ndarray, "h w c"]:
        """Decodes a bitstream to RGB."""
        return _pillow.decode(data, "WEBP")
