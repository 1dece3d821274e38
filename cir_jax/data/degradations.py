"""Degradations: what is done to a clean image, step by step.

A degradation is written as text:

    jpeg 10,20,30,40                   a codec and its qualities
    jpeg 5:95:1 shifted + jpeg 5:95:1  steps in a row; the first one's grid is shifted
    jpeg 95 kept + jpeg 90,95          the first step is not to be undone
    noise 15,25,50                     Gaussian noise of that standard deviation, 0..255

`shifted` moves the codec's block grid by 0..7 rows and columns at random: what happens
to a JPEG that is cropped and saved again. `kept` makes a step's result the original
that is to be restored: good JPEGs are what most originals are.
"""

import contextlib
import functools
import itertools
import math
import shlex
from collections.abc import Iterable, Iterator
from typing import NamedTuple

import numpy as np
from jaxtyping import UInt8

from cir_jax import codecs
from cir_jax.data.records import Version, encode_lossless
from cir_jax.errors import UserError

BLOCK = 8
"""The side of a JPEG block, pixels."""
NOISE = "noise"
SHIFTED = "shifted"
KEPT = "kept"
MARKS = ([], [SHIFTED], [KEPT], [SHIFTED, KEPT])
"""What may follow a step's qualities."""
TRIAL = np.full((64, 64, 3), 128, np.uint8)
MOST_CHAINS = 100_000


class Step(NamedTuple):
    """One operation of a degradation."""

    codec: str
    """What `codecs.get_codec` takes, or "noise"."""
    quality: int
    shifted: bool = False
    kept: bool = False

    def __str__(self) -> str:
        words = f" {SHIFTED}" * self.shifted + f" {KEPT}" * self.kept
        return f"{self.codec} {self.quality}{words}"


Chain = tuple[Step, ...]
"""The operations of one degradation, in order."""


def split(text: str) -> list[list[str]]:
    """The words of each step of a degradation's text.

    Raises:
        UserError: a quotation is not closed.
    """
    steps: list[list[str]] = [[]]
    try:
        words = shlex.split(text)
    except ValueError as error:
        raise UserError(f"cannot read the degradation {text!r}: {error}") from error
    for word in words:
        if word == "+":
            steps.append([])
        else:
            steps[-1].append(word)
    return steps


def parse(text: str) -> tuple[Chain, ...]:
    """The chains of a degradation's text: the product of its steps' qualities.

    Raises:
        UserError: the text cannot be read; says which part of it.
    """
    steps = [_parse_step(words) for words in split(text)]
    kept = [alike[0].kept for alike in steps]
    if all(kept) or kept != sorted(kept, reverse=True):
        raise UserError(
            f"the degradation {text!r}: give the steps that are {KEPT} first, and one "
            "at least that is not"
        )
    count = math.prod(map(len, steps))
    if count > MOST_CHAINS:
        raise UserError(
            f"the degradation {text!r} is {count:,} combinations of qualities, more "
            f"than {MOST_CHAINS:,}: give fewer qualities"
        )
    return tuple(itertools.product(*steps))


def _parse_step(words: list[str]) -> list[Step]:
    """The steps that a part of a degradation stands for, one for each quality."""
    match words:
        case [codec, qualities, *marks] if marks in MARKS:
            shifted, kept = SHIFTED in marks, KEPT in marks
            if not (shifted and codec == NOISE):  # which has no grid
                numbers = codecs.parse_qualities(qualities)
                return [Step(codec, number, shifted, kept) for number in numbers]
    raise UserError(
        f"cannot read the degradation step {shlex.join(words)!r}: give CODEC "
        f"QUALITIES, such as 'jpeg 10,20', 'jpeg 5:95:5 {SHIFTED}', 'jpeg 95 {KEPT}' "
        f"or '{NOISE} 25'"
    )


@functools.cache
def codec(name: str) -> codecs.CodecProtocol:
    """The codec of that name, made once a process.

    Raises:
        UserError: see `codecs.get_codec`.
    """
    return codecs.get_codec(name)


@functools.cache
def check(step: Step) -> None:
    """Tries a step on a small image, both ways.

    Raises:
        UserError: its codec is unknown, fails, or does not have the quality.
    """
    if step.codec != NOISE:
        codecs.check_quality(codec(step.codec), step.quality)
    elif step.quality < 0:
        raise UserError(f"{step}: give a deviation of 0 or more")
    _Applied(step, np.random.default_rng(0)).pixels(TRIAL)


