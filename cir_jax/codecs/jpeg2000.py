"""JPEG 2000 through Pillow's OpenJPEG: the 9/7 wavelet, a raw codestream."""

import io
from typing import ClassVar

import numpy as np
from jaxtyping import UInt8
from PIL import Image, features

from cir_jax import codecs
from cir_jax.errors import UserError


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

    def __init__(self):
        if not features.check("jpg_2000"):
            raise UserError(
                "this Pillow was built without JPEG 2000: install one with it, by "
                "pip install --force-reinstall pillow"
            )

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
        buffer = io.BytesIO()
        Image.fromarray(image[..., 0] if grey else image).save(
            buffer,
            "JPEG2000",
            no_jp2=True,
            irreversible=True,
            quality_mode="rates",
            quality_layers=[quality],
            # Pillow codes R, G and B apart unless told: several dB worse at equal size.
            mct=0 if grey else 1,
        )
        return buffer.getvalue()

    def decode(self, data: bytes) -> UInt8[np.ndarray, "h w c"]:
        """Decodes a bitstream to RGB, or to one channel if it is grey."""
        with Image.open(io.BytesIO(data), formats=["JPEG2000"]) as image:
            pixels = np.asarray(image)
        return pixels if pixels.ndim == 3 else pixels[..., None]
