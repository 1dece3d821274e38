"""Sheets of pictures and versions of them: the whole, and where they differ most."""

import dataclasses
import math
import string
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from jaxtyping import UInt8

from cir_jax import image_arrays, image_io, metrics, pictures
from cir_jax.errors import UserError
from cir_jax.resize import upscale

WIDTH = HEIGHT = 2400
"""Of a sheet, and of one picture's crops on it, at most, pixels."""
PICTURES = 6
"""Of folders, at most, on one sheet."""
VERSIONS = 6
"""Of a picture, at most, the first among them: so many captions fit side by side."""
CAPTION = 200
"""The width that a crop's caption always has, pixels."""
OVERVIEW = (480, 380)
"""Of a whole picture: the height at most, and the width it always has, pixels."""
ZOOM, ZOOM_OF_SEVERAL = 4, 3
"""Of crops, at most, where none is asked for: on a sheet of one picture, of several."""
FRAMES = 5 * pictures.MARGIN
"""The margins around crops: those of three sheets, one inside the other."""


@dataclasses.dataclass(frozen=True)
class Version:
    """One of the images that are compared."""

    letter: str
    name: str
    image: UInt8[np.ndarray, "h w 3"]
    """As large as the largest version."""
    scale: int
    """By how much it was enlarged."""

    @property
    def enlargement(self) -> str:
        """In words, where there is one."""
        return f"enlarged x{self.scale} (bicubic)"


def compare(
    inputs: Sequence[Path],
    out: Path,
    *,
    crops: int = 3,
    size: int = 64,
    zoom: int | None = None,
) -> list[str]:
    """Writes a sheet of pictures, versions of them and their differences.

    Each picture has a legend with the PSNR of every version against the first, the
    whole with boxes where crops were taken, the whole difference (the largest among the
    versions), and a row for each crop: all versions, then the amplified differences
    from the first. The crops lie where the differences of all versions sum up to most.

    Args:
        inputs: image files, the first of which the others are versions of; or folders
            of such, of the same file stems. They are read as `cir restore` does, in
            8 bits and without alpha. Smaller versions are enlarged, bicubic, where the
            largest is larger by a whole number.
        out: the PNG; overwritten, if it is there.
        crops: of every picture, at most.
        size: side of the crops, pixels of the largest version.
        zoom: whole-number enlargement of the crops; when None what fits, at most 4, or
            3 on a sheet of several pictures.

    Returns:
        Sentences about pictures of the folders that the sheet leaves out.

    Raises:
        UserError: fewer than two inputs or more than six, files among folders, an image
            that is missing, damaged or of a size that does not fit the others', folders
            without a common stem, crops that are too large for a sheet, or an output
            that is no PNG or among the inputs.
    """
    _check_numbers({"--crops": crops, "--size": size, "--zoom": zoom})
    if not 2 <= len(inputs) <= VERSIONS:
        raise UserError(
            f"compare was given {len(inputs)} of the 2 to {VERSIONS} images or folders "
            "that it puts side by side: give the one before first, then versions of it"
        )
    _check_output(inputs, out)
    matched, left_out = _match(inputs)
    if len(matched) > PICTURES:
        rest = list(matched)[PICTURES:]
        left_out.append(
            f"a sheet shows {PICTURES} pictures and leaves out {len(rest)}: "
            + ", ".join(rest)
        )
    zooms = (
        (zoom,)
        if zoom
        else range(ZOOM if len(matched) == 1 else ZOOM_OF_SEVERAL, 0, -1)
    )
    blocks = [
        _block(paths, crops, size, zooms) for paths in list(matched.values())[:PICTURES]
    ]
    image_io.write_png(out, _arranged(blocks))
    return left_out


def _check_numbers(options: dict[str, int | None]) -> None:
    for flag, value in options.items():
        if value is not None and value < 1:
            raise UserError(f"{flag} is {value}: give at least 1")


def _check_output(inputs: Sequence[Path], out: Path) -> None:
    """Refuses outputs that are no PNG, or that an input would be lost by."""
    if out.suffix.lower() != ".png" or out.is_dir():
        raise UserError(f"the sheet {out} is a PNG: give a file name that ends in .png")
    for path in inputs:
        if path.is_dir() and out.resolve().is_relative_to(path.resolve()):
            raise UserError(
                f"the sheet {out} lies inside the input folder {path}: give a place "
                "outside"
            )
        if out.exists() and path.exists() and out.samefile(path):
            raise UserError(
                f"the sheet {out} would overwrite an input: give another name"
            )


