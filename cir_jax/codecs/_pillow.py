"""Pillow's encoders and decoders on arrays: what the codecs that use it share."""

import io
from typing import Any

import numpy as np
from jaxtyping import UInt8
from PIL import Image, features

from cir_jax.errors import UserError


def require(feature: str, name: str, requirement: str = "pillow") -> None:
    """Refuses a Pillow that was built without a format.

    Raises:
        UserError: says how to install one with it.
    """
    if not features.check(feature):
        raise UserError(
            f"this Pillow was built without {name}: install one with it, by "
            f"pip install --force-reinstall {requirement}"
        )


def encode(
    image: UInt8[np.ndarray, "h w c"], file_format: str, **options: Any
) -> bytes:
    """Saves an RGB image, or a grey one of one channel, with a format's options."""
    buffer = io.BytesIO()
    pixels = image[..., 0] if image.shape[-1] == 1 else image
    Image.fromarray(pixels).save(buffer, file_format, **options)
    return buffer.getvalue()


def decode(data: bytes, file_format: str) -> UInt8[np.ndarray, "h w c"]:
    """Opens a file of a format: RGB, or one channel if it is grey."""
    with Image.open(io.BytesIO(data), formats=[file_format]) as image:
        pixels = np.asarray(image)
    return pixels if pixels.ndim == 3 else pixels[..., None]
