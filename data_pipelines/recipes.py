"""Degradation recipes: from a clean crop to its compressed versions."""

import dataclasses
import functools
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from jaxtyping import UInt8

from cir_jax import codecs, image_io
from cir_jax.data.records import Record, Version, encode_lossless
from cir_jax.errors import UserError, unknown
from data_pipelines.sources import SourceImage


@dataclasses.dataclass(frozen=True)
class Recipe:
    """Which compressed versions a crop gets.

    Attributes:
        degradations: (codec, quality) pairs.
        draws: how many of them each crop gets, drawn without replacement; None for
            all of them, in order.
    """

    degradations: tuple[tuple[str, int], ...]
    draws: int | None = None

    def versions(
        self, clean: UInt8[np.ndarray, "h w 3"], rng: np.random.Generator
    ) -> tuple[Version, ...]:
        """Compresses a clean crop.

        Raises:
            UserError: a codec refuses the image or the quality.
        """
        chosen: Sequence[tuple[str, int]] = self.degradations
        if self.draws is not None:
            picks = rng.choice(len(chosen), self.draws, replace=False)
            chosen = [chosen[pick] for pick in picks]
        return tuple(_version(clean, *degradation) for degradation in chosen)


@functools.cache
def _codec(name: str) -> codecs.CodecProtocol:
    return codecs.get_codec(name)


def _version(clean: np.ndarray, name: str, quality: int) -> Version:
    codec = _codec(name)
    bitstream = codec.encode(clean, quality)
    image = bitstream
    if not codec.pillow_decodes:
        image = encode_lossless(codec.decode(bitstream))
    return Version(codec.name, quality, 8 * len(bitstream), image)


def with_qualities(codec: str, qualities: Sequence[int]) -> Recipe:
    """A recipe of one codec at every one of the qualities.

    Raises:
        UserError: no such codec, or it does not have one of the qualities.
    """
    for quality in qualities:
        codecs.check_quality(_codec(codec), quality)
    return Recipe(tuple((codec, quality) for quality in qualities))


PRESETS = {
    # PromptCIR's first stage: seven predefined quality factors. The paper's are not
    # known; 10..70 is a guess.
    "jpeg7": with_qualities("jpeg", range(10, 71, 10)),
    # Blind training: a crop gets 8 of the 91 qualities, so crops that overlap, and the
    # epochs over them, see most.
    "blind-jpeg": dataclasses.replace(
        with_qualities("jpeg", range(5, 96)), draws=8
    ),
}  # fmt: skip


def get_recipe(name: str) -> Recipe:
    """The preset of that name.

    Raises:
        UserError: no such preset; names the near ones.
    """
    if name not in PRESETS:
        raise unknown("recipe", name, PRESETS)
    return PRESETS[name]


@dataclasses.dataclass(frozen=True)
class CropRecords:
    """Random access to the serialised records of a source: the whole data set, lazily.

    Element i is a pure function of the arguments and i. A grain
    `RandomAccessDataSource`; engines map it over workers or machines.
    """

    root: Path
    images: tuple[SourceImage, ...]
    recipe: Recipe
    crop: int
    stride: int
    seed: int

    @functools.cached_property
    def places(self) -> list[tuple[int, int, int]]:
        """Every crop's image number, row and column, image by image."""
        return [
            (number, y, x)
            for number, image in enumerate(self.images)
            for y in _starts(image.height, self.crop, self.stride)
            for x in _starts(image.width, self.crop, self.stride)
        ]

    def __len__(self) -> int:
        return len(self.places)

    def __getitem__(self, index: int) -> bytes:
        number, y, x = self.places[index]
        image = self.images[number]
        clean = _read(self.root / image.path)[y : y + self.crop, x : x + self.crop]
        if clean.shape[:2] != (self.crop, self.crop):
            raise UserError(f"{image.path} changed while it was being encoded")
        clean = np.ascontiguousarray(clean)
        versions = self.recipe.versions(
            clean, np.random.default_rng((self.seed, index))
        )
        record = Record(encode_lossless(clean), image.path, (y, x), 1, versions)
        return record.to_bytes()


def _starts(size: int, crop: int, stride: int) -> list[int]:
    """Where crops start along a side; the last one ends with the side."""
    if size < crop:
        return []
    return [*range(0, size - crop, stride), size - crop]


@functools.lru_cache(maxsize=1)
def _read(path: Path) -> np.ndarray:
    """The crops of one image follow each other, so one image is kept."""
    return image_io.read_rgb(path)
