"""Image codecs, one class a codec, found by name.

A codec is named `NAME` or `NAME:ARGUMENT`: `jpeg` is module `cir_jax.codecs.jpeg` with
its defaults, `jpeg:4:4:4` the same with its one argument set. Adding a codec is adding
a module with a class `Codec` that follows `CodecProtocol`.
"""

import importlib
import inspect
import pkgutil
from collections.abc import Sequence
from typing import ClassVar, Protocol, runtime_checkable

import numpy as np
from jaxtyping import UInt8

from cir_jax.errors import UserError, unknown


@runtime_checkable
class CodecProtocol(Protocol):
    """What evaluation, recipes and readers ask of a codec."""

    name: str
    """What records and tables call it: the name, and what its argument changes."""
    qualities: Sequence[int]
    """The whole numbers that `encode` takes, the worst picture first."""
    pillow_decodes: ClassVar[bool]
    """Whether records may hold the bitstream, to be decoded by Pillow alone."""
    suffix: ClassVar[str]
    """What a file of the bitstream is called, such as ".jpg", if it is an image file
    that other programs read; otherwise ""."""

    @property
    def version(self) -> str:
        """The library that encodes, with its version and the arguments in force."""

    def encode(self, image: UInt8[np.ndarray, "h w c"], quality: int) -> bytes:
        """Compresses an image to a bitstream.

        The same bytes for the same image, on any number of cores. Where the codec's
        own stream does not hold the size of the picture, a few bytes in front do.

        Args:
            image: RGB, or one grey channel if the codec has grey images.
            quality: one of `qualities`.

        Raises:
            UserError: the codec has no such quality or no grey images, or fails.
        """

    def decode(self, data: bytes) -> UInt8[np.ndarray, "h w c"]:
        """Decodes what `encode` made: the size and the channels that went in."""


def known_codecs() -> list[str]:
    """The names that `get_codec` knows, sorted."""
    names = (module.name for module in pkgutil.iter_modules(__path__))
    return sorted(name for name in names if not name.startswith("_"))


def get_codec(spec: str) -> CodecProtocol:
    """Makes the codec that `spec` names, such as "jpeg" or "jpeg:4:4:4".

    Raises:
        UserError: no such codec, an argument that it does not take, or its library is
            not installed.
    """
    name, _, argument = spec.partition(":")
    if name not in known_codecs():
        raise unknown("codec", name, known_codecs())
    codec = importlib.import_module(f"{__name__}.{name}").Codec
    if not argument:
        return codec()
    if not inspect.signature(codec).parameters:
        raise UserError(f"codec {spec}: {name} takes no argument, give {name} alone")
    return codec(argument)


def check_quality(codec: CodecProtocol, quality: int) -> None:
    """Refuses a quality that the codec does not have.

    Raises:
        UserError: the quality lies outside the codec's range.
    """
    if quality not in codec.qualities:
        worst, best = codec.qualities[0], codec.qualities[-1]
        raise UserError(
            f"quality {quality} is outside {codec.name}'s range: give {worst} (worst) "
            f"to {best} (best)"
        )


def refuse_grey(codec: CodecProtocol, image: UInt8[np.ndarray, "h w c"]) -> None:
    """Refuses a one-channel image, for the codecs that have colour only.

    Raises:
        UserError: the image is grey.
    """
    if image.shape[-1] == 1:
        raise UserError(
            f"{codec.name} has no grey images: give it colour, or take another codec "
            "such as jpeg"
        )


def parse_qualities(text: str) -> tuple[int, ...]:
    """Reads a list of qualities: "10,20,30", "5:95:5" (both ends in), or a mixture.

    Raises:
        UserError: a part is neither a whole number nor START:STOP:STEP.
    """
    qualities: list[int] = []
    for part in text.split(","):
        try:
            numbers = [int(number) for number in part.split(":")]
            if len(numbers) == 1:
                qualities.append(numbers[0])
            else:
                start, stop, step = numbers
                qualities.extend(range(start, stop + (1 if step > 0 else -1), step))
        except ValueError as error:
            raise UserError(
                f"cannot read the quality {part!r}: give whole numbers such as "
                "10,20,30 or START:STOP:STEP such as 5:95:5"
            ) from error
    if not qualities:
        raise UserError(f"the qualities {text!r} are none at all: mind the step's sign")
    return tuple(qualities)
