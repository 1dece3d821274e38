"""Test sets: folders of clean images, and of degraded ones beside them."""

import dataclasses
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
from jaxtyping import UInt8

from cir_jax import image_io
from cir_jax.compression import Compressed
from cir_jax.errors import UserError
from cir_jax.protocols import COLOUR, PROTOCOLS, Protocol

Images = Mapping[str, UInt8[np.ndarray, "_ _ 3"]]
"""Clean images by name."""
SMALLEST = 22
"""Of an image's sides, pixels: cut to a multiple of 4 or 16 and without the largest
border it holds an SSIM window."""


class ImageFolder(Images):
    """The images of a folder by path below it, read when they are asked for.

    All are read once at the start. A table over fewer images would not be comparable,
    so none is left out.

    Raises:
        UserError: the folder is missing or empty, an image cannot be read, or one is
            too small for SSIM.
    """

    def __init__(self, folder: Path):
        self._paths = {
            path.relative_to(folder).as_posix(): path
            for path in image_io.find_images(folder)
        }
        self.folder = folder
        self.sizes: dict[str, tuple[int, int]] = {}
        """Height and width of each, pixels."""
        for name, image in self.items():
            height, width, _ = image.shape
            if min(height, width) < SMALLEST:
                raise UserError(
                    f"{folder / name} is {width}x{height} pixels: SSIM needs sides of "
                    f"at least {SMALLEST}"
                )
            self.sizes[name] = height, width

    def __getitem__(self, name: str) -> UInt8[np.ndarray, "_ _ 3"]:
        return image_io.read_rgb(self._paths[name])

    def __iter__(self) -> Iterator[str]:
        return iter(self._paths)

    def __len__(self) -> int:
        return len(self._paths)


@dataclasses.dataclass(frozen=True)
class Given:
    """A degradation whose results are files.

    Attributes:
        codec_name: the degradation's name.
        paths: the degraded image of each index, as large as the clean one.
    """

    codec_name: str
    paths: tuple[Path, ...]

    @property
    def quality_name(self) -> None:
        """There is nothing to choose."""
        return None

    @property
    def kind(self) -> str:
        """What restorers are told: the name."""
        return self.codec_name

    @property
    def version(self) -> str:
        """Nothing is encoded here."""
        return "degraded images as given"

    def __call__(
        self,
        image: UInt8[np.ndarray, "_ _ 3"],
        scale: int,
        index: int = 0,
        protocol: Protocol = PROTOCOLS[COLOUR],
    ) -> Compressed:
        """Reads the degraded image of an index, for a scale of 1.

        It is cut as the clean one is.
        """
        degraded = protocol.coded(image_io.read_rgb(self.paths[index]))
        return Compressed(protocol.coded(image), degraded, degraded)


class PairedFolder(Images):
    """The clean images of a folder, by the degraded ones of another folder.

    A degraded image is its clean one's partner if their file stems are the same, its
    own has more after an underscore (0001_0.8_0.2.jpg of 0001.png), or they differ as
    rain-001 and norain-001. A clean image may have several partners; each counts as an
    image of the set.

    Args:
        clean: the clean images.
        name: of the degradation, as tables call it.
        folder: of the degraded images.

    Raises:
        UserError: the folder is missing or empty, an image cannot be read, two clean
            ones have the same stem, a clean or a degraded image has no partner, or
            partners are of different sizes.
    """

    def __init__(self, clean: ImageFolder, name: str, folder: Path):
        paths = image_io.find_images(folder)
        stems = _by_stem(clean)
        self._clean = clean
        self._partners: dict[str, str] = {}
        self.sizes: dict[str, tuple[int, int]] = {}
        """Height and width of each, pixels."""
        for path in paths:
            partner = _partner(path.stem, stems)
            if partner is None:
                raise UserError(
                    f"{path} has no clean image in {clean.folder}: expected one of the "
                    "same file stem, or of what stands before an underscore"
                )
            self._partners[path.relative_to(folder).as_posix()] = partner
        alone = sorted(clean.keys() - self._partners.values())
        if alone:
            raise UserError(
                f"{clean.folder / alone[0]} has no degraded image in {folder}, and "
                f"{len(alone)} of {len(clean)} clean ones have none: give all, or take "
                "the clean ones out"
            )
        for path, (key, partner) in zip(paths, self._partners.items(), strict=True):
            size = image_io.read_rgb(path).shape[:2]
            if size != clean.sizes[partner]:
                sizes = size, clean.sizes[partner]
                found, expected = (f"{width}x{height}" for height, width in sizes)
                raise UserError(
                    f"{path} is {found} pixels, its clean image "
                    f"{clean.folder / partner} {expected}: give pairs of one size"
                )
            self.sizes[key] = size
        self.degradation = Given(name, tuple(paths))
        """What gives the degraded images, by their index."""

    def __getitem__(self, name: str) -> UInt8[np.ndarray, "_ _ 3"]:
        return self._clean[self._partners[name]]

    def __iter__(self) -> Iterator[str]:
        return iter(self._partners)

    def __len__(self) -> int:
        return len(self._partners)


def _by_stem(clean: ImageFolder) -> dict[str, str]:
    """The names of clean images by the stems that partners may start with."""
    stems: dict[str, str] = {}
    for name in clean:
        stem = Path(name).stem
        if stem in stems:
            raise UserError(
                f"{clean.folder} has {stems[stem]} and {name}, of the same stem: pairs "
                "need different ones"
            )
        stems[stem] = name
    rainy = {
        stem.removeprefix("no"): name
        for stem, name in stems.items()
        if stem.startswith("norain")
    }
    return rainy | stems


def _partner(stem: str, stems: Mapping[str, str]) -> str | None:
    """The clean image of a degraded one's stem: of the longest stem that fits."""
    words = stem.split("_")
    for count in range(len(words), 0, -1):
        start = "_".join(words[:count])
        if start in stems:
            return stems[start]
    return None
