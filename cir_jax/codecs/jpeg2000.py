"""JPEG 2000 through Pillow's OpenJPEG: the 9/7 wavelet, a raw codestream."""

from typing import ClassVar

import numpy as np
from jaxtyping import UInt8
from PIL import features

from cir_jax import codecs
from cir_jax.codecs import _pillow


class Codec:
    """JPEG 2000 where the quality is the compression ratio: 400 (worst) to 1.

    The ratio is to the raw image, 24 bits a pixel or 8 for one channel: quality 48 of
    an RGB image aims at half a bit a pixel. OpenJPEG's rate control ends up to a fifth
    below its aim. Small images are larger than asked for, as the headers alone take
    about 130 bytes, and photographs stop growing at a ratio of 2 to 4, where nothing
    is left to code.
    """

    name = "jpeg2000"
    qualities: ClassVar[range] = range(400, 0, -1)
    pillow_decodes: ClassVar[bool] = False
    suffix: ClassVar[str] = ".j2k"  # a codestream without JP2's boxes

    def __init__(self):
        _pillow.require("jpg_2000", "JPEG 2000")

    @property
    def version(self) -> str:
        """The library that encodes, with its version and the arguments in force."""
        return f"OpenJPEG {features.version('jpg_2000')} through Pillow, irreversible"

    def encode(self, image: UInt8[np.ndarray, "h w c"], quality: int) -> bytes:
        """Compresses an RGB image, or a grey one of one channel.

        Raises:
            UserError: the quality is not in 1..400.
        """
        codecs.check_quality(self, quality)
        grey = image.shape[-1] == 1
        return _pillow.encode(
            image,
            "JPEG2000",
            no_jp2=True,
            irreversible=True,
            quality_mode="rates",
            quality_layers=[quality],
            # Pillow codes R, G and B apart unless told: several dB worse at equal size.
            mct=0 if grey else 1,
        )

    def decode(self, data: bytes) -> UInt8[np.ndarray, "h w c"]:
        """Decodes a bitstream to RGB, or to one channel if it is grey."""
        return _pillow.decode(data, "JPEG2000")