def label(chain: Chain) -> str:
    """What records call a degradation: its codecs' names, "jpeg+jpeg" for two.

    Steps that are kept are no part of it.
    """
    names = (step.codec for step in chain if not step.kept)
    return "+".join(name if name == NOISE else codec(name).name for name in names)


def original(
    image: UInt8[np.ndarray, "h w 3"], chain: Chain, rng: np.random.Generator
) -> UInt8[np.ndarray, "h w 3"]:
    """The image that is to be restored: after the steps that are kept.

    Raises:
        UserError: a codec fails.
    """
    return _after(image, (step for step in chain if step.kept), rng)


def pixels(
    image: UInt8[np.ndarray, "h w 3"], chain: Chain, rng: np.random.Generator
) -> UInt8[np.ndarray, "h w 3"]:
    """The degraded image: an original after the steps that are not kept.

    Raises:
        UserError: a codec fails.
    """
    return _after(image, (step for step in chain if not step.kept), rng)


def _after(
    image: np.ndarray, steps: Iterable[Step], rng: np.random.Generator
) -> np.ndarray:
    for step in steps:
        image = _Applied(step, rng).pixels(image)
    return image


def version(
    image: UInt8[np.ndarray, "h w 3"], chain: Chain, rng: np.random.Generator
) -> Version:
    """The degraded image as a record keeps it; of a chain without kept steps.

    Raises:
        UserError: a codec fails.
    """
    *before, last = (_Applied(step, rng) for step in chain)
    for step in before:
        image = step.pixels(image)
    bits, stored = last.stored(image)
    return Version(
        codec=label(chain),
        quality=chain[-1].quality,
        bits=bits,
        image=stored,
        history=" + ".join(map(str, (*before, last))),
    )


def add_noise(
    image: UInt8[np.ndarray, "h w c"], deviation: int, rng: np.random.Generator
) -> UInt8[np.ndarray, "h w c"]:
    """An image with Gaussian noise, rounded and clipped.

    Args:
        image: 8-bit pixels.
        deviation: the noise's standard deviation, 8-bit levels.
        rng: what draws it, row by row.
    """
    noise = rng.normal(scale=deviation, size=image.shape)
    return np.clip(np.round(image + noise), 0, 255).astype(np.uint8)


class _Applied:
    """A step with its random choices made."""

    def __init__(self, step: Step, rng: np.random.Generator):
        self._step, self._rng = step, rng
        self.shift = (0, 0)
        if step.shifted:
            self.shift = tuple(map(int, rng.integers(BLOCK, size=2)))

    def __str__(self) -> str:
        shift = " at {},{}".format(*self.shift) if self._step.shifted else ""
        return f"{label((self._step,))} {self._step.quality}{shift}"

    def pixels(self, image: np.ndarray) -> np.ndarray:
        """The degraded image."""
        if self._step.codec == NOISE:
            return add_noise(image, self._step.quality, self._rng)
        return self._decode(self._encode(image), image.shape)

    def stored(self, image: np.ndarray) -> tuple[int, bytes]:
        """The bits of the bitstream, and what a record keeps of the result."""
        if self._step.codec == NOISE:
            return 0, encode_lossless(self.pixels(image))
        bitstream = self._encode(image)
        if codec(self._step.codec).pillow_decodes and self.shift == (0, 0):
            return 8 * len(bitstream), bitstream
        pixels = self._decode(bitstream, image.shape)
        return 8 * len(bitstream), encode_lossless(pixels)

    def _encode(self, image: np.ndarray) -> bytes:
        """The bitstream: of the image with mirrored rows and columns in front."""
        y, x = self.shift
        if self.shift != (0, 0):  # np.pad takes a third of a JPEG's time
            image = np.pad(image, ((y, 0), (x, 0), (0, 0)), mode="symmetric")
        with self._named_failure(image.shape):
            return codec(self._step.codec).encode(image, self._step.quality)

    def _decode(self, bitstream: bytes, shape: tuple[int, ...]) -> np.ndarray:
        """The image without the rows and columns in front."""
        y, x = self.shift
        with self._named_failure(shape):
            image = codec(self._step.codec).decode(bitstream)[y:, x:]
            if image.shape != shape:
                raise ValueError("its decoder gives {1}x{0}".format(*image.shape))
        return np.ascontiguousarray(image)

    @contextlib.contextmanager
    def _named_failure(self, shape: tuple[int, ...]) -> Iterator[None]:
        """Says which codec failed, whatever its library raises."""
        try:
            yield
        except UserError:
            raise
        except Exception as error:
            pixels = "{1}x{0} pixels".format(*shape)
            raise UserError(f"codec {self} failed on {pixels}: {error}") from error
