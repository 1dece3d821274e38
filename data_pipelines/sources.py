"""Where clean images come from, checked before anything is written."""

import dataclasses
import functools
import hashlib
import os
import re
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from rich.console import Console
from rich.progress import track

from cir_jax import image_io, photos
from cir_jax.errors import UserError, unknown

TFDS = "tfds:"
TFDS_FORM = "tfds:NAME[/CONFIG][:VERSION][:SPLIT[:FEATURE]]"


class Source(Protocol):
    """Encoded images by key; small, and the same in every worker."""

    def keys(self) -> Sequence[str]:
        """What the images are called, in order."""

    def read(self, key: str) -> bytes:
        """The encoded image.

        Raises:
            OSError, UserError: it cannot be read.
        """


@dataclasses.dataclass(frozen=True)
class Folder:
    """The images below a folder; their keys are paths with forward slashes."""

    root: Path

    def __str__(self) -> str:
        return str(self.root)

    def keys(self) -> list[str]:
        """The paths below the folder, sorted.

        Raises:
            UserError: the folder is missing, or holds no image.
        """
        paths = image_io.find_images(self.root)
        return sorted(path.relative_to(self.root).as_posix() for path in paths)

    def read(self, key: str) -> bytes:
        """The file's bytes."""
        return (self.root / key).read_bytes()


@dataclasses.dataclass(frozen=True)
class TensorFlowDataset:
    """A prepared tensorflow-datasets data set, read without TensorFlow.

    Attributes:
        name: with config and version as wanted, such as "div2k/bicubic_x4".
        split: such as "train" or "train[:10%]".
        feature: the image feature to take; "" for the only one, or for "hr" where
            there is one (super-resolution sets hold the small image as well).
        data_dir: where prepared data sets are; tensorflow-datasets' own default when
            None.
    """

    name: str
    split: str = "train"
    feature: str = ""
    data_dir: str | None = None

    def __str__(self) -> str:
        feature = f":{self.feature}" if self.feature else ""
        return f"{TFDS}{self.name}:{self.split}{feature}"

    def keys(self) -> list[str]:
        """The images' numbers.

        Raises:
            UserError: see `_open_tfds`.
        """
        return [f"{number:07d}" for number in range(len(_open_tfds(self)[0]))]

    def read(self, key: str) -> bytes:
        """The image as it is encoded in the data set."""
        data, feature = _open_tfds(self)
        try:
            return data[int(key)][feature]
        except RuntimeError as error:  # array_record's for a lost or damaged file
            raise UserError(f"{key} cannot be read ({error})") from error


@functools.lru_cache(maxsize=1)
def _open_tfds(source: TensorFlowDataset) -> tuple[Any, str]:
    """Opens a data set, once a process; returns its elements and the image feature.

    Raises:
        UserError: tensorflow-datasets is not installed, the data set is not prepared,
            not stored as array_record, or has no such split or image feature.
    """
    try:
        import tensorflow_datasets as tfds
        from tensorflow_datasets.core import read_only_builder
    except ImportError as error:
        raise UserError(
            f"--source {source} needs tensorflow-datasets: pip install 'cir_jax[tfds]'"
        ) from error
    # Not tfds.builder: that imports the data set's own code, which needs TensorFlow.
    try:
        builder = read_only_builder.builder_from_files(
            source.name, data_dir=source.data_dir
        )
    except tfds.core.DatasetNotFoundError as error:
        raise UserError(
            f"--source {source}: no prepared data set {source.name} below "
            f"{source.data_dir or tfds.core.constants.DATA_DIR}: with tensorflow "
            f"installed run `tfds build {source.name} --file_format=array_record`, or "
            "set TFDS_DATA_DIR"
        ) from error
    except Exception as error:  # a wrong name or damaged files: each as its parser says
        reason = str(error).split("\n")[0].rstrip(".")
        raise UserError(
            f"--source {source} cannot be opened ({reason}): give {TFDS_FORM}, or "
            "build the data set again"
        ) from error
    array_record = tfds.core.FileFormat.ARRAY_RECORD
    if array_record not in builder.info.available_file_formats():
        # Beside itself in another format tfds does not build a data set.
        raise UserError(
            f"--source {source} is stored as {builder.info.file_format.value}, which "
            "takes TensorFlow to read: with tensorflow installed run `tfds build "
            f"{source.name} --file_format=array_record --data_dir=DIR`, DIR a new "
            "folder, and set TFDS_DATA_DIR=DIR"
        )
    images = sorted(
        name
        for name, feature in builder.info.features.items()
        if isinstance(feature, tfds.features.Image)
    )
    if not images:
        raise UserError(f"--source {source} has no image feature: give another one")
    feature = source.feature or (images[0] if len(images) == 1 else "hr")
    if not source.feature and feature not in images:
        raise UserError(
            f"--source {source} has the image features {', '.join(images)}: "
            f"give one of them, as in {source}:{images[0]}"
        )
    if feature not in images:
        raise unknown(f"image feature of {source.name}", feature, images)
    try:
        data = builder.as_data_source(
            source.split,
            decoders=dict.fromkeys(images, tfds.decode.SkipDecoding()),
            file_format=array_record,
        )
    except ValueError as error:  # also slices that are empty or go too far
        raise unknown(
            f"split, or slice of one, of {source.name}",
            source.split,
            builder.info.splits,
        ) from error
    return data, feature