def _match(inputs: Sequence[Path]) -> tuple[dict[str, list[Path]], list[str]]:
    """The versions of every picture, and sentences about what has no counterpart."""
    for path in inputs:
        if not path.exists():
            raise UserError(f"{path} does not exist: give image files or folders")
    folders = [path for path in inputs if path.is_dir()]
    if not folders:
        return {inputs[0].stem: list(inputs)}, []
    if len(folders) < len(inputs):
        file = next(path for path in inputs if not path.is_dir())
        raise UserError(
            f"{folders[0]} is a folder and {file} is a file: give files only, or "
            "folders only"
        )
    by_stem = [_stems(folder) for folder in folders]
    common = [stem for stem in by_stem[0] if all(stem in found for found in by_stem)]
    if not common:
        raise UserError(
            f"{' and '.join(map(str, folders))} have no file stem in common: give "
            "folders of versions of the same pictures"
        )
    alone = sorted({stem for found in by_stem for stem in found} - set(common))
    sentences = [f"not in every folder: {', '.join(alone)}"] if alone else []
    return {stem: [found[stem] for found in by_stem] for stem in common}, sentences


def _stems(folder: Path) -> dict[str, Path]:
    """The images of a folder by their path below it, without suffix."""
    found: dict[str, Path] = {}
    for path in image_io.find_images(folder):
        stem = path.relative_to(folder).with_suffix("").as_posix()
        if stem in found:
            raise UserError(
                f"{found[stem]} and {path} have the same stem, so which one to compare "
                "is open: move one away"
            )
        found[stem] = path
    return found


