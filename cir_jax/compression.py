"""What evaluation does to a clean image before anything restores it."""

import dataclasses
import typing
from collections.abc import Sequence

import numpy as np
from jaxtyping import UInt8

from cir_jax import codecs
from cir_jax.data.degradations import NOISE, add_noise
from cir_jax.errors import UserError, unknown
from cir_jax.protocols import COLOUR, PROTOCOLS, Protocol
from cir_jax.resize import downscale, modcrop, upscale

SHIFT = 4
"""Rows and columns by which the block grids of a double compression differ: half a
JPEG block, as far as can be."""
QUALITIES = {NOISE: "15,25,50"}
"""What is measured where nothing else is asked for, by codec."""
USUAL_QUALITIES = "10,20,30,40"
"""Of the codecs that are not in `QUALITIES`."""


@dataclasses.dataclass(frozen=True)
class Compressed:
    """A clean image, and what a degradation leaves of it.

    Attributes:
        clean: as it was coded, cut to a multiple of the scale.
        degraded: downscaled, compressed and decoded, or degraded otherwise.
        baseline: the degraded image upscaled again.
        bitstream: of the last compression; empty where none is known.
        suffix: of a file of the bitstream that other programs read; otherwise "".
    """

    clean: UInt8[np.ndarray, "h w c"]
    degraded: UInt8[np.ndarray, "_ _ c"]
    baseline: UInt8[np.ndarray, "h w c"]
    bitstream: bytes = b""
    suffix: str = ""

    @property
    def bpp(self) -> float | None:
        """Bits of the bitstream per pixel of the compressed image, if there is one."""
        height, width, _ = self.degraded.shape
        return 8 * len(self.bitstream) / (height * width) if self.bitstream else None


@typing.runtime_checkable
class Degradation(typing.Protocol):
    """What is done to every image of a set, the same whenever it is asked for."""

    @property
    def codec_name(self) -> str:
        """As tables call it: the codec's name, or the degradation's."""

    @property
    def quality_name(self) -> int | str | None:
        """As tables call it; None where there is nothing to choose."""

    @property
    def kind(self) -> str:
        """What restorers are told that want to know."""

    @property
    def version(self) -> str:
        """What did it, with all that changes the pixels."""

    def __call__(
        self,
        image: UInt8[np.ndarray, "_ _ 3"],
        scale: int,
        index: int = 0,
        protocol: Protocol = PROTOCOLS[COLOUR],
    ) -> Compressed:
        """Degrades an image, as every method will get it.

        Args:
            image: the clean one, whole.
            scale: by how much it is downscaled first.
            index: of the image in its set, from 0.
            protocol: how it is coded, and noise seeded.

        Raises:
            UserError: a codec fails, or a file cannot be read.
        """


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

    @property
    def kind(self) -> str:
        """The codec's name."""
        return self.codec.name

    @property
    def version(self) -> str:
        """What encodes."""
        return self.codec.version

    def __call__(
        self,
        image: UInt8[np.ndarray, "_ _ c"],
        scale: int,
        index: int = 0,
        protocol: Protocol = PROTOCOLS[COLOUR],
    ) -> Compressed:
        """Downscales and compresses an image, whatever its index."""
        clean = modcrop(protocol.coded(image), scale)
        small = np.ascontiguousarray(downscale(clean, scale))
        if self.first is not None:
            padded = np.pad(small, [(SHIFT, 0), (SHIFT, 0), (0, 0)], mode="symmetric")
            once = self.codec.decode(self.codec.encode(padded, self.first))
            small = np.ascontiguousarray(once[SHIFT:, SHIFT:])
        bitstream = self.codec.encode(small, self.quality)
        degraded = self.codec.decode(bitstream)
        baseline = upscale(degraded, scale)
        return Compressed(clean, degraded, baseline, bitstream, self.codec.suffix)


@dataclasses.dataclass(frozen=True)
class Noise:
    """Gaussian noise that depends on the image's index and the protocol alone.

    Attributes:
        deviation: its standard deviation, 8-bit levels; one field of noise, so scaled,
            serves all deviations.
    """

    deviation: int

    @property
    def codec_name(self) -> str:
        """As tables call it."""
        return NOISE

    @property
    def quality_name(self) -> int:
        """The deviation."""
        return self.deviation

    @property
    def kind(self) -> str:
        """What restorers are told."""
        return NOISE

    @property
    def version(self) -> str:
        """Whose noise."""
        drawn = f"Gaussian noise of NumPy {np.__version__}"
        return f"{drawn}, rounded and clipped to 8 bits"

    def __call__(
        self,
        image: UInt8[np.ndarray, "_ _ c"],
        scale: int,
        index: int = 0,
        protocol: Protocol = PROTOCOLS[COLOUR],
    ) -> Compressed:
        """Downscales an image and adds the noise of its index."""
        clean = modcrop(protocol.coded(image), scale)
        rng = np.random.default_rng(protocol.seed(index))
        noisy = add_noise(downscale(clean, scale), self.deviation, rng)
        return Compressed(clean, noisy, upscale(noisy, scale))


def title(degradation: Degradation) -> str:
    """A degradation in words: "jpeg 10"; "haze" where it has no quality."""
    names = degradation.codec_name, degradation.quality_name
    return " ".join(str(name) for name in names if name is not None)


def compressions(
    codec: str, qualities: Sequence[int], *, double: bool = False
) -> list[Compression] | list[Noise]:
    """A codec at some qualities, or noise of some deviations.

    Args:
        codec: its name, see `cir_jax.codecs`; or "noise".
        qualities: whole numbers of the codec's; standard deviations, 8-bit levels.
        double: compress twice, by every ordered pair of qualities.

    Raises:
        UserError: no such codec, a quality that it does not have, or noise twice.
    """
    if codec == NOISE:
        if double:
            raise UserError("noise is no codec: leave it out with --double-jpeg")
        for deviation in qualities:
            if not 0 <= deviation <= 255:
                raise UserError(
                    f"noise {deviation}: give a standard deviation of 0 to 255 levels"
                )
        return [Noise(deviation) for deviation in qualities]
    known = [*codecs.known_codecs(), NOISE]
    name, _, _ = codec.partition(":")
    if name not in known:
        raise unknown("codec", name, known)
    coder = codecs.get_codec(codec)
    for quality in qualities:
        codecs.check_quality(coder, quality)
    firsts = qualities if double else (None,)
    return [
        Compression(coder, quality, first) for first in firsts for quality in qualities
    ]


def parse_compressions(
    codec_names: str, qualities: Sequence[str] = (), *, double: bool = False
) -> list[Compression | Noise]:
    """The compressions of command-line texts.

    Args:
        codec_names: by commas; "noise" may be among them.
        qualities: a text as `codecs.parse_qualities` reads for each codec, one for
            all, or none for the usual ones.
        double: see `compressions`.

    Raises:
        UserError: see `compressions`; or there are neither one text nor one for each.
    """
    names = codec_names.split(",")
    qualities = qualities or [QUALITIES.get(name, USUAL_QUALITIES) for name in names]
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
