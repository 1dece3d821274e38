"""Where clean images come from, checked before anything is written."""

import contextlib
import dataclasses
import hashlib
import os
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Protocol

import numpy as np
from rich.console import Console
from rich.progress import track

from cir_jax import image_io, photos
from cir_jax.errors import UserError
from data_pipelines import tfds_source


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
        return [path.relative_to(self.root).as_posix() for path in paths]

    def read(self, key: str) -> bytes:
        """The file's bytes."""
        return (self.root / key).read_bytes()


def open_source(text: str) -> Source:
    """The source that `--source` names.

    Args:
        text: a folder, `photos:SPLIT` of the photographs that ship, or
            `tfds_source.FORM`.

    Raises:
        UserError: there is no such source.
    """
    if text.startswith(tfds_source.MARK):
        return tfds_source.parse(text)
    return Folder(photos.resolve(text).resolve())


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
    with (
        ThreadPoolExecutor(os.cpu_count()) as pool,
        # Closed, it drops what is still queued: an interrupt need not wait for that.
        contextlib.closing(pool.map(check, keys)) as results,
    ):
        checked = zip(keys, results, strict=True)
        for key, result in track(
            checked,
            f"checking {what}",
            total=len(keys),
            console=Console(stderr=True),
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