def _block(
    paths: Sequence[Path], crops: int, size: int, zooms: Sequence[int]
) -> UInt8[np.ndarray, "_ _ 3"]:
    """One picture's part of the sheet: legend, the whole, crops."""
    first, *others = _read(paths)
    differences = [pictures.difference(first.image, each.image) for each in others]
    windows = pictures.most_changed(differences, size, crops)
    sides = [min(size, side) for side in first.image.shape[:2]]
    zoom = _fitting_zoom(sides, len(windows), len(others) + 1, zooms)
    factor = _factor([each[window] for each in differences for window in windows])
    rows = [
        _crops(number, window, first, others, differences, factor, zoom)
        for number, window in enumerate(windows, start=1)
    ]
    grid = pictures.sheet(rows, zoom)
    width = max(2 * OVERVIEW[1], grid.shape[1])
    room = (OVERVIEW[0], (width - 3 * pictures.MARGIN) // 2)
    if len(others) > 1:
        label = f"largest |version - {first.letter}| x {factor}, whole"
    else:
        label = f"{_difference_label(first, others[0], factor)}, whole"
    largest = _amplified(np.maximum.reduce(differences), factor)
    whole = [
        (
            f"{first.letter}, whole; crops of {sides[1]}x{sides[0]}",
            pictures.overview(first.image, windows, room),
        ),
        (label, pictures.overview(largest, windows, room)),
    ]
    legend = [_legend(each, first, width) for each in (first, *others)]
    return pictures.sheet(
        [[("\n".join(legend), pictures.sheet([whole]))], [("", grid)]]
    )


def _read(paths: Sequence[Path]) -> list[Version]:
    """Reads the versions of a picture, all brought to the size of the largest."""
    decoded = (image_io.read_picture(path).pixels for path in paths)
    images = [
        pixels if pixels.dtype == np.uint8 else image_arrays.eight_bits(pixels)
        for pixels in decoded
    ]
    largest = max(range(len(images)), key=lambda index: images[index].size)
    height, width, _ = images[largest].shape
    versions = []
    for letter, name, path, image in zip(
        string.ascii_uppercase, _names(paths), paths, images, strict=False
    ):
        scale = height // image.shape[0]
        if (scale * image.shape[0], scale * image.shape[1]) != (height, width):
            raise UserError(
                f"{path} is {image.shape[1]}x{image.shape[0]} pixels and "
                f"{paths[largest]} {width}x{height}: versions of a picture have one "
                "size, or are smaller by a whole number: cut or resize one of them"
            )
        versions.append(Version(letter, name, upscale(image, scale), scale))
    return versions


def _names(paths: Sequence[Path]) -> list[str]:
    """File names, with as many folders in front as tell them apart."""
    for depth in range(1, max(len(path.parts) for path in paths)):
        names = ["/".join(path.parts[-depth:]) for path in paths]
        if len(set(names)) == len(names):
            return names
    return [path.as_posix() for path in paths]


def _fitting_zoom(
    sides: Sequence[int], rows: int, versions: int, zooms: Sequence[int]
) -> int:
    """The first of some zooms at which a picture's crops fit the sheet.

    Raises:
        UserError: none does.
    """
    columns = 2 * versions - 1
    caption = 2 * pictures.LINE + pictures.GAP
    for zoom in zooms:
        height, width = (zoom * side for side in sides)
        height = rows * (height + caption + pictures.MARGIN)
        width = columns * (max(width, CAPTION) + pictures.MARGIN) + FRAMES
        if height <= HEIGHT and width <= WIDTH:
            return zoom
    raise UserError(
        f"{rows} rows of {columns} crops of {sides[1]}x{sides[0]} pixels, zoom {zoom}, "
        f"take {width}x{height} pixels, more than a sheet's {WIDTH}x{HEIGHT}: lower "
        "--zoom, --size or --crops"
    )


def _factor(differences: Sequence[UInt8[np.ndarray, "h w 3"]]) -> int:
    """The power of two that brings nearly all (99%) of what crops show within 8 bits.

    One factor for all crops of a picture, so that they compare.
    """
    large = float(np.percentile(np.stack(differences), 99))
    return 2 ** int(math.log2(255 / max(1.0, large)))


def _amplified(
    difference: UInt8[np.ndarray, "h w 3"], factor: int
) -> UInt8[np.ndarray, "h w 3"]:
    return np.minimum(difference.astype(np.uint16) * factor, 255).astype(np.uint8)


def _crops(
    number: int,
    window: pictures.Window,
    first: Version,
    others: Sequence[Version],
    differences: Sequence[UInt8[np.ndarray, "h w 3"]],
    factor: int,
    zoom: int,
) -> list[tuple[str, UInt8[np.ndarray, "_ _ 3"]]]:
    """A row of captioned crops: all versions, then their differences from the first."""
    y, x = (side.start for side in window)
    room = max(CAPTION, zoom * first.image[window].shape[1])
    row = [(f"{number}:  x {x}, y {y}, zoom {zoom}", first)]
    for version in others:
        if version.scale > 1:
            words = version.enlargement
        elif first.scale > 1:
            words = ""
        else:
            words = f"{_likeness(first.image[window], version.image[window])} here"
        row.append((words, version))
    cells = []
    for words, version in row:
        name = pictures.shorten(f"{version.letter}   {version.name}", room)
        cells.append((f"{name}\n{words}", version.image[window]))
    for version, difference in zip(others, differences, strict=True):
        part = difference[window]
        caption = (
            f"{_difference_label(first, version, factor)}\nat most {part.max()} of 255"
        )
        cells.append((caption, _amplified(part, factor)))
    return cells


def _legend(version: Version, first: Version, width: int) -> str:
    """A line about a version, at most `width` pixels wide."""
    height, columns = (side // version.scale for side in version.image.shape[:2])
    words = f"{columns}x{height}"
    if version.scale > 1:
        words += f", {version.enlargement}"
    elif version is not first and first.scale == 1:
        words += f", {_likeness(first.image, version.image)}"
        words += f" against {first.letter}"
    room = width - int(pictures.FONT.getlength(f"{version.letter}      {words}"))
    return f"{version.letter}   {pictures.shorten(version.name, room)}   {words}"


def _likeness(a: UInt8[np.ndarray, "h w 3"], b: UInt8[np.ndarray, "h w 3"]) -> str:
    """PSNR in words."""
    psnr = metrics.psnr(a, b)
    return "no difference" if math.isinf(psnr) else f"{psnr:.2f} dB"


def _difference_label(first: Version, version: Version, factor: int) -> str:
    return f"|{version.letter} - {first.letter}| x {factor}"


def _arranged(
    blocks: Sequence[UInt8[np.ndarray, "_ _ 3"]],
) -> UInt8[np.ndarray, "h w 3"]:
    """Pictures side by side as far as the width goes, in rows of about one length."""
    widest = max(block.shape[1] for block in blocks) + pictures.MARGIN
    rows = math.ceil(len(blocks) / max(1, (WIDTH - pictures.MARGIN) // widest))
    count = math.ceil(len(blocks) / rows)
    return pictures.sheet(
        [
            [("", block) for block in blocks[start : start + count]]
            for start in range(0, len(blocks), count)
        ]
    )
