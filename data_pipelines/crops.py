"""From images to serialised records: random access to a data set that is not yet made.

Both classes are what engines map over workers or machines: element i is a pure function
of the arguments and i.
"""

import bisect
import dataclasses
import functools
import itertools
from typing import Any, Protocol

import numpy as np

from cir_jax.data.recipes import Recipe
from cir_jax.data.records import Record, Version, encode_lossless
from cir_jax.errors import UserError
from cir_jax.protocols import grey
from cir_jax.resize import downscale, modcrop
from data_pipelines.folds import Fold
from data_pipelines.paired_folders import DegradedFolder, Pairs
from data_pipelines.sources import Source, SourceImage, read_image


@dataclasses.dataclass(frozen=True)
class Crops:
    """Which crops an image set has.

    Attributes:
        images: in order.
        crop: side of the clean crops, pixels.
        stride: between crops, pixels.
        scale: clean size over degraded size.
        grey: whether images are made grey, in three channels.
        step: crops start at multiples of it.
    """

    images: tuple[SourceImage, ...]
    crop: int
    stride: int
    scale: int
    grey: bool
    step: int

    def __len__(self) -> int:
        return self._ends[-1] if self._ends else 0

    def place(self, index: int) -> tuple[SourceImage, int, int]:
        """A crop's image, row and column; crops are in order image by image."""
        number = bisect.bisect_right(self._ends, index)
        image = self.images[number]
        rows, columns = self._starts(image.height), self._starts(image.width)
        first = self._ends[number] - len(rows) * len(columns)
        row, column = divmod(index - first, len(columns))
        return image, rows[row], columns[column]

    def describe(self) -> dict[str, Any]:
        """The images and how they are cut, for the manifest."""
        return {
            "images": [dataclasses.asdict(image) for image in self.images],
            "crop": self.crop,
            "stride": self.stride,
            "scale": self.scale,
            "grey": self.grey,
        }

    @functools.cached_property
    def _ends(self) -> list[int]:
        """How many crops there are up to each image; places would fill memory."""
        counts = (
            len(self._starts(image.height)) * len(self._starts(image.width))
            for image in self.images
        )
        return list(itertools.accumulate(counts))

    def _starts(self, size: int) -> list[int]:
        """Where crops start along a side; the last ends with the side, or nearly."""
        last = (size - self.crop) // self.step * self.step
        if size < self.crop:
            return []
        strides = range(0, last, self.stride)
        return [*dict.fromkeys(y // self.step * self.step for y in strides), last]


class Records(Protocol):
    """The records of a data set, made when they are asked for."""

    origin: str
    """Where the images come from, for the manifest."""

    def __len__(self) -> int:
        """How many there are."""

    def name(self, index: int) -> str:
        """What a record is called that could not be made."""

    def describe(self) -> dict[str, Any]:
        """All that decides the records' bytes, for the manifest."""

    def record(self, index: int) -> Record:
        """Makes a record.

        Raises:
            UserError: a codec or an image fails.
        """


@dataclasses.dataclass(frozen=True)
class CropRecords:
    """Records that are made of a source's crops, one of each."""

    source: Source
    crops: Crops
    fold: Fold | None
    """The one that the crops are of, for the manifest."""

    def __len__(self) -> int:
        return len(self.crops)

    def name(self, index: int) -> str:
        """See `Records`."""
        image, y, x = self.crops.place(index)
        return f"{image.path} at {y},{x}"

    def describe(self) -> dict[str, Any]:
        """See `Records`; what all crops have, whatever is done to them."""
        fold = {"fold": str(self.fold)} if self.fold else {}
        return self.crops.describe() | fold


@dataclasses.dataclass(frozen=True)
class RecipeRecords(CropRecords):
    """Crops that a recipe degrades; without versions if the recipe runs online."""

    recipe: Recipe
    online: bool
    seed: int

    @property
    def origin(self) -> str:
        """See `Records`."""
        return str(self.source)

    def describe(self) -> dict[str, Any]:
        """See `Records`."""
        return super().describe() | {
            "recipe": dataclasses.asdict(self.recipe),
            "online": self.online,
            "codecs": self.recipe.versions_of_codecs,
            "seed": self.seed,
        }

    def record(self, index: int) -> Record:
        """See `Records`."""
        image, y, x = self.crops.place(index)
        crop, scale = self.crops.crop, self.crops.scale
        large, small = _read_scaled(self.source, image, scale, self.crops.grey)
        clean = _cut(large, y, x, crop)
        versions: tuple[Version, ...] = ()
        if not self.online:
            rng = np.random.default_rng((self.seed, index))
            degraded = _cut(small, y // scale, x // scale, crop // scale)
            versions = self.recipe.versions(degraded, rng)
        return Record(encode_lossless(clean), image.path, (y, x), scale, versions)


@dataclasses.dataclass(frozen=True)
class PairRecords(CropRecords):
    """Crops of images that were degraded as a whole, by others."""

    pairs: Pairs

    @property
    def origin(self) -> str:
        """See `Records`."""
        folders = ", ".join(str(degraded.folder) for degraded in self.pairs.folders)
        return f"{self.source}, degraded: {folders}"

    def describe(self) -> dict[str, Any]:
        """See `Records`."""
        kinds = [(degraded.codec, degraded.quality) for degraded in self.pairs.folders]
        partners = {
            key: [partner and partner.sha256 for partner in partners]
            for key, partners in self.pairs.partners.items()
        }
        return super().describe() | {"pairs": kinds, "partners": partners}

    def record(self, index: int) -> Record:
        """See `Records`."""
        image, y, x = self.crops.place(index)
        crop, scale = self.crops.crop, self.crops.scale
        large, _ = _read_scaled(self.source, image, 1, self.crops.grey)
        clean = _cut(large, y, x, crop)
        versions = tuple(
            Version(
                degraded.codec,
                degraded.quality,
                0,  # of the crop's share nothing is known
                encode_lossless(_cut(whole, y // scale, x // scale, crop // scale)),
                f"{degraded.codec} {degraded.quality}: {partner.path}",
            )
            for degraded, partner, whole in _read_partners(
                self.pairs.folders, self.pairs.partners[image.path], self.crops.grey
            )
        )
        return Record(encode_lossless(clean), image.path, (y, x), scale, versions)


def _cut(image: np.ndarray, y: int, x: int, size: int) -> np.ndarray:
    return np.ascontiguousarray(image[y : y + size, x : x + size])


def _read_checked(source: Source, image: SourceImage, as_grey: bool) -> np.ndarray:
    """Reads an image again that was checked before, grey if it is wanted so."""
    pixels = read_image(source, image.path)
    if pixels.shape[:2] != (image.height, image.width):
        raise UserError(f"{image.path} changed while it was being encoded")
    # An RGB JPEG of equal channels has the very pixels of a grey one.
    return grey(pixels).repeat(3, axis=-1) if as_grey else pixels


# The crops of one image follow each other, so one image is kept.
@functools.lru_cache(maxsize=1)
def _read_scaled(
    source: Source, image: SourceImage, scale: int, as_grey: bool
) -> tuple[np.ndarray, np.ndarray]:
    """An image, cut to a multiple of the scale, and the same downscaled."""
    large = modcrop(_read_checked(source, image, as_grey), scale)
    return large, downscale(large, scale)


@functools.lru_cache(maxsize=1)
def _read_partners(
    folders: tuple[DegradedFolder, ...],
    partners: tuple[SourceImage | None, ...],
    as_grey: bool,
) -> list[tuple[DegradedFolder, SourceImage, np.ndarray]]:
    """The partners of a clean image that are there, with their pixels."""
    return [
        (degraded, partner, _read_checked(degraded.folder, partner, as_grey))
        for degraded, partner in zip(folders, partners, strict=True)
        if partner
    ]
