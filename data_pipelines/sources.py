"""Where clean images come from, checked before anything is written."""

import dataclasses
import hashlib
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from rich.console import Console
from rich.progress import track

from cir_jax import image_io
from cir_jax.errors import UserError


@dataclasses.dataclass(frozen=True)
class SourceImage:
    """One clean image of a source."""

    path: str
    """Below the source's folder, with forward slashes."""
    sha256: str
    height: int
    width: int


def read_source(root: Path) -> tuple[list[SourceImage], dict[str, str]]:
    """Finds, hashes and decodes every image below a folder.

    Each is decoded once here, so that a damaged one is known before the first shard.

    Returns:
        The readable images, sorted by path, and for every unreadable one its path and
        why.

    Raises:
        UserError: the folder is missing, or holds no readable image.
    """
    paths = image_io.find_images(root)
    images: list[SourceImage] = []
    unreadable: dict[str, str] = {}

    def check(path: Path) -> SourceImage | UserError:
        try:
            height, width, _ = image_io.read_rgb(path).shape
        except UserError as error:
            return error
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
        return SourceImage(path.relative_to(root).as_posix(), digest, height, width)

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        checked = pool.map(check, paths)
        for path, result in track(
            zip(paths, checked, strict=True),
            "checking images",
            total=len(paths),
            console=Console(stderr=True),
        ):
            if isinstance(result, UserError):
                unreadable[path.relative_to(root).as_posix()] = str(result)
            else:
                images.append(result)
    if not images:
        first = next(iter(unreadable.values()))
        raise UserError(f"no image of {root} can be read; the first: {first}")
    return images, unreadable
