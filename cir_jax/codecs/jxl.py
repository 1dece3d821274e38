"""JPEG XL through pillow-jxl-plugin's libjxl."""

from importlib import metadata
from typing import ClassVar

import numpy as np
from jaxtyping import UInt8

from cir_jax import codecs
from cir_jax.codecs import _pillow
from cir_jax.errors import UserError

EFFORT = 7
"""libjxl's effort, 1 to 10: its own default."""


class Codec:
    """Lossy JPEG XL (XYB colour) at libjxl's quality 1 (worst) to 99."""

    name = "jxl"
    qualities: ClassVar[range] = range(1, 100)
    pillow_decodes: ClassVar[bool] = False
    suffix: ClassVar[str] = ".jxl"

    def __init__(self):
        _add_to_pillow()

    @property
    def version(self) -> str:
        """The library that encodes, with its version and the arguments in force."""
        plugin = f"pillow-jxl-plugin {metadata.version('pillow-jxl-plugin')}"
        return f"{plugin}, effort {EFFORT}"

    def encode(self, image: UInt8[np.ndarray, "h w c"], quality: int) -> bytes:
        """Compresses an RGB image, or a grey one of one channel.

        Raises:
            UserError: the quality is not in 1..99.
        """
        codecs.check_quality(self, quality)
        _add_to_pillow()
        return _pillow.encode(
            image, "JXL", quality=quality, effort=EFFORT, num_threads=1
        )

    def decode(self, data: bytes) -> UInt8[np.ndarray, "h w c"]:
        """Decodes a bitstream to RGB, or to one channel if it is grey."""
        _add_to_pillow()
        return _pillow.decode(data, "JXL")


def _add_to_pillow() -> None:
    """Imports the plugin, which adds the format to Pillow.

    Also before each use: a codec that was pickled to a worker process is not
    constructed there.

    Raises:
        UserError: the plugin is not installed.
    """
    try:
        import pillow_jxl  # noqa: F401
    except ImportError as error:
        raise UserError(
            "jxl needs pillow-jxl-plugin, which is not installed: "
            "pip install 'cir_jax[codecs]'"
        ) from error
