"""What evaluation does to a clean image before anything restores it."""

import dataclasses
from collections.abc import Sequence

import numpy as np
from jaxtyping import UInt8

from cir_jax import codecs
from cir_jax.errors import UserError
from cir_jax.resize import downscale, modcrop, upscale

SHIFT = 4
"""Rows and columns by which the block grids of a double compression differ: half a
JPEG block, as far as can be."""


@dataclasses.dataclass(frozen=True)
class Compressed:
    """A clean image, and what a codec leaves of it.

    Attributes:
        clean: cut to a multiple of the scale.
        degraded: downscaled, compressed and decoded.
        baseline: the degraded image upscaled again.
        bitstream: of the last compression.
    """

    clean: UInt8[np.ndarray, "h w c"]
    degraded: UInt8[np.ndarray, "_ _ c"]
    baseline: UInt8[np.ndarray, "h w c"]
    bitstream: bytes

    @property
    def bpp(self) -> float:
        """Bits of the bitstream per pixel of the compressed image."""
        height, width, _ = self.degraded.shape
        return 8 * len(self.bitstream) / (height * width)


@dataclasses.dataclass(frozen=True)
class Compression:
    """A codec at a quality, or twice at two with the block grid moved in between.

    Attributes:
        codec: what compresses.
        quality: one of the codec's.
        first: the quality of a compression before it, whose grid lies `SHIFT` rows and
            columns off; None for a single one.
    """

    codec: codecs.CodecProtocol
    quality: int
    first: int | None = None

    @property
    def codec_name(self) -> str:
        """As tables call it, "jpeg+jpeg" for two."""
        name = self.codec.name
        return name if self.first is None else f"{name}+{name}"

    @property
    def quality_name(self) -> int | str:
        """As tables call it, "10+50" for two."""
        return self.quality if self.first is None else f"{self.first}+{self.quality}"

    def __call__(self, image: UInt8[np.ndarray, "_ _ c"], scale: int) -> Compressed:
        """Downscales and compresses an image, as every method will get it."""
        clean = modcrop(image, scale)
        small = np.ascontiguousarray(downscale(clean, scale))
        if self.first is not None:
            padded = np.pad(small, [(SHIFT, 0), (SHIFT, 0), (0, 0)], mode="symmetric")
            once = self.codec.decode(self.codec.encode(padded, self.first))
            small = np.ascontiguousarray(once[SHIFT:, SHIFT:])
        bitstream = self.codec.encode(small, self.quality)
        degraded = self.codec.decode(bitstream)
        return Compressed(clean, degraded, upscale(degraded, scale), bitstream)


def compressions(
    codec: str, qualities: Sequence[int], *, double: bool = False
) -> list[Compression]:
    """A codec at some qualities.

    Args:
        codec: its name, see `cir_jax.codecs`.
        qualities: whole numbers of the codec's.
        double: compress twice, by every ordered pair of qualities.

    Raises:
        UserError: no such codec, or a quality that it does not have.
    """
    coder = codecs.get_codec(codec)
    for quality in qualities:
        codecs.check_quality(coder, quality)
    firsts = qualities if double else (None,)
    return [
        Compression(coder, quality, first) for first in firsts for quality in qualities
    ]


def parse_compressions(
    codec_names: str, qualities: Sequence[str], *, double: bool = False
) -> list[Compression]:
    """The compressions of command-line texts.

    Args:
        codec_names: by commas.
        qualities: a text as `codecs.parse_qualities` reads for each codec, or one for
            all.
        double: see `compressions`.

    Raises:
        UserError: see `compressions`; or there are neither one text nor one for each.
    """
    names = codec_names.split(",")
    if len(qualities) not in (1, len(names)):
        raise UserError(
            f"--quality is given {len(qualities)} times for {len(names)} codecs: give "
            "it once for all, or once for each"
        )
    lists = [codecs.parse_qualities(text) for text in qualities]
    lists = lists * len(names) if len(lists) == 1 else lists
    return [
        each
        for name, numbers in zip(names, lists, strict=True)
        for each in compressions(name, numbers, double=double)
    ]