def open_source(text: str) -> Source:
    """The source that `--source` names.

    Args:
        text: a folder, `photos:SPLIT` of the photographs that ship, or
            `TFDS_FORM`, below the folder that the environment's TFDS_DATA_DIR names.

    Raises:
        UserError: there is no such source.
    """
    if text.startswith(TFDS):
        return _tfds_source(text.removeprefix(TFDS))
    return Folder(photos.resolve(text))


def _tfds_source(text: str) -> TensorFlowDataset:
    name, *rest = re.split(r":(?![^\[]*\])", text)  # not the colon of train[:10%]
    if rest and re.fullmatch(r"[\d*]+(\.[\d*]+){2}", rest[0]):
        name = f"{name}:{rest.pop(0)}"
    if not name or len(rest) > 2:
        raise UserError(f"--source {TFDS}{text}: give it as {TFDS_FORM}")
    split, feature = [*rest, "", ""][:2]
    # tfds reads the variable only when it is imported, and does not expand "~".
    data_dir = os.environ.get("TFDS_DATA_DIR")
    return TensorFlowDataset(
        name, split or "train", feature, data_dir and os.path.expanduser(data_dir)
    )


@dataclasses.dataclass(frozen=True)
class SourceImage:
    """One image of a source."""

    path: str
    """Its key: below a source folder, the path with forward slashes."""
    sha256: str
    """Of the encoded image."""
    height: int
    width: int


def read_image(source: Source, key: str) -> np.ndarray:
    """Decodes an image of a source to RGB, uint8 [h, w, 3].

    Raises:
        UserError: it cannot be read or decoded.
    """
    return image_io.decode_rgb(_read(source, key), f"{source}: {key}")


def check_images(
    source: Source, keys: Iterable[str], what: str
) -> tuple[dict[str, SourceImage], dict[str, str]]:
    """Hashes and decodes images: a damaged one is known before the first shard.

    Args:
        source: where they are.
        keys: which of them.
        what: what the progress bar calls them.

    Returns:
        The readable images by key, in order; and for every unreadable one its key and
        why.
    """
    keys = list(keys)

    def check(key: str) -> SourceImage | UserError:
        try:
            key.encode()
            data = _read(source, key)
            height, width, _ = image_io.decode_rgb(data, key).shape
        except UserError as error:
            return error
        except UnicodeEncodeError:
            return UserError("its name is not UTF-8: rename it")
        return SourceImage(key, hashlib.sha256(data).hexdigest(), height, width)

    images: dict[str, SourceImage] = {}
    unreadable: dict[str, str] = {}
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        console = Console(stderr=True)
        checked = zip(keys, pool.map(check, keys), strict=True)
        for key, result in track(
            checked, f"checking {what}", total=len(keys), console=console
        ):
            if isinstance(result, UserError):
                unreadable[key] = str(result)
            else:
                images[key] = result
    return images, unreadable


def _read(source: Source, key: str) -> bytes:
    try:
        return source.read(key)
    except OSError as error:
        raise UserError(f"{key} cannot be read: {error.strerror or error}") from error
