"""Paired folders: clean images, and degraded ones of the same file stem elsewhere."""

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path, PurePosixPath

from cir_jax.errors import UserError
from data_pipelines.sources import Folder, SourceImage, check_images

UCSR = {
    "LR_JPEG": ("jpeg", {"10": 10, "20": 20, "30": 30, "40": 40}),
    "LR_HM": ("hm", {"q47": 47, "q42": 42, "q37": 37, "q32": 32}),
    "LR_VTM": ("vtm", {"q47": 47, "q42": 42, "q37": 37, "q32": 32}),
    "LR_PSNR": ("c_psnr", {"q1": 1, "q2": 2, "q3": 3, "q4": 4}),
    "LR_SSIM": ("c_ssim", {"q1": 1, "q2": 2, "q3": 3, "q4": 4}),
    "LR_HIFI": ("hific", {"low": 1, "med": 2, "high": 3}),
}
"""The folders of UCIP's UCSR data set, as downloaded: codec, and the quality of each
folder below. LR_x4, the small images before compression, is not among its 23
degradations."""
LAYOUTS = {"ucsr": UCSR}


@dataclasses.dataclass(frozen=True)
class DegradedFolder:
    """A folder of images that one codec degraded at one quality."""

    codec: str
    quality: int
    folder: Folder


def parse_pairs(arguments: Sequence[str]) -> list[DegradedFolder]:
    """Reads the arguments of `--pairs`.

    Args:
        arguments: each CODEC:QUALITY=DIR, or the name of a layout and its DIR, such as
            ucsr=DIR.

    Raises:
        UserError: an argument cannot be read, a folder is missing, or a codec and
            quality is given twice.
    """
    folders: list[DegradedFolder] = []
    for argument in arguments:
        label, _, folder = argument.partition("=")
        codec, _, quality = label.rpartition(":")
        if not folder or not (label in LAYOUTS or (codec and quality.isdecimal())):
            raise UserError(
                f"--pairs {argument}: give CODEC:QUALITY=DIR, such as jpeg:10=LR/10, "
                f"or LAYOUT=DIR with one of {', '.join(LAYOUTS)}"
            )
        root = Path(folder)
        if not root.is_dir():
            raise UserError(
                f"--pairs {argument}: folder {folder} does not exist: give a folder of "
                "degraded images"
            )
        if label in LAYOUTS:
            folders += _layout(label, root.resolve())
        else:
            degraded = Folder(root.resolve())
            folders.append(DegradedFolder(codec, int(quality), degraded))
    labels = [(folder.codec, folder.quality) for folder in folders]
    for codec, quality in labels:
        if labels.count((codec, quality)) > 1:
            raise UserError(f"--pairs: {codec}:{quality} is given twice")
    return folders


def _layout(name: str, root: Path) -> list[DegradedFolder]:
    """The folders of a layout that are there, in the layout's order."""
    layout = LAYOUTS[name]
    folders = [
        DegradedFolder(codec, quality, Folder(root / top / below))
        for top, (codec, qualities) in layout.items()
        for below, quality in qualities.items()
        if (root / top / below).is_dir()
    ]
    if not folders:
        raise UserError(
            f"--pairs {name}={root}: none of the layout's folders is there: expected "
            f"{', '.join(layout)} below it"
        )
    return folders


@dataclasses.dataclass(frozen=True)
class Pairs:
    """Every clean image's partners."""

    folders: tuple[DegradedFolder, ...]
    partners: Mapping[str, tuple[SourceImage | None, ...]]
    """By the clean image's key: its partner in each of the folders, or None."""


def find_partners(
    images: Sequence[SourceImage],
    folders: Sequence[DegradedFolder],
    scale: int,
    others: Sequence[str] = (),
) -> tuple[Pairs, dict[str, str]]:
    """Finds and checks the partners of clean images, by file stem.

    A partner may carry the scale in its name, as in 0001x4.png.

    Args:
        images: the clean images.
        folders: where partners are.
        scale: clean size over degraded size.
        others: keys of clean images that are not used, and whose partners are not
            missed: those of other folds.

    Returns:
        The pairs; and for every degraded image that is missing, unreadable, of another
        size or without a clean image its path and why it was left out.

    Raises:
        UserError: a folder is missing or empty, or two images have the same stem.
    """
    stems = _by_stem([*(image.path for image in images), *others], "the source")
    partners: dict[str, list[SourceImage | None]] = {im.path: [] for im in images}
    sizes = {image.path: (image.height, image.width) for image in images}
    left_out = {}
    for degraded in folders:
        root = degraded.folder.root
        found = _by_stem(degraded.folder.keys(), str(root))
        # First the stems themselves: 1x4 is the partner of 1 only if none is of 1x4.
        keys = {key: found.pop(stem, None) for stem, key in stems.items()}
        for stem, key in stems.items():
            keys[key] = keys[key] or found.pop(f"{stem}x{scale}", None)
        keys = {key: keys[key] for key in partners}
        label = f"{degraded.codec} {degraded.quality}"
        present = [key for key in keys.values() if key]
        checked, unreadable = check_images(degraded.folder, present, label)
        left_out |= {str(root / key): reason for key, reason in unreadable.items()}
        left_out |= {
            str(root / key): "fits no clean image in use: stems must be the same, but "
            f"for an x{scale} at the end (--scale {scale})"
            for key in found.values()
        }
        for clean_key, key in keys.items():
            partner = checked.get(key) if key else None
            height, width = sizes[clean_key]
            expected = (height // scale, width // scale)
            if key is None:
                missing = root / PurePosixPath(clean_key).stem
                left_out[str(missing)] = f"is missing: the partner of {clean_key}"
            elif partner and (partner.height, partner.width) != expected:
                left_out[str(root / key)] = (
                    f"is {partner.width}x{partner.height} pixels where {clean_key} at "
                    f"--scale {scale} asks for {expected[1]}x{expected[0]}"
                )
                partner = None
            partners[clean_key].append(partner)
    pairs = {key: tuple(found) for key, found in partners.items()}
    return Pairs(tuple(folders), pairs), left_out


def _by_stem(keys: Iterable[str], where: str) -> dict[str, str]:
    """Keys by file stem."""
    stems: dict[str, str] = {}
    for key in keys:
        stem = PurePosixPath(key).stem
        if stem in stems:
            raise UserError(
                f"{where} has {stems[stem]} and {key}, of the same stem: pairs need "
                "different ones"
            )
        stems[stem] = key
    return stems
